//! What a `config.json` may and may not say.

use serde_json::{Value, json};

use super::{BaichuanConfig, ConfigError, LayerShape, Span};

/// The published 14B release.
fn published() -> Value {
    json!({
        "architectures": ["BaichuanM1ForCausalLM"], "model_type": "baichuan_m1", "hidden_act": "silu",
        "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40, "vocab_size": 133_120,
        "num_attention_heads": 20, "num_key_value_heads": 2,
        "num_swa_attention_heads": 40, "num_swa_key_value_heads": 8,
        "sliding_window": 8192, "sliding_window_layers": (1..40).step_by(2).collect::<Vec<_>>(),
        "conv_window": 2, "max_position_embeddings": 32768, "model_max_length": 32768,
        "rope_theta": 1_000_000, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "attention_dropout": 0.0,
        "initializer_range": 0.02, "torch_dtype": "bfloat16", "rope_scaling": null,
    })
}

fn with(changes: Value) -> Result<BaichuanConfig, ConfigError> {
    let mut config = published();
    for (key, value) in changes.as_object().expect("changes are an object") {
        config[key] = value.clone();
    }
    BaichuanConfig::from_json(&config.to_string())
}

fn without(key: &str) -> Result<BaichuanConfig, ConfigError> {
    let mut config = published();
    config
        .as_object_mut()
        .expect("an object")
        .remove(key)
        .expect("the key is there");
    BaichuanConfig::from_json(&config.to_string())
}

const GLOBAL: LayerShape = LayerShape {
    span: Span::Global,
    n_heads: 20,
    n_kv_heads: 2,
    head_dim: 256,
};
const SLIDING: LayerShape = LayerShape {
    span: Span::Sliding { window: 8192 },
    n_heads: 40,
    n_kv_heads: 8,
    head_dim: 128,
};

#[test]
fn the_published_config_alternates_two_head_geometries() {
    let config = with(json!({})).unwrap();
    assert_eq!(config.layers.len(), 40);
    for (i, layer) in config.layers.iter().enumerate() {
        assert_eq!(*layer, if i % 2 == 1 { SLIDING } else { GLOBAL }, "layer {i}");
    }
    assert_eq!(
        (config.bos_token_id, config.eos_token_ids.as_slice()),
        (Some(1), &[2][..])
    );
    assert_eq!((config.max_positions, config.conv_window), (32768, 2));
}

#[test]
fn the_list_of_sliding_layers_is_believed_whatever_its_pattern() {
    let layers = with(json!({"num_hidden_layers": 4, "sliding_window_layers": [3, 0]}))
        .unwrap()
        .layers;
    assert_eq!(layers, [SLIDING, GLOBAL, GLOBAL, SLIDING]);
    let layers = with(json!({"num_hidden_layers": 2, "sliding_window_layers": [0, 1]}))
        .unwrap()
        .layers;
    assert_eq!(layers, [SLIDING; 2]);
    let none = with(json!({"num_hidden_layers": 2, "sliding_window_layers": [], "sliding_window": null}));
    assert_eq!(none.unwrap().layers, [GLOBAL; 2]);
}

#[test]
fn sliding_layers_take_the_global_head_counts_when_they_have_none_of_their_own() {
    let equal = LayerShape {
        span: SLIDING.span,
        ..GLOBAL
    };
    let config = with(json!({"num_swa_attention_heads": null, "num_swa_key_value_heads": null})).unwrap();
    assert_eq!(config.layers[1], equal);
}

#[test]
fn the_older_name_of_the_context_length_counts_when_it_stands_alone() {
    let config = with(json!({"max_position_embeddings": null, "model_max_length": 4096})).unwrap();
    assert_eq!(config.max_positions, 4096);
}

#[test]
fn several_end_tokens_may_be_given() {
    assert_eq!(
        with(json!({"eos_token_id": [2, 7]})).unwrap().eos_token_ids,
        [2, 7]
    );
    assert!(without("eos_token_id").unwrap().eos_token_ids.is_empty());
}

#[test]
fn each_fault_is_refused_by_the_name_of_its_key_and_its_values() {
    let cases: &[(Value, &str)] = &[
        (
            json!({"conv_window": 0}),
            "`conv_window` is 0, it must be between 1 and 64",
        ),
        (
            json!({"conv_window": 1_000_000}),
            "`conv_window` is 1000000, it must be between 1 and 64",
        ),
        (
            json!({"hidden_size": -5120}),
            "`hidden_size` is -5120, it must be between 1 and",
        ),
        (
            json!({"hidden_size": 1_i64 << 40}),
            "`hidden_size` is 1099511627776",
        ),
        (json!({"vocab_size": 0}), "`vocab_size` is 0"),
        (json!({"intermediate_size": -1}), "`intermediate_size` is -1"),
        (json!({"num_hidden_layers": 0}), "`num_hidden_layers` is 0"),
        (
            json!({"num_hidden_layers": 2_000_000_000}),
            "`num_hidden_layers` is 2000000000",
        ),
        (json!({"sliding_window": 0}), "`sliding_window` is 0"),
        (json!({"sliding_window": null}), "`sliding_window` is missing"),
        (
            json!({"max_position_embeddings": 0}),
            "`max_position_embeddings` is 0",
        ),
        (
            json!({"num_attention_heads": 24}),
            "`num_attention_heads` = 24 does not divide `hidden_size` = 5120",
        ),
        (
            json!({"num_key_value_heads": 3}),
            "`num_key_value_heads` = 3 does not divide `num_attention_heads` = 20",
        ),
        (
            json!({"num_swa_attention_heads": 7}),
            "`num_swa_attention_heads` = 7 does not divide `hidden_size`",
        ),
        (
            json!({"num_swa_key_value_heads": 16}),
            "`num_swa_key_value_heads` = 16 does not divide",
        ),
        (
            json!({"num_swa_key_value_heads": 0}),
            "`num_swa_key_value_heads` is 0",
        ),
        (
            json!({"num_attention_heads": 5120}),
            "`num_attention_heads` = 5120 gives heads of odd width 1",
        ),
        (
            json!({"sliding_window_layers": [1, 40]}),
            "lists layer 40, the model has layers 0 to 39",
        ),
        (json!({"sliding_window_layers": [-1]}), "lists layer -1"),
        (json!({"sliding_window_layers": [1, 3, 1]}), "lists layer 1 twice"),
        (
            json!({"sliding_window_layers": [1.5]}),
            "`sliding_window_layers[0]`: invalid type: floating point",
        ),
        (
            json!({"rope_theta": 0.0}),
            "`rope_theta` is 0, it must be a finite number above 0",
        ),
        (json!({"rms_norm_eps": -1e-6}), "`rms_norm_eps` is -0.000001"),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "`rope_scaling` is {\"type\":\"linear\"}, only an unset",
        ),
        (
            json!({"quantization": {"bits": 4}}),
            "`quantization` is {\"bits\":4}",
        ),
        (
            json!({"quantization": {"bits": 8, "group_size": 64}}),
            "`quantization` is {\"bits\":8,\"group_size\":64}, only four bits as MLX",
        ),
        (
            json!({"quantization": {"bits": 4, "group_size": 64, "lm_head": {"bits": 6, "group_size": 64}}}),
            "only four bits as MLX",
        ),
        (
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}}),
            "`quantization_config` is",
        ),
        (
            json!({"quantization_config": {"quant_method": "baichuan-panels16", "format": "Q5K"}}),
            "`quantization_config` is",
        ),
        (
            json!({"hidden_act": "gelu"}),
            "`hidden_act` is \"gelu\", only \"silu\" is supported",
        ),
        (
            json!({"architectures": ["LlamaForCausalLM"]}),
            "`architectures` is [\"LlamaForCausalLM\"]",
        ),
        (
            json!({"bos_token_id": 133_120}),
            "`bos_token_id` is 133120, it must be between 0 and 133119",
        ),
        (json!({"eos_token_id": [2, -3]}), "`eos_token_id` is -3"),
        (
            json!({"hidden_size": "big"}),
            "`hidden_size`: invalid type: string \"big\"",
        ),
        (
            json!({"tie_word_embeddings": 1}),
            "`tie_word_embeddings`: invalid type: integer",
        ),
    ];
    for (changes, expected) in cases {
        let message = with(changes.clone()).expect_err(expected).to_string();
        assert!(
            message.contains(expected),
            "{changes}: {message:?} lacks {expected:?}"
        );
    }
}

#[test]
fn each_key_that_defines_the_model_must_be_there() {
    let keys = [
        "architectures",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "sliding_window",
        "sliding_window_layers",
        "conv_window",
        "rope_theta",
        "rms_norm_eps",
    ];
    for key in keys {
        assert!(
            matches!(without(key), Err(ConfigError::Missing { key: missing }) if missing == key),
            "{key}"
        );
    }
}

#[test]
fn a_key_given_twice_and_a_torn_document_are_refused() {
    let twice = published().to_string().replacen('{', "{\"hidden_size\": 1,", 1);
    let message = BaichuanConfig::from_json(&twice)
        .expect_err("a duplicate")
        .to_string();
    assert!(message.contains("duplicate field `hidden_size`"), "{message}");
    assert!(matches!(
        BaichuanConfig::from_json("{\"vocab"),
        Err(ConfigError::Malformed { .. })
    ));
}

#[test]
fn an_absent_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = BaichuanConfig::from_dir(folder.path())
        .expect_err("no file")
        .to_string();
    assert!(message.contains("config.json"), "{message}");
}
