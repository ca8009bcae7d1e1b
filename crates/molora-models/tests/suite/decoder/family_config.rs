//! What configurations of the families say beside sizes: windows, rotary positions, experts.

use molora_models::DecoderConfig;
use serde_json::{Value, json};

use super::config::{accepted, bundled, refused};
use super::world::{llama, qwen2, qwen3};

fn windows(config: &DecoderConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.window).collect()
}

#[test]
fn windows_are_those_of_their_layers() {
    let mistral = json!({"model_type": "mistral", "sliding_window": 8});
    assert_eq!(windows(&accepted(llama(), mistral)), [Some(8), Some(8)]);
    // Mistral's own is longer than this model's texts.
    assert_eq!(
        windows(&accepted(llama(), json!({"model_type": "mistral"}))),
        [None, None]
    );
    for qwen in [qwen2(), qwen3()] {
        let late = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1});
        assert_eq!(windows(&accepted(qwen.clone(), late)), [None, Some(8)]);
        let off = json!({"use_sliding_window": false, "sliding_window": 8, "max_window_layers": 0});
        assert_eq!(windows(&accepted(qwen.clone(), off)), [None, None]);
        let named = json!({
            "use_sliding_window": true, "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        });
        assert_eq!(windows(&accepted(qwen.clone(), named)), [Some(8), None]);
        let short = json!({
            "use_sliding_window": true, "sliding_window": 8, "layer_types": ["full_attention"],
        });
        refused(
            qwen,
            short,
            "layer_types is [\"full_attention\"], expected full_attention or",
        );
    }
    let config = accepted(bundled("gemma2"), json!({"layer_types": null}));
    assert_eq!(windows(&config), [Some(6), None]);
    let config = accepted(
        bundled("gemma3"),
        json!({"layer_types": null, "sliding_window_pattern": 2}),
    );
    assert_eq!(windows(&config), [Some(6), None, Some(6), None]);
    let ropes: Vec<_> = config.layers.iter().map(|layer| layer.rope).collect();
    assert_eq!(ropes, [Some(1), Some(0), Some(1), Some(0)]);
    assert_eq!([config.ropes[0].theta, config.ropes[1].theta], [1e6, 1e4]);
}

#[test]
fn layers_without_rotary_positions_are_counted() {
    let ropes = |changes: Value| {
        let config = accepted(bundled("smollm3"), changes);
        let has = config.layers.iter().map(|layer| layer.rope.is_some());
        has.collect::<Vec<bool>>()
    };
    assert_eq!(ropes(json!({})), [true, true, true, false]);
    let own = json!({"no_rope_layers": null, "no_rope_layer_interval": 2});
    assert_eq!(ropes(own), [true, false, true, false]);
    assert_eq!(
        ropes(json!({"no_rope_layers": [0, 1, 0, 0]})),
        [false, true, false, false]
    );
    for list in [json!([1, 0]), json!([1, 0, 2, 1]), json!("all")] {
        let changes = json!({"no_rope_layers": list});
        refused(bundled("smollm3"), changes, "no_rope_layers is ");
    }
}

#[test]
fn experts_are_counted_and_named() {
    let config = accepted(
        bundled("qwen3_moe"),
        json!({"mlp_only_layers": [], "decoder_sparse_step": 2}),
    );
    let has: Vec<bool> = config
        .layers
        .iter()
        .map(|layer| layer.has_experts)
        .collect();
    assert_eq!(has, [false, true]);
    let experts = config.experts.expect("experts");
    assert_eq!(
        (experts.count, experts.top_k, experts.inner_width),
        (4, 2, 24)
    );
    refused(
        bundled("mixtral"),
        json!({"num_experts_per_tok": 5}),
        "num_experts_per_tok 5 exceeds the number of experts 4",
    );
    refused(
        bundled("qwen3_moe"),
        json!({"num_experts": 8}),
        "num_experts is 8, but num_local_experts beside it is 4",
    );
    refused(
        bundled("mixtral"),
        json!({"num_local_experts": null}),
        "num_local_experts is missing",
    );
    refused(
        bundled("qwen3_moe"),
        json!({"mlp_only_layers": 1}),
        "mlp_only_layers is 1, expected a list",
    );
    // Experts of a family that has none.
    refused(
        llama(),
        json!({"num_local_experts": 4}),
        "num_local_experts is 4",
    );
}

#[test]
fn what_a_family_does_not_have_is_named() {
    for (name, changes, expected) in [
        (
            "gemma",
            json!({"use_bidirectional_attention": true}),
            "use_bidirectional_attention is true",
        ),
        (
            "gemma",
            json!({"hidden_activation": "relu"}),
            "hidden_activation is \"relu\"",
        ),
        (
            "gemma2",
            json!({"hidden_activation": "tanh"}),
            "hidden_activation is \"tanh\"",
        ),
        (
            "gemma2",
            json!({"attn_logit_softcapping": -1.0}),
            "attn_logit_softcapping is -1.0",
        ),
        (
            "gemma3",
            json!({"attn_logit_softcapping": 30.0}),
            "attn_logit_softcapping is 30.0, expected null",
        ),
        (
            "gemma3",
            json!({"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}),
            "rope_scaling is given beside",
        ),
        (
            "opt",
            json!({"word_embed_proj_dim": 16}),
            "word_embed_proj_dim is 16, expected hidden_size 32",
        ),
        (
            "opt",
            json!({"layer_norm_elementwise_affine": false}),
            "layer_norm_elementwise_affine is false",
        ),
        (
            "opt",
            json!({"num_attention_heads": 5}),
            "hidden_size 32 is no multiple of num_attention_heads 5",
        ),
        (
            "gpt_neox",
            json!({"rope_parameters": {"partial_rotary_factor": 0.01}}),
            "rope_parameters.partial_rotary_factor 0.01 turns 0",
        ),
        (
            "granite",
            json!({"logits_scaling": 0}),
            "logits_scaling is 0, expected a number above 0",
        ),
        (
            "olmo2",
            json!({"sliding_window": 8}),
            "sliding_window is 8, expected null",
        ),
        ("olmo2", json!({"mlp_bias": true}), "mlp_bias is true"),
        (
            "phi3",
            json!({"attention_bias": true}),
            "attention_bias is true",
        ),
        (
            "mixtral",
            json!({"attention_bias": true}),
            "attention_bias is true",
        ),
        (
            "mixtral",
            json!({"num_key_value_heads": 3}),
            "num_key_value_heads 3 does not divide",
        ),
    ] {
        refused(bundled(name), changes, expected);
    }
    // What is null is not asked for.
    let config = accepted(bundled("gemma2"), json!({"attn_logit_softcapping": null}));
    assert_eq!(config.attention_cap, None);
    let mut config = bundled("gemma2");
    config
        .as_object_mut()
        .expect("an object")
        .remove("attn_logit_softcapping");
    assert_eq!(accepted(config, json!({})).attention_cap, Some(50.0));
}
