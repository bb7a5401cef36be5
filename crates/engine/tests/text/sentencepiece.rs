//! A `tokenizer.model` gives what the SentencePiece library gives.

use baichuan_engine::text::{EncodeOptions, Markup, Tokenizer};

use crate::support::{Checkpoint, golden, ids};

const MODELS: [&str; 5] = ["baichuan", "rewriting", "edited", "suffix", "spaces"];

fn cases(name: &str, kind: &str) -> Vec<(serde_json::Value, serde_json::Value)> {
    let golden = golden(&format!("{name}.json"));
    serde_json::from_value(golden[kind].clone()).expect("pairs")
}

#[test]
fn ids_are_those_of_the_sentencepiece_library() {
    for name in MODELS {
        let tokenizer = Checkpoint::new().with_model(&format!("{name}.model")).tokenizer();
        let cases = cases(name, "encode");
        assert!(cases.len() > 450);
        for (text, expected) in cases {
            let text = text.as_str().expect("a text");
            let actual = tokenizer.encode(text, EncodeOptions::PROMPT).unwrap();
            assert_eq!(actual, ids(&expected), "{name}: {text:?}");
        }
    }
}

#[test]
fn literal_ids_are_those_of_a_model_that_knows_no_markup() {
    let literal = EncodeOptions {
        add_special_tokens: false,
        markup: Markup::Literal,
    };
    for name in MODELS {
        let tokenizer = Checkpoint::new().with_model(&format!("{name}.model")).tokenizer();
        for (text, expected) in cases(name, "literal") {
            let text = text.as_str().expect("a text");
            let actual = tokenizer.encode(text, literal).unwrap();
            assert_eq!(actual, ids(&expected), "{name}: {text:?}");
            assert!(
                !actual.iter().any(|&id| tokenizer.is_markup(id)),
                "{name}: {text:?}"
            );
        }
    }
}

#[test]
fn text_of_ids_is_that_of_the_sentencepiece_library() {
    for name in MODELS {
        let tokenizer = Checkpoint::new().with_model(&format!("{name}.model")).tokenizer();
        for (given, expected) in cases(name, "decode") {
            let given = ids(&given);
            let actual = tokenizer.decode(&given, true).unwrap();
            assert_eq!(actual, expected.as_str().expect("a text"), "{name}: {given:?}");
        }
    }
}

/// Written as a `tokenizer.json`, a model gives the same ids, or is not written.
#[test]
fn ids_stay_the_same_in_the_other_format() {
    let mut written = Vec::new();
    for name in MODELS {
        let checkpoint = Checkpoint::new().with_model(&format!("{name}.model"));
        let Some(json) = Tokenizer::as_tokenizer_json(checkpoint.path()).unwrap() else {
            continue;
        };
        written.push(name);
        let original = checkpoint.tokenizer();
        let unknown = original.token_id("<unk>").unwrap();
        let tokenizer = Checkpoint::new().with("tokenizer.json", json).tokenizer();
        for (text, expected) in cases(name, "encode") {
            let text = text.as_str().expect("a text");
            let actual = tokenizer.encode(text, EncodeOptions::PROMPT).unwrap();
            assert_eq!(actual, ids(&expected), "{name}: {text:?}");
            // What a model writes for the unknown, the other format cannot say.
            if !actual.contains(&unknown) {
                let text = original.decode(&actual, true).unwrap();
                assert_eq!(
                    tokenizer.decode(&actual, true).unwrap(),
                    text,
                    "{name}: {actual:?}"
                );
            }
        }
    }
    assert_eq!(written, ["baichuan"]);
}
