//! Configurations that are not supported are refused by the name of their field.

use molora_models::{DecoderConfig, T5Config};
use serde_json::{Value, json};

use super::world::{gpt2, llama, qwen2, qwen3};

pub(super) fn read(config: &Value) -> Result<DecoderConfig, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).expect("writable");
    DecoderConfig::from_file(&path).map_err(|error| error.to_string())
}

pub(super) fn with(mut config: Value, changes: Value) -> Value {
    for (field, value) in changes.as_object().expect("an object") {
        config[field] = value.clone();
    }
    config
}

pub(super) fn refused(base: Value, changes: Value, expected: &str) {
    let error = read(&with(base, changes)).expect_err(expected);
    assert!(!error.contains('\n'), "one line: {error}");
    let end = format!("config.json: {expected}");
    assert!(error.contains(&end), "got `{error}`, expected `{expected}`");
}

pub(super) fn accepted(base: Value, changes: Value) -> DecoderConfig {
    read(&with(base, changes)).expect("supported")
}

/// The configuration of a golden case.
pub(super) fn bundled(name: &str) -> Value {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let path = format!("{golden}/{name}/config.json");
    let text = std::fs::read_to_string(&path).expect("a case");
    let mut config: Value = serde_json::from_str(&text).expect("a configuration");
    if name == "phi3" {
        config
            .as_object_mut()
            .expect("an object")
            .remove("rope_parameters");
    }
    config
}

#[test]
fn what_is_not_supported_is_named() {
    refused(
        json!({"model_type": "mamba"}),
        json!({}),
        "model_type is \"mamba\", expected llama, mistral, qwen2",
    );
    refused(json!({}), json!({}), "model_type is null");
    refused(
        llama(),
        json!({"sliding_window": 8}),
        "sliding_window is 8, expected null",
    );
    for qwen in [qwen2(), qwen3()] {
        let types = json!({"layer_types": ["full_attention", "sliding_attention"]});
        refused(
            qwen,
            types,
            "layer_types is [\"full_attention\",\"sliding_attention\"]",
        );
    }
    refused(
        llama(),
        json!({"hidden_act": "quick_gelu"}),
        "hidden_act is \"quick_gelu\", expected silu",
    );
    refused(
        gpt2(),
        json!({"activation_function": "tanh"}),
        "activation_function is \"tanh\"",
    );
    refused(
        gpt2(),
        json!({"scale_attn_weights": false}),
        "scale_attn_weights is false",
    );
    let by_layer = json!({"scale_attn_by_inverse_layer_idx": true});
    refused(gpt2(), by_layer, "scale_attn_by_inverse_layer_idx is true");
    refused(
        gpt2(),
        json!({"add_cross_attention": true}),
        "add_cross_attention is true",
    );
    refused(
        qwen2(),
        json!({"attention_bias": false}),
        "attention_bias is false",
    );
    let biased = json!({"model_type": "mistral", "attention_bias": true});
    refused(llama(), biased, "attention_bias is true");
    for base in [qwen2(), qwen3()] {
        refused(base, json!({"mlp_bias": true}), "mlp_bias is true");
    }
}

#[test]
fn fields_of_other_architectures_are_named() {
    for changes in [
        json!({"num_local_experts": 8}),
        json!({"num_experts": 60}),
        json!({"parallel_attention": true}),
        json!({"quantization_config": {"bits": 4}}),
        json!({"residual_multiplier": 0.22}),
        json!({"rope_interleaved": true}),
        json!({"no_rope_layers": [1, 0]}),
        json!({"attn_logit_softcapping": 50.0}),
    ] {
        let field = changes.as_object().expect("an object").keys().next();
        let field = field.expect("one field").clone();
        refused(llama(), changes, &format!("{field} is "));
    }
    let neutral = json!({
        "num_experts": null, "num_local_experts": 0, "parallel_attention": false,
        "residual_multiplier": 1.0, "no_rope_layers": [], "unheard_of": 3,
    });
    accepted(llama(), neutral);
}

#[test]
fn rope_of_another_kind_is_named() {
    let scaling = |value: Value| json!({"rope_scaling": value});
    refused(
        llama(),
        scaling(json!({"type": "proportional", "factor": 2.0})),
        "rope_scaling.type is \"proportional\", expected default, linear, llama3, yarn, dynamic or longrope",
    );
    refused(
        llama(),
        json!({"rope_parameters": {"rope_type": "axial", "factor": 2.0}}),
        "rope_parameters.rope_type is \"axial\"",
    );
    refused(
        llama(),
        scaling(json!({"type": "dynamic"})),
        "rope_scaling.factor is missing",
    );
    let factors = |short: usize| json!({"type": "longrope", "short_factor": vec![1.0; short], "long_factor": [2.0, 3.0]});
    accepted(llama(), scaling(factors(2)));
    refused(
        llama(),
        scaling(factors(3)),
        "rope_scaling.short_factor has 3 numbers, expected 2",
    );
    refused(
        llama(),
        scaling(
            json!({"type": "longrope", "short_factor": [1.0, -2.0], "long_factor": [2.0, 3.0]}),
        ),
        "rope_scaling.short_factor is [1.0,-2.0], expected a list of numbers above 0",
    );
    refused(
        llama(),
        scaling(json!({"type": "linear"})),
        "rope_scaling.factor is missing",
    );
    // Keys of other types have no effect; both names of the type may stand beside each other.
    let extra = json!({"type": "linear", "factor": 2.0, "beta_fast": 32.0});
    accepted(llama(), scaling(extra));
    let both = json!({"type": "linear", "rope_type": "linear", "factor": 2.0});
    accepted(llama(), scaling(both));
    let other = json!({"type": "linear", "rope_type": "default", "factor": 2.0});
    refused(
        llama(),
        scaling(other),
        "rope_scaling.rope_type is \"default\", but type beside it is \"linear\"",
    );
    let partial = json!({"rope_type": "default", "partial_rotary_factor": 0.5});
    refused(
        llama(),
        json!({"rope_parameters": partial}),
        "rope_parameters.partial_rotary_factor is 0.5",
    );
    let flat = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    });
    refused(
        llama(),
        scaling(flat),
        "rope_scaling.high_freq_factor is 4.0, expected more",
    );
    refused(
        llama(),
        json!({"partial_rotary_factor": 0.5}),
        "partial_rotary_factor is 0.5",
    );
}

#[test]
fn wrong_types_and_sizes_are_named() {
    refused(
        llama(),
        json!({"hidden_size": null}),
        "hidden_size is missing",
    );
    refused(
        llama(),
        json!({"hidden_size": "16"}),
        "hidden_size is \"16\", expected a whole number",
    );
    refused(llama(), json!({"vocab_size": 0}), "vocab_size is 0");
    refused(
        llama(),
        json!({"num_key_value_heads": 3}),
        "num_key_value_heads 3 does not divide",
    );
    refused(
        llama(),
        json!({"num_attention_heads": 6}),
        "hidden_size 16 is no multiple",
    );
    refused(llama(), json!({"head_dim": 5}), "head_dim 5 is odd");
    refused(
        llama(),
        json!({"rms_norm_eps": -1.0}),
        "rms_norm_eps is -1.0",
    );
    refused(
        llama(),
        json!({"tie_word_embeddings": "yes"}),
        "tie_word_embeddings is \"yes\"",
    );
    refused(
        llama(),
        json!({"rope_scaling": 3}),
        "rope_scaling is 3, expected an object",
    );
    refused(
        gpt2(),
        json!({"n_head": 3}),
        "n_embd 16 is no multiple of n_head 3",
    );
}

#[test]
fn older_and_newer_names_mean_the_same() {
    let old = json!({
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    });
    let new = json!({
        "rope_parameters": {
            "rope_theta": 5e5, "rope_type": "linear", "type": "linear", "factor": 4.0,
        },
    });
    assert_eq!(accepted(llama(), old), accepted(llama(), new));
    let window = json!({"model_type": "mistral", "sliding_window": 24});
    let none = json!({"model_type": "mistral", "sliding_window": null});
    assert_eq!(accepted(llama(), window), accepted(llama(), none));
    let factors =
        |kind: &str| json!({"type": kind, "short_factor": [1.0, 2.0], "long_factor": [2.0, 3.0]});
    let phi = |kind: &str| {
        let scaling = json!({"rope_scaling": factors(kind), "original_max_position_embeddings": 8});
        accepted(
            bundled("phi3"),
            with(
                scaling,
                json!({"hidden_size": 16, "num_attention_heads": 4}),
            ),
        )
    };
    assert_eq!(phi("su"), phi("longrope"));
    let names = [
        json!({"num_local_experts": 4}),
        json!({"num_local_experts": null, "num_experts": 4}),
    ];
    let [local, plain] = names.map(|names| accepted(bundled("qwen3_moe"), names));
    assert_eq!(local, plain);
}

#[test]
fn t5_is_read_and_what_it_cannot_be_is_named() {
    let read = |changes: Value| {
        let base = json!({
            "model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 20, "num_layers": 2,
            "num_heads": 4, "vocab_size": 9, "is_encoder_decoder": true,
        });
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        std::fs::write(&path, with(base, changes).to_string()).expect("writable");
        T5Config::from_file(&path).map_err(|error| error.to_string())
    };
    let plain = read(json!({})).expect("supported");
    assert!(plain.may_tie_head && !plain.is_gated);
    assert_eq!((plain.head_scale, plain.num_decoder_layers), (0.25, 2));
    // Version 1.1 as older and newer files say it.
    let old = json!({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": false});
    let old = read(old).expect("supported");
    assert!(!old.may_tie_head && old.is_gated);
    let new = json!({"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": false});
    let new = read(new).expect("supported");
    assert_eq!((old.head_scale, new.head_scale), (1.0, 1.0));
    for (changes, expected) in [
        (
            json!({"model_type": "pegasus"}),
            "model_type is \"pegasus\", expected t5 or mt5 or umt5 or bart",
        ),
        (
            json!({"feed_forward_proj": "gated-relu"}),
            "feed_forward_proj is \"gated-relu\"",
        ),
        (
            json!({"is_decoder": true}),
            "is_decoder is true, expected false",
        ),
        (json!({"num_experts": 8}), "num_experts is 8"),
        (
            json!({"relative_attention_num_buckets": 6}),
            "num_buckets is 6, expected a multiple",
        ),
        (
            json!({"relative_attention_max_distance": 16}),
            "max_distance is 16, expected more",
        ),
        (
            json!({"decoder_start_token_id": 9}),
            "decoder_start_token_id is 9, expected a token",
        ),
        (json!({"d_kv": null}), "d_kv is missing"),
    ] {
        let error = read(changes).expect_err(expected);
        assert!(
            error.contains(expected),
            "got `{error}`, expected `{expected}`"
        );
    }
}
