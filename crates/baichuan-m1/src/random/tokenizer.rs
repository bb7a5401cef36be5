//! The tokenizer of random checkpoints: a SentencePiece BPE model of 512 pieces, written field by field.
//!
//! It has what the real one has: control and role tokens, all 256 bytes to fall back on, words. Any text goes
//! there and back.

use serde_json::{Value, json};

/// In order of their ids, from 3.
const ROLES: [&str; 6] = ["<B_SYS>", "<B_USYS>", "<C_Q>", "<C_A>", "<B_FUNC>", "<B_CODE>"];

/// Merged pieces in order of preference; `▁` stands for a space. Each is two pieces before it, or two characters.
const MERGES: &str = "he ▁a ▁t ▁the re in ▁b ▁an ▁w on at er ▁and es is ou ▁o as ▁c ▁f ▁s or ▁d The ▁in en ion \
    ▁of ▁th ed ▁l ▁n ▁be ar gh om ot ▁m est ac am it ▁e ▁h ▁y ent ing res ter ▁he ▁is ▁was ation ad et ia ic id \
    im ir ld qu ro us ▁p art ase ght ith ure ver ▁al ▁on ▁qu ▁st ould ▁are ▁com ▁for ▁inf ▁you ▁this ▁with an av \
    ay ce ct ho ke le lo mp no od pl sw ul ▁r ain atm aus ave bou ere ore orm oth sis xam ▁af ▁by ▁do ▁ev ▁fe ▁fo \
    ▁fr ▁li ▁ta ▁to bout ight lood rest swer ▁The ▁all ▁bac ▁dia ▁one ▁tim ▁who reatm xamin ▁have ▁test ▁that \
    estion ▁about ▁after ▁blood ▁start ▁answer ▁examin reatment ▁question";

const CHARACTERS: &str = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!'-():\"\
    ，。？、你好请问有什么症状我头痛发烧咳嗽三天了医生说是水";

const CHAT_TEMPLATE: &str = "{% for m in messages %}\
    {% if m['role'] == 'system' %}{{ '<B_SYS>' + m['content'] }}\
    {% elif m['role'] == 'user' %}{{ '<C_Q>' + m['content'] }}\
    {% elif m['role'] == 'assistant' %}{{ '<C_A>' + m['content'] }}{% endif %}\
    {% endfor %}{% if add_generation_prompt %}{{ '<C_A>' }}{% endif %}";

/// SentencePiece's names for kinds of piece.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// `tokenizer_config.json`.
pub(super) fn config(max_positions: usize) -> Value {
    json!({
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "add_bos_token": false, "add_eos_token": false, "legacy": false,
        "model_max_length": max_positions, "chat_template": CHAT_TEMPLATE,
    })
}

/// Every piece in order of its id: text, score, kind.
fn pieces() -> Vec<(String, f32, u64)> {
    let control = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)];
    let mut pieces: Vec<_> = control.map(|(piece, kind)| (piece.to_owned(), 0.0, kind)).into();
    pieces.extend(ROLES.map(|role| (role.to_owned(), 0.0, USER_DEFINED)));
    pieces.extend((0..=u8::MAX).map(|byte| (format!("<0x{byte:02X}>"), 0.0, BYTE)));
    let characters = CHARACTERS.chars().map(String::from);
    let words = MERGES.split_whitespace().map(str::to_owned).chain(characters);
    pieces.extend(
        words
            .enumerate()
            .map(|(rank, piece)| (piece, -(rank as f32), NORMAL)),
    );
    pieces
}

/// `tokenizer.model`: SentencePiece's `ModelProto`.
pub(super) fn model() -> Vec<u8> {
    let mut model = Message::default();
    for (piece, score, kind) in pieces() {
        let mut message = Message::default();
        message.bytes(1, piece.as_bytes());
        message.float(2, score);
        message.number(3, kind);
        model.bytes(1, &message.0);
    }
    let mut trainer = Message::default();
    trainer.number(3, 2); // model_type: BPE
    trainer.number(4, pieces().len() as u64); // vocab_size
    trainer.number(35, 1); // byte_fallback
    trainer.number(40, 0); // unk_id
    trainer.number(41, 1); // bos_id
    trainer.number(42, 2); // eos_id
    trainer.number(43, u64::MAX); // pad_id: -1, none
    model.bytes(2, &trainer.0);
    let mut normalizer = Message::default();
    normalizer.bytes(1, b"identity"); // name
    normalizer.number(3, 0); // add_dummy_prefix
    normalizer.number(4, 0); // remove_extra_whitespaces
    normalizer.number(5, 1); // escape_whitespaces
    model.bytes(3, &normalizer.0);
    model.0
}

/// A message in the wire format of Protocol Buffers, field after field.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_pieces_fill_the_smallest_vocabulary_without_repeating() {
        let pieces = pieces();
        let distinct: HashSet<_> = pieces.iter().map(|(piece, ..)| piece).collect();
        assert_eq!((pieces.len(), distinct.len()), (512, 512));
    }

    #[test]
    fn every_merge_joins_pieces_that_can_be_there_already() {
        let mut known: HashSet<String> = CHARACTERS.chars().map(String::from).collect();
        for merge in MERGES.split_whitespace() {
            let splits = merge.char_indices().skip(1).map(|(at, _)| merge.split_at(at));
            let joins = splits
                .into_iter()
                .any(|(a, b)| known.contains(a) && known.contains(b));
            assert!(joins, "nothing makes {merge:?}");
            known.insert(merge.to_owned());
        }
    }
}
