//! A `tokenizer.json` gives what the `tokenizers` library gives, and never takes a stranger's markup for its own.

use baichuan_engine::text::{EncodeOptions, Markup, TextError, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Checkpoint, golden, ids};

const TOKENIZERS: [&str; 4] = ["byte_level", "byte_fallback", "prefixed", "metaspace"];
const BARE: EncodeOptions = EncodeOptions::RENDERED;

fn json_of(name: &str) -> Value {
    golden(&format!("{name}.tokenizer.json"))
}

fn checkpoint(json: &Value) -> Checkpoint {
    Checkpoint::new().with("tokenizer.json", json.to_string())
}

fn tokenizer(name: &str) -> Tokenizer {
    checkpoint(&json_of(name)).tokenizer()
}

fn cases(name: &str, kind: &str) -> Vec<(Value, Value)> {
    serde_json::from_value(golden(&format!("{name}.json"))[kind].clone()).expect("pairs")
}

#[test]
fn ids_are_those_of_the_tokenizers_library_without_its_truncation_and_padding() {
    for name in TOKENIZERS {
        let tokenizer = tokenizer(name);
        assert_eq!(
            tokenizer.vocab_size() as u64,
            golden(&format!("{name}.json"))["vocab_size"]
        );
        for (kind, options) in [("encode", EncodeOptions::PROMPT), ("bare", BARE)] {
            for (text, expected) in cases(name, kind) {
                let text = text.as_str().expect("a text");
                assert_eq!(
                    tokenizer.encode(text, options).unwrap(),
                    ids(&expected),
                    "{name}: {text:?}"
                );
            }
        }
    }
}

#[test]
fn text_of_ids_is_that_of_the_tokenizers_library_where_bytes_are_valid() {
    for name in TOKENIZERS {
        let tokenizer = tokenizer(name);
        let mut n_broken = 0;
        for (kind, skip) in [("skip", true), ("keep", false)] {
            for (given, expected) in cases(name, kind) {
                let (given, expected) = (ids(&given), expected.as_str().expect("a text"));
                let actual = tokenizer.decode(&given, skip).unwrap();
                // The library gives up on all bytes of a run if one is broken; here the others are kept.
                let gives_up = name != "byte_level" && expected.contains('\u{FFFD}');
                if gives_up && actual != expected {
                    n_broken += 1;
                    let n_lost = |text: &str| text.matches('\u{FFFD}').count();
                    assert!(
                        n_lost(&actual) < n_lost(expected),
                        "{name}: {actual:?}, {expected:?}"
                    );
                } else {
                    assert_eq!(actual, expected, "{name}: {given:?}");
                }
            }
        }
        assert!(n_broken < 20, "{name}: {n_broken} runs of broken bytes");
    }
}

#[test]
fn literal_text_holds_no_markup_and_is_otherwise_the_same() {
    let literal = EncodeOptions {
        add_special_tokens: false,
        markup: Markup::Literal,
    };
    for name in TOKENIZERS {
        let tokenizer = tokenizer(name);
        let mut n_parsed = 0;
        for (text, _) in cases(name, "encode") {
            let text = text.as_str().expect("a text");
            let parsed = tokenizer.encode(text, BARE).unwrap();
            let literal = tokenizer.encode(text, literal).unwrap();
            let has_markup = |ids: &[u32]| {
                ids.iter()
                    .any(|&id| tokenizer.is_markup(id) && tokenizer.token_text(id) != Some("<unk>"))
            };
            assert!(!has_markup(&literal), "{name}: {text:?} {literal:?}");
            if has_markup(&parsed) {
                n_parsed += 1;
            } else if !text.contains("<unk>") {
                assert_eq!(literal, parsed, "{name}: {text:?}");
            }
        }
        assert!(n_parsed > 20, "{name}: only {n_parsed} texts with markup");
    }
}

#[test]
fn plain_words_and_whitespace_stay_tokens_in_literal_text() {
    for name in TOKENIZERS {
        let tokenizer = tokenizer(name);
        let id = tokenizer.token_id("aspirin").expect("an added token");
        let ids = tokenizer
            .encode("take aspirin now", EncodeOptions::UNTRUSTED)
            .unwrap();
        assert!(ids.contains(&id), "{name}");
    }
}

#[test]
fn literal_text_gets_the_tokens_around_it_all_the_same() {
    for name in TOKENIZERS {
        let tokenizer = tokenizer(name);
        let ids = tokenizer.encode("<s>", EncodeOptions::UNTRUSTED).unwrap();
        let bos = tokenizer.token_id("<s>").expect("a begin token");
        assert_eq!(ids[0], bos, "{name}");
        assert!(!ids[1..].contains(&bos), "{name}");
    }
}

#[test]
fn the_configuration_decides_on_tokens_around_a_text() {
    let checkpoint = |config: Value| {
        checkpoint(&json_of("byte_level"))
            .with("tokenizer_config.json", config.to_string())
            .tokenizer()
    };
    let text_of = |tokenizer: &Tokenizer| {
        let ids = tokenizer.encode("a", EncodeOptions::PROMPT).unwrap();
        tokenizer.decode(&ids, false).unwrap()
    };
    assert_eq!(
        text_of(&checkpoint(json!({}))),
        "<s>a",
        "as the file's post-processor has it"
    );
    assert_eq!(text_of(&checkpoint(json!({ "add_bos_token": false }))), "a");
    let both =
        json!({ "add_bos_token": true, "add_eos_token": true, "bos_token": "<s>", "eos_token": "<|end|>" });
    assert_eq!(text_of(&checkpoint(both)), "<s>a<|end|>");
}

#[test]
fn tokens_that_only_the_configuration_declares_are_added() {
    let json = json_of("byte_level");
    let size = tokenizer("byte_level").vocab_size();
    let declare = |id: usize, token: Value| {
        let config = json!({ "added_tokens_decoder": { id.to_string(): token } });
        checkpoint(&json).with("tokenizer_config.json", config.to_string())
    };
    let tokenizer = declare(size, json!({ "content": "<new>", "special": true })).tokenizer();
    let id = tokenizer.token_id("<new>").expect("a token");
    assert_eq!((id as usize, tokenizer.vocab_size()), (size, size + 1));
    assert!(tokenizer.is_special(id) && tokenizer.is_markup(id));
    assert_eq!(tokenizer.encode("<new>", BARE).unwrap(), [id]);
    assert!(
        !tokenizer
            .encode("<new>", EncodeOptions::UNTRUSTED)
            .unwrap()
            .contains(&id)
    );

    let message = declare(size + 5, json!({ "content": "<new>" }))
        .error()
        .to_string();
    assert!(
        message.contains("gives \"<new>\" the id") && message.contains("it can only be"),
        "{message}"
    );
    let message = declare(0, json!({ "content": "<new>" })).error().to_string();
    assert!(
        message.contains("`added_tokens_decoder.0` is \"<new>\", but tokenizer.json has \"<s>\""),
        "{message}"
    );
}

#[test]
fn named_special_tokens_are_special_even_if_the_file_does_not_say_so() {
    let config = json!({ "eos_token": "</think>" }).to_string();
    let plain = tokenizer("byte_level");
    let id = plain.token_id("</think>").expect("an added token");
    assert!(!plain.is_special(id));
    let tokenizer = checkpoint(&json_of("byte_level"))
        .with("tokenizer_config.json", config)
        .tokenizer();
    assert!(tokenizer.is_special(id));
    assert_eq!(tokenizer.decode(&[id], true).unwrap(), "");
}

#[test]
fn decoders_that_cannot_be_streamed_are_refused() {
    let with = |decoder: Value| {
        let mut json = json_of("byte_level");
        json["decoder"] = decoder;
        checkpoint(&json).error()
    };
    let ctc = json!({ "type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true });
    let error = with(ctc);
    assert!(matches!(error, TextError::Unsupported { .. }));
    assert!(
        error
            .to_string()
            .contains("the decoder CTC in this place is not supported"),
        "{error}"
    );
    let late = json!({ "type": "Sequence", "decoders": [{ "type": "Fuse" }, { "type": "ByteFallback" }] });
    assert!(
        with(late)
            .to_string()
            .contains("the decoder ByteFallback in this place")
    );
    let regex = json!({ "type": "Replace", "pattern": { "Regex": "x" }, "content": "" });
    assert!(
        with(regex)
            .to_string()
            .contains("`decoder.pattern` is not a plain string")
    );
    let strip = json!({ "type": "Strip", "content": "ab", "start": 0, "stop": 0 });
    assert!(
        with(strip)
            .to_string()
            .contains("`decoder.content` is \"ab\", not one character")
    );
}

#[test]
fn without_a_decoder_tokens_are_joined_by_spaces() {
    let mut json = json_of("metaspace");
    json["decoder"] = Value::Null;
    let tokenizer = checkpoint(&json).tokenizer();
    let ids = tokenizer.encode("aspirin</think>", BARE).unwrap();
    let texts: Vec<_> = ids.iter().filter_map(|&id| tokenizer.token_text(id)).collect();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), texts.join(" "));
}

#[test]
fn files_that_hold_nonsense_end_in_errors() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 7] = [
        (|json| json["model"] = json!(1), "`model` is not an object"),
        (
            |json| json["model"]["vocab"] = json!("x"),
            "`model.vocab` is neither an object nor a list",
        ),
        (|json| json["model"]["vocab"] = json!(["x"]), ""),
        (|json| json["model"]["merges"] = json!([["no", "such"]]), ""),
        (
            |json| json["added_tokens"] = json!({}),
            "`added_tokens` is an object, not a list",
        ),
        (
            |json| json["added_tokens"] = json!([[]]),
            "`added_tokens.0` has no `id`",
        ),
        (
            |json| json["added_tokens"][0]["content"] = json!(7),
            "`added_tokens.0.content` is the number 7",
        ),
    ];
    for (change, problem) in cases {
        let mut json = json_of("byte_level");
        change(&mut json);
        let message = checkpoint(&json).error().to_string();
        assert!(
            message.contains("tokenizer.json") && message.contains(problem),
            "{message}"
        );
    }
}

proptest! {
    #[test]
    fn a_byte_level_text_survives_the_way_to_ids_and_back(text in "\\PC*|[<C_A>|end s/]{0,12}") {
        thread_local!(static TOKENIZER: Tokenizer = tokenizer("byte_level"));
        TOKENIZER.with(|tokenizer| {
            let ids = tokenizer.encode(&text, EncodeOptions { add_special_tokens: false, markup: Markup::Literal });
            let ids = ids.unwrap();
            let mut nfc = tokenizer.decode(&ids, true).unwrap();
            prop_assert!(!ids.iter().any(|&id| tokenizer.is_markup(id)));
            // The file's normaliser composes characters; what is composed already must come back as it is.
            let again = tokenizer.encode(&nfc, EncodeOptions::UNTRUSTED).unwrap();
            nfc = tokenizer.decode(&again, true).unwrap();
            prop_assert_eq!(&again[1..], ids.as_slice());
            if text.is_ascii() {
                prop_assert_eq!(nfc, text);
            }
            Ok(())
        })?;
    }
}

#[test]
fn a_token_around_texts_that_is_not_declared_is_an_error_of_its_file() {
    // Found by fuzzing: tokenizers 0.22 takes it on trust, and panics at the first text.
    let mut json = json_of("prefixed");
    json["post_processor"] = json!({
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "<nobody>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {},
    });
    let error = checkpoint(&json).error();
    assert!(matches!(error, TextError::Tokenizer { .. }), "{error}");
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}
