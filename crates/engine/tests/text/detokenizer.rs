//! Streams of text: whole characters, as soon as they are whole, and nothing else than the whole text.

use baichuan_engine::text::{EncodeOptions, TextError, Tokenizer};
use proptest::prelude::*;

use crate::support::{Checkpoint, golden};

/// One of every way to spell: a SentencePiece model each without and with a first space, byte level, byte fallback
/// with a strip, Metaspace, and no decoder at all.
fn tokenizers() -> Vec<Tokenizer> {
    let hub = |name: &str| golden(&format!("{name}.tokenizer.json"));
    let mut joined = hub("metaspace");
    joined["decoder"] = serde_json::Value::Null;
    let mut stripped = hub("byte_fallback");
    stripped["decoder"]["decoders"]
        .as_array_mut()
        .expect("a sequence")
        .push(serde_json::json!({
            "type": "Strip", "content": " ", "start": 2, "stop": 2
        }));
    let hub = [
        hub("byte_level"),
        hub("prefixed"),
        hub("metaspace"),
        joined,
        stripped,
    ];
    let hub = hub.iter().map(|json| {
        Checkpoint::new()
            .with("tokenizer.json", json.to_string())
            .tokenizer()
    });
    let models = ["baichuan", "rewriting", "edited"];
    let models = models
        .iter()
        .map(|name| Checkpoint::new().with_model(&format!("{name}.model")).tokenizer());
    models.chain(hub).collect()
}

thread_local!(static TOKENIZERS: Vec<Tokenizer> = tokenizers());

proptest! {
    #[test]
    fn pushes_and_the_end_make_up_the_text_of_all_ids(
        which in 0..8_usize,
        skip in any::<bool>(),
        picks in prop::collection::vec(any::<u32>(), 0..40),
        text in "\\PC{0,12}",
    ) {
        TOKENIZERS.with(|tokenizers| {
            let tokenizer = &tokenizers[which];
            let size = tokenizer.vocab_size() as u32;
            let mut ids: Vec<u32> = picks.iter().map(|pick| pick % size).collect();
            ids.splice(ids.len() / 2..ids.len() / 2, tokenizer.encode(&text, EncodeOptions::UNTRUSTED).unwrap());
            let whole = tokenizer.decode(&ids, skip).unwrap();

            let mut stream = tokenizer.detokenizer(skip);
            let mut pieces = String::new();
            for (n, &id) in ids.iter().enumerate() {
                pieces.push_str(stream.push(id).unwrap());
                // What is out is never taken back, whatever follows.
                prop_assert!(whole.starts_with(&pieces), "after {} ids: {:?} of {:?}", n + 1, pieces, whole);
            }
            pieces.push_str(stream.finish());
            prop_assert_eq!(&pieces, &whole);

            // The end leaves a fresh stream behind.
            let again: String = ids.iter().map(|&id| stream.push(id).unwrap().to_owned()).collect();
            prop_assert_eq!(again + stream.finish(), whole);
            Ok(())
        })?;
    }

    #[test]
    fn a_text_without_space_marks_survives_the_way_to_ids_and_back(text in any::<String>()) {
        TOKENIZERS.with(|tokenizers| {
            let expected = text.replace('\u{2581}', " ");
            for options in [EncodeOptions::UNTRUSTED, EncodeOptions::PROMPT] {
                let ids = tokenizers[0].encode(&text, options).unwrap();
                prop_assert_eq!(&tokenizers[0].decode(&ids, true).unwrap(), &expected);
            }
            Ok(())
        })?;
    }
}

#[test]
fn a_character_of_several_tokens_comes_with_its_last_byte() {
    TOKENIZERS.with(|tokenizers| {
        let tokenizer = &tokenizers[0];
        let mut stream = tokenizer.detokenizer(true);
        let mut outputs = Vec::new();
        for byte in "é😀".bytes() {
            let id = tokenizer
                .token_id(&format!("<0x{byte:02X}>"))
                .expect("a byte piece");
            outputs.push(stream.push(id).unwrap().to_owned());
        }
        assert_eq!(outputs, ["", "é", "", "", "", "😀"]);
        assert_eq!(stream.finish(), "");
    });
}

#[test]
fn a_character_that_never_ends_is_replaced_when_that_is_certain() {
    TOKENIZERS.with(|tokenizers| {
        let tokenizer = &tokenizers[0];
        let byte = |byte: u8| {
            tokenizer
                .token_id(&format!("<0x{byte:02X}>"))
                .expect("a byte piece")
        };
        let role = tokenizer.token_id("<C_A>").expect("a role token");
        let mut stream = tokenizer.detokenizer(true);
        assert_eq!(stream.push(byte(0xF0)).unwrap(), "");
        assert_eq!(stream.push(byte(0x9F)).unwrap(), "");
        assert_eq!(stream.push(byte(0x41)).unwrap(), "\u{FFFD}\u{FFFD}A");
        assert_eq!(stream.push(byte(0xE4)).unwrap(), "");
        assert_eq!(stream.push(role).unwrap(), "\u{FFFD}<C_A>");
        assert_eq!(stream.push(byte(0xE4)).unwrap(), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
    });
}

#[test]
fn special_tokens_are_skipped_on_request() {
    TOKENIZERS.with(|tokenizers| {
        let tokenizer = &tokenizers[1];
        let [bos, word] = ["<s>", "▁the"].map(|text| tokenizer.token_id(text).expect("a token"));
        assert_eq!(
            tokenizer.decode(&[bos, word, word, bos], true).unwrap(),
            "the the"
        );
        assert_eq!(
            tokenizer.decode(&[bos, word, word, bos], false).unwrap(),
            "<s> the the<s>"
        );
    });
}

#[test]
fn an_id_outside_the_vocabulary_is_an_error_and_changes_nothing() {
    for tokenizer in tokenizers() {
        let vocab_size = tokenizer.vocab_size();
        for id in [vocab_size as u32, u32::MAX] {
            let error = tokenizer.decode(&[0, id], false).unwrap_err();
            assert!(
                matches!(error, TextError::UnknownId { id: actual, .. } if actual == id),
                "{error:?}"
            );
            let expected = format!("token id {id} is not in the vocabulary of {vocab_size} tokens");
            assert_eq!(error.to_string(), expected);
            assert!(tokenizer.token_text(id).is_none() && !tokenizer.is_special(id));
        }
        let ids = tokenizer
            .encode("the <C_A> patient", EncodeOptions::PROMPT)
            .unwrap();
        let mut stream = tokenizer.detokenizer(false);
        let mut text = String::new();
        for &id in &ids {
            stream.push(u32::MAX).unwrap_err();
            text.push_str(stream.push(id).unwrap());
        }
        text.push_str(stream.finish());
        assert_eq!(text, tokenizer.decode(&ids, false).unwrap());
    }
}
