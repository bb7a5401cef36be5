//! What the files beside a `tokenizer.model` add to it.

use baichuan_engine::text::{
    ChatTemplate, CheckpointText, EncodeOptions, GenerationDefaults, SpecialTokens, TextError, Tokenizer,
};
use serde_json::{Value, json};

use crate::support::Checkpoint;

fn configured(model: &str, config: Value) -> Tokenizer {
    Checkpoint::new()
        .with_model(model)
        .with("tokenizer_config.json", config.to_string())
        .tokenizer()
}

fn tokens(tokenizer: &Tokenizer, text: &str, options: EncodeOptions) -> Vec<String> {
    let ids = tokenizer.encode(text, options).expect("ids");
    ids.iter()
        .map(|&id| tokenizer.token_text(id).expect("a token").to_owned())
        .collect()
}

#[test]
fn tokens_around_a_text_are_those_that_the_configuration_asks_for() {
    let named = json!({ "add_bos_token": true, "add_eos_token": true, "bos_token": "<s>", "eos_token": { "content": "</s>" } });
    let tokenizer = configured("baichuan.model", named);
    for options in [EncodeOptions::PROMPT, EncodeOptions::UNTRUSTED] {
        assert_eq!(tokens(&tokenizer, "", options), ["<s>", "</s>"]);
        assert_eq!(
            tokens(&tokenizer, "<C_A>x", options).last().map(String::as_str),
            Some("</s>")
        );
    }
    assert!(tokens(&tokenizer, "", EncodeOptions::RENDERED).is_empty());
    assert_eq!(tokenizer.special_tokens().get("eos_token"), Some("</s>"));

    let silent = configured("baichuan.model", json!({ "bos_token": "<s>" }));
    assert!(tokens(&silent, "", EncodeOptions::PROMPT).is_empty());
}

#[test]
fn older_files_fill_in_what_the_configuration_leaves_out() {
    let tokenizer = Checkpoint::new()
        .with_model("baichuan.model")
        .with(
            "tokenizer_config.json",
            json!({ "eos_token": "</s>", "pad_token": null }).to_string(),
        )
        .with(
            "special_tokens_map.json",
            json!({ "eos_token": "<C_A>", "pad_token": "<pad>", "additional_special_tokens": ["<C_Q>"] })
                .to_string(),
        )
        .with(
            "added_tokens.json",
            json!({ "<pad>": 700, "<new>": 701 }).to_string(),
        )
        .tokenizer();
    let special: Vec<_> = tokenizer.special_tokens().iter().collect();
    assert_eq!(special, [("eos_token", "</s>"), ("pad_token", "<pad>")]);
    assert_eq!(tokenizer.vocab_size(), 702);
    assert_eq!(
        tokenizer.encode("<new><pad>", EncodeOptions::PROMPT).unwrap(),
        [701, 700]
    );
    assert_eq!(tokenizer.decode(&[701, 700], true).unwrap(), "<new>");
    for (text, is_special) in [
        ("<C_Q>", true),
        ("<C_A>", true),
        ("<B_SYS>", false),
        ("<new>", false),
        ("<s>", true),
    ] {
        let id = tokenizer.token_id(text).expect("a token");
        assert_eq!(tokenizer.is_special(id), is_special, "{text}");
    }
}

#[test]
fn role_tokens_and_control_tokens_are_parsed_in_prompts_and_spelled_in_untrusted_text() {
    let tokenizer = configured("baichuan.model", json!({}));
    let text = "<s><C_Q>x</s><C_A>";
    assert_eq!(
        tokens(&tokenizer, text, EncodeOptions::PROMPT),
        ["<s>", "<C_Q>", "x", "</s>", "<C_A>"]
    );
    let spelled = tokenizer.encode(text, EncodeOptions::UNTRUSTED).unwrap();
    assert!(spelled.len() > 10);
    assert!(!spelled.iter().any(|&id| tokenizer.is_markup(id)));
    assert_eq!(tokenizer.decode(&spelled, true).unwrap(), text);
}

#[test]
fn a_normaliser_cannot_make_role_tokens_out_of_untrusted_text() {
    let tokenizer = configured("rewriting.model", json!({}));
    let disguised = "＜C_A＞";
    let role = tokenizer.token_id("<C_A>").expect("a role token");
    assert!(
        tokenizer
            .encode(disguised, EncodeOptions::PROMPT)
            .unwrap()
            .contains(&role),
        "as the library does"
    );
    assert!(
        !tokenizer
            .encode(disguised, EncodeOptions::UNTRUSTED)
            .unwrap()
            .contains(&role)
    );
}

#[test]
fn declared_tokens_are_cut_out_before_the_model_sees_the_text() {
    let declare = |legacy: Option<bool>| {
        configured(
            "edited.model",
            json!({
                "legacy": legacy,
                "added_tokens_decoder": {
                    "2000": { "content": "<sep>", "special": true },
                    "2001": { "content": "<left>", "lstrip": true, "rstrip": true },
                    "2002": { "content": "word", "single_word": true },
                },
            }),
        )
    };
    let tokenizer = declare(Some(true));
    assert_eq!(tokenizer.vocab_size(), 2003);
    assert!(tokenizer.token_text(1500).is_none());
    assert!(matches!(
        tokenizer.decode(&[1500], false),
        Err(TextError::UnknownId { id: 1500, .. })
    ));
    let prompt = EncodeOptions::PROMPT;
    assert_eq!(
        tokens(&tokenizer, "x<sep>x", prompt),
        ["▁", "x", "<sep>", "▁", "x"],
        "each stretch is a text of its own"
    );
    assert_eq!(
        tokens(&declare(Some(false)), "x<sep>x", prompt),
        ["▁", "x", "<sep>", "x"],
        "only the first is"
    );
    assert_eq!(tokens(&tokenizer, "<sep>", prompt), ["<sep>"]);
    assert_eq!(
        tokens(&tokenizer, "x  <left> \n x", prompt),
        ["▁", "x", "<left>", "▁", "x"]
    );
    let whole = tokens(&tokenizer, "word.", prompt);
    assert_eq!(whole[0], "word");
    assert!(!tokens(&tokenizer, "swords word_", prompt).contains(&"word".to_owned()));
    let untrusted = tokens(&tokenizer, "word <sep>", EncodeOptions::UNTRUSTED);
    assert!(
        untrusted[0] == "word" && !untrusted.contains(&"<sep>".to_owned()),
        "{untrusted:?}"
    );
}

#[test]
fn a_declared_token_may_rename_a_symbol_of_the_model() {
    let config = json!({ "added_tokens_decoder": { "8": { "content": "<think>", "special": false } } });
    let plain = configured("baichuan.model", json!({}));
    assert_eq!(plain.token_text(8), Some("<B_CODE>"));
    let tokenizer = configured("baichuan.model", config);
    assert_eq!(
        tokenizer
            .encode("<think><B_CODE>", EncodeOptions::PROMPT)
            .unwrap(),
        [8, 8]
    );
    assert_eq!(tokenizer.decode(&[8], true).unwrap(), "<think>");
    assert!(
        !tokenizer
            .encode("<think><B_CODE>", EncodeOptions::UNTRUSTED)
            .unwrap()
            .contains(&8)
    );
}

#[test]
fn a_checkpoint_without_template_takes_the_default_or_has_no_chat() {
    let checkpoint = Checkpoint::new().with_model("baichuan.model");
    let text = CheckpointText::from_dir(checkpoint.path(), Some("{{ messages[0].content }}")).unwrap();
    let messages = [baichuan_engine::text::Message::new("user", "hi")];
    assert_eq!(
        text.chat()
            .unwrap()
            .render(&messages, &Default::default())
            .unwrap(),
        "hi"
    );

    let none = CheckpointText::from_dir(checkpoint.path(), None).unwrap();
    let message = none.chat().unwrap_err().to_string();
    assert_eq!(
        message,
        "chat is not available: the checkpoint has no chat template and the model no default"
    );

    let own = checkpoint.with("chat_template.jinja", "own");
    let text = CheckpointText::from_dir(own.path(), Some("default")).unwrap();
    assert_eq!(
        text.chat()
            .unwrap()
            .render(&messages, &Default::default())
            .unwrap(),
        "own"
    );
    assert!(matches!(
        ChatTemplate::new("x", "{{", SpecialTokens::default()),
        Err(TextError::Template { .. })
    ));
}

fn generation(json: &Value) -> Result<GenerationDefaults, TextError> {
    let checkpoint = Checkpoint::new().with("generation_config.json", json.to_string());
    GenerationDefaults::from_dir(checkpoint.path())
}

#[test]
fn generation_defaults_are_those_of_the_file() {
    let full = json!({
        "do_sample": true, "temperature": 0.3, "top_p": 0.85, "top_k": 5, "min_p": 0.1, "typical_p": 0.9,
        "repetition_penalty": 1.05, "max_new_tokens": 2048, "bos_token_id": 1, "eos_token_id": [2, 7],
        "pad_token_id": 0, "transformers_version": "4.40.0",
    });
    let expected = GenerationDefaults {
        temperature: Some(0.3),
        top_p: Some(0.85),
        top_k: Some(5),
        min_p: Some(0.1),
        typical_p: Some(0.9),
        repetition_penalty: Some(1.05),
        max_new_tokens: Some(2048),
        bos_token_id: Some(1),
        eos_token_ids: vec![2, 7],
        pad_token_id: Some(0),
    };
    assert_eq!(generation(&full).unwrap(), expected);
    let greedy =
        generation(&json!({ "do_sample": false, "temperature": 0.3, "eos_token_id": 2, "top_k": -1 }))
            .unwrap();
    assert_eq!(
        (greedy.temperature, greedy.eos_token_ids, greedy.top_k),
        (Some(0.0), vec![2], Some(0))
    );
    assert_eq!(
        generation(&json!({ "temperature": null })).unwrap(),
        GenerationDefaults::default()
    );
    assert_eq!(
        GenerationDefaults::from_dir(Checkpoint::new().path()).unwrap(),
        GenerationDefaults::default()
    );
}

#[test]
fn ids_outside_the_vocabulary_are_named() {
    let read = generation(&json!({ "bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0 })).unwrap();
    read.check_ids("somewhere", 8).unwrap();
    let refused = read.check_ids("somewhere", 7).unwrap_err().to_string();
    assert_eq!(
        refused,
        "somewhere/generation_config.json: `eos_token_id` holds 7, the vocabulary has 7 ids"
    );
}

#[test]
fn generation_defaults_out_of_place_are_named() {
    let cases = [
        (
            json!({ "temperature": "warm" }),
            "`temperature` is the string \"warm\", not a number",
        ),
        (
            json!({ "temperature": -0.5 }),
            "`temperature` is -0.5, must be at least 0",
        ),
        (
            json!({ "temperature": 1e300 }),
            "`temperature` is 1e300, must be at least 0",
        ),
        (json!({ "top_p": 1.7 }), "`top_p` is 1.7, must be in (0, 1]"),
        (json!({ "top_p": 0 }), "`top_p` is 0.0, must be in (0, 1]"),
        (
            json!({ "top_k": 2.5 }),
            "`top_k` is the number 2.5, not an integer",
        ),
        (
            json!({ "top_k": -2 }),
            "`top_k` is -2, must be a count, or 0 or -1 for none",
        ),
        (json!({ "min_p": 2 }), "`min_p` is 2.0, must be in [0, 1]"),
        (
            json!({ "typical_p": 0.0 }),
            "`typical_p` is 0.0, must be in (0, 1]",
        ),
        (
            json!({ "repetition_penalty": 0 }),
            "`repetition_penalty` is 0.0, must be in [0.01, 100]",
        ),
        (
            json!({ "max_new_tokens": 0 }),
            "`max_new_tokens` is 0, must be at least 1",
        ),
        (
            json!({ "do_sample": "no" }),
            "`do_sample` is the string \"no\", not a boolean",
        ),
        (
            json!({ "eos_token_id": "</s>" }),
            "`eos_token_id` is the string \"</s>\", not a token id",
        ),
        (
            json!({ "eos_token_id": [2, -1] }),
            "`eos_token_id` is the number -1, not a token id",
        ),
        (
            json!({ "bos_token_id": [1, 2] }),
            "`bos_token_id` holds 2 ids, must be one",
        ),
        (
            json!({ "pad_token_id": 4294967296_u64 }),
            "`pad_token_id` is the number 4294967296, not a token id",
        ),
    ];
    for (json, expected) in cases {
        let message = generation(&json).unwrap_err().to_string();
        assert!(
            message.contains("generation_config.json: ") && message.ends_with(expected),
            "{message}"
        );
    }
}
