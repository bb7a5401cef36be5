//! Files that are missing, broken or at odds end in errors that name them.

use baichuan_engine::text::{EncodeOptions, TextError, Tokenizer};
use prost::Message;

use crate::support::Checkpoint;

#[test]
fn a_checkpoint_without_tokenizer_names_the_files_looked_for() {
    let checkpoint = Checkpoint::new();
    let error = checkpoint.error();
    assert!(matches!(error, TextError::NoTokenizer { .. }));
    let dir = checkpoint.path().display();
    let expected = format!("no tokenizer in {dir}: looked for tokenizer.json, tokenizer.model");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn broken_files_are_named_with_the_key() {
    let model = || Checkpoint::new().with_model("baichuan.model");
    let config = |json: &str| model().with("tokenizer_config.json", json);
    let cases = [
        (
            Checkpoint::new().with("tokenizer.model", b"\xff\xff"),
            "tokenizer.model",
            "not a SentencePiece model",
        ),
        (
            Checkpoint::new().with("tokenizer.json", "{"),
            "tokenizer.json",
            "not valid JSON",
        ),
        (
            Checkpoint::new().with("tokenizer.json", "[]"),
            "tokenizer.json",
            "holds a list, not an object",
        ),
        (
            config("{\"add_bos_token\": 1}"),
            "tokenizer_config.json",
            "`add_bos_token` is the number 1, not a boolean",
        ),
        (
            config("{\"bos_token\": 1}"),
            "tokenizer_config.json",
            "`bos_token` is the number 1, not a token",
        ),
        (
            config("{\"bos_token\": {\"id\": 1}}"),
            "tokenizer_config.json",
            "`bos_token.content` is missing",
        ),
        (
            config("{\"add_bos_token\": true}"),
            "tokenizer_config.json",
            "`add_bos_token` is true, but no `bos_token`",
        ),
        (
            config("{\"add_eos_token\": true, \"eos_token\": \"<end>\"}"),
            "tokenizer_config.json",
            "`eos_token` is \"<end>\", which is not in the vocabulary",
        ),
        (
            config("{\"added_tokens_decoder\": {\"x\": {}}}"),
            "tokenizer_config.json",
            "`added_tokens_decoder.x` has a key that is no token id",
        ),
        (
            config("{\"added_tokens_decoder\": {\"4294967295\": {\"content\": \"<x>\"}}}"),
            "tokenizer_config.json",
            "`added_tokens_decoder.4294967295` has a key that is no token id below 4194304",
        ),
        (
            config("{\"added_tokens_decoder\": {\"700\": {\"content\": \"\"}}}"),
            "tokenizer_config.json",
            "`added_tokens_decoder.700.content` is empty",
        ),
        (
            config("{\"added_tokens_decoder\": {\"690\": {\"content\": \"<x>\"}}}"),
            "tokenizer_config.json",
            "`added_tokens_decoder.690` is \"<x>\", but the model has a piece of text at this id",
        ),
        (
            config("{\"added_tokens_decoder\": {\"700\": {\"content\": \"<C_A>\"}}}"),
            "tokenizer_config.json",
            "`added_tokens_decoder.700` is \"<C_A>\", which the model has at id 6",
        ),
        (
            model().with("added_tokens.json", "{\"<x>\": -1}"),
            "added_tokens.json",
            "`<x>` is no token id",
        ),
        (
            model().with("special_tokens_map.json", "{\"additional_special_tokens\": {}}"),
            "special_tokens_map.json",
            "`additional_special_tokens` is an object, not a list",
        ),
    ];
    for (checkpoint, file, problem) in cases {
        let message = checkpoint.error().to_string();
        assert!(
            message.starts_with(&checkpoint.path().join(file).display().to_string()),
            "{message}"
        );
        assert!(message.contains(problem), "{message}");
    }
}

/// The parts of a SentencePiece model that these tests change.
#[derive(Clone, PartialEq, prost::Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
    #[prost(message, optional, tag = "5")]
    denormalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Piece {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
}

/// A BPE model of `<unk>`, `a`, `b` and `ab`.
fn small_model() -> Model {
    let piece = |text: &str, score, kind| Piece {
        text: text.to_owned(),
        score,
        kind,
    };
    Model {
        pieces: vec![
            piece("<unk>", 0.0, Some(2)),
            piece("a", -2.0, None),
            piece("b", -3.0, Some(1)),
            piece("ab", -1.0, None),
        ],
        trainer: Some(Trainer {
            model_type: Some(2),
            byte_fallback: None,
        }),
        normalizer: Some(Normalizer {
            charsmap: None,
            add_dummy_prefix: Some(false),
        }),
        denormalizer: None,
    }
}

fn checkpoint(model: &Model) -> Checkpoint {
    Checkpoint::new().with("tokenizer.model", model.encode_to_vec())
}

#[test]
fn absent_fields_of_a_sentencepiece_model_mean_their_defaults() {
    let mut model = small_model();
    let tokenizer = checkpoint(&model).tokenizer();
    assert_eq!(
        tokenizer.encode("abba?!", EncodeOptions::PROMPT).unwrap(),
        [3, 2, 1, 0]
    );
    assert_eq!(tokenizer.decode(&[0, 1], true).unwrap(), " \u{2047} a");

    model.normalizer = None;
    let tokenizer = checkpoint(&model).tokenizer();
    let ids = tokenizer.encode("a", EncodeOptions::PROMPT).unwrap();
    assert_eq!(
        ids,
        [0, 1],
        "a space mark, unknown here, is put in front by default"
    );
}

#[test]
fn models_that_cannot_be_run_are_refused() {
    type Change = fn(&mut Model);
    let cases: [(Change, &str); 12] = [
        (
            |m| m.trainer = None,
            "SentencePiece model type Unigram is not supported, a BPE model without denormaliser is",
        ),
        (
            |m| set_type(m, 3),
            "SentencePiece model type Word is not supported",
        ),
        (|m| set_type(m, 9), "SentencePiece model type 9 is not supported"),
        (
            |m| m.denormalizer = Some(charsmap(b"abcd")),
            "a SentencePiece denormaliser is not supported",
        ),
        (
            |m| m.normalizer = Some(charsmap(b"abc")),
            "`normalizer_spec.precompiled_charsmap` has 3 bytes",
        ),
        (
            |m| m.normalizer = Some(charsmap(b"\x08\0\0\0abcd")),
            "announces a trie of 8 bytes and has 4",
        ),
        (|m| m.pieces[1].text.clear(), "`pieces.1` is empty"),
        (
            |m| m.pieces[2].text = "ab".to_owned(),
            "`pieces.3` \"ab\" is already piece 2",
        ),
        (
            |m| m.pieces[1].score = f32::NAN,
            "`pieces.1` \"a\" has the score NaN",
        ),
        (
            |m| m.pieces[1].kind = Some(2),
            "`pieces.1` is a second unknown piece, the first is 0",
        ),
        (|m| m.pieces[0].kind = Some(1), "`pieces` holds no unknown piece"),
        (
            |m| m.pieces[1].kind = Some(77),
            "`pieces.1` has the unknown type 77",
        ),
    ];
    for (change, problem) in cases {
        let mut model = small_model();
        change(&mut model);
        let message = checkpoint(&model).error().to_string();
        assert!(
            message.contains("tokenizer.model") && message.contains(problem),
            "{message}"
        );
    }
}

#[test]
fn byte_pieces_and_byte_fallback_must_agree() {
    let mut model = small_model();
    let byte = |text: &str| Piece {
        text: text.to_owned(),
        score: 0.0,
        kind: Some(6),
    };
    model.pieces.push(byte("<0x41>"));
    let message = checkpoint(&model).error().to_string();
    assert!(
        message.contains("holds 1 byte pieces although `trainer_spec.byte_fallback` is false"),
        "{message}"
    );

    model.trainer = Some(Trainer {
        model_type: Some(2),
        byte_fallback: Some(true),
    });
    let message = checkpoint(&model).error().to_string();
    assert!(
        message.contains("has no piece <0x00> although `trainer_spec.byte_fallback` is true"),
        "{message}"
    );

    model.pieces.push(byte("<0xZZ>"));
    let message = checkpoint(&model).error().to_string();
    assert!(message.contains("`pieces.5` \"<0xZZ>\" is no byte"), "{message}");
}

fn set_type(model: &mut Model, model_type: i32) {
    model.trainer = Some(Trainer {
        model_type: Some(model_type),
        byte_fallback: None,
    });
}

fn charsmap(blob: &[u8]) -> Normalizer {
    Normalizer {
        charsmap: Some(blob.to_vec()),
        add_dummy_prefix: None,
    }
}

#[test]
fn a_truncated_model_never_panics() {
    let whole = small_model().encode_to_vec();
    for len in 0..whole.len() {
        let checkpoint = Checkpoint::new().with("tokenizer.model", &whole[..len]);
        if let Ok(tokenizer) = Tokenizer::from_dir(checkpoint.path()) {
            tokenizer.encode("ab", EncodeOptions::PROMPT).unwrap();
        }
    }
}
