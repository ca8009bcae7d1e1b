//! Configurations that are not supported are refused by the name of their field.

use molora_models::{EncoderConfig, EncoderDecoderConfig, Positions, TokenPositions};
use serde_json::{Value, json};

use super::world::folder;

/// The configuration of a bundled case, changed.
fn changed(case: &str, changes: &Value) -> (tempfile::TempDir, std::path::PathBuf) {
    let text = std::fs::read_to_string(folder(case).join("config.json")).expect("bundled");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    for (field, value) in changes.as_object().expect("an object") {
        config[field] = value.clone();
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).expect("writable");
    (folder, path)
}

fn read(case: &str, changes: Value) -> EncoderConfig {
    let (_folder, path) = changed(case, &changes);
    EncoderConfig::from_file(&path).unwrap_or_else(|error| panic!("{case}: {error}"))
}

fn refused(case: &str, changes: Value, expected: &str) {
    let (_folder, path) = changed(case, &changes);
    let error = match case {
        "mt5" | "umt5" | "bart" => EncoderDecoderConfig::from_file(&path).map(|_| ()),
        _ => EncoderConfig::from_file(&path).map(|_| ()),
    };
    let error = error.expect_err(expected).to_string();
    assert!(!error.contains('\n'), "one line: {error}");
    let end = format!("config.json: {expected}");
    assert!(error.contains(&end), "got `{error}`, expected `{expected}`");
}

#[test]
fn what_bert_and_its_kin_refuse() {
    for (case, changes, expected) in [
        (
            "bert",
            json!({"model_type": "albert"}),
            "model_type is \"albert\", expected bert, ",
        ),
        (
            "bert",
            json!({"num_attention_heads": 5}),
            "hidden_size 32 is no multiple of num_att",
        ),
        (
            "distilbert",
            json!({"n_heads": 5}),
            "dim 32 is no multiple of n_heads 5",
        ),
        (
            "roberta",
            json!({"is_decoder": true}),
            "is_decoder is true, expected false",
        ),
        (
            "electra",
            json!({"add_cross_attention": true}),
            "add_cross_attention is true",
        ),
        (
            "roberta",
            json!({"position_embedding_type": "relative_key"}),
            "position_embedding_type",
        ),
        (
            "roberta",
            json!({"pad_token_id": -1}),
            "pad_token_id is -1, expected a token",
        ),
        (
            "xlm_roberta",
            json!({"max_position_embeddings": 2}),
            "max_position_embeddings is 2",
        ),
        (
            "xlm_roberta",
            json!({"type_vocab_size": 0}),
            "type_vocab_size is 0",
        ),
        (
            "distilbert",
            json!({"activation": "mish"}),
            "activation is \"mish\", expected gelu, ",
        ),
        (
            "mpnet",
            json!({"relative_attention_num_buckets": 16}),
            "relative_attention_num_buckets",
        ),
        (
            "mpnet",
            json!({"type_vocab_size": 2}),
            "type_vocab_size is 2, expected 0",
        ),
    ] {
        refused(case, changes, expected);
    }
}

#[test]
fn what_modernbert_and_deberta_refuse() {
    for (case, changes, expected) in [
        (
            "modernbert",
            json!({"layer_types": ["full_attention"]}),
            "layer_types is",
        ),
        (
            "modernbert",
            json!({"layer_types": ["chunked", "full_attention"]}),
            "layer_types is",
        ),
        (
            "modernbert",
            json!({"num_attention_heads": 32}),
            "hidden_size 32 makes heads of an odd",
        ),
        (
            "modernbert",
            json!({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}),
            "rope_parameters.full_attention.rope_type is \"yarn\", expected default",
        ),
        (
            "modernbert",
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}),
            "rope_parameters.rope_theta is not full_attention or sliding_attention",
        ),
        (
            "modernbert",
            json!({"rope_scaling": {"type": "linear"}}),
            "rope_scaling is",
        ),
        (
            "deberta_v2",
            json!({"pos_att_type": ["p2p"]}),
            "pos_att_type is [\"p2p\"]",
        ),
        (
            "deberta_v2",
            json!({"norm_rel_ebd": "batch_norm"}),
            "norm_rel_ebd is \"batch_norm\"",
        ),
        (
            "deberta_v2",
            json!({"position_buckets": 100}),
            "position_buckets is 100",
        ),
        (
            "deberta_v2",
            json!({"attention_head_size": 16}),
            "attention_head_size is 16",
        ),
        (
            "deberta_v2_conv",
            json!({"conv_kernel_size": 4}),
            "conv_kernel_size is 4",
        ),
        (
            "deberta_v2_conv",
            json!({"conv_groups": 5}),
            "conv_groups is 5",
        ),
        (
            "deberta_v2_conv",
            json!({"conv_act": "mish"}),
            "conv_act is \"mish\"",
        ),
        ("deberta_v2", json!({"num_experts": 4}), "num_experts is 4"),
    ] {
        refused(case, changes, expected);
    }
}

#[test]
fn what_encoder_decoders_refuse() {
    for (case, changes, expected) in [
        (
            "mt5",
            json!({"scale_decoder_outputs": true}),
            "scale_decoder_outputs is true",
        ),
        (
            "umt5",
            json!({"feed_forward_proj": "gated-relu"}),
            "feed_forward_proj is",
        ),
        (
            "bart",
            json!({"model_type": "mbart"}),
            "model_type is \"mbart\", expected t5 or",
        ),
        (
            "bart",
            json!({"normalize_before": true}),
            "normalize_before is true, expected false",
        ),
        (
            "bart",
            json!({"normalize_embedding": false}),
            "normalize_embedding is false",
        ),
        (
            "bart",
            json!({"static_position_embeddings": true}),
            "static_position_embeddings is",
        ),
        (
            "bart",
            json!({"decoder_attention_heads": 5}),
            "d_model 32 is no multiple of decoder_",
        ),
        (
            "bart",
            json!({"forced_bos_token_id": 99}),
            "forced_bos_token_id is 99, expected a tok",
        ),
        (
            "bart",
            json!({"decoder_start_token_id": 99}),
            "decoder_start_token_id is 99",
        ),
        (
            "bart",
            json!({"activation_function": "elu"}),
            "activation_function is \"elu\"",
        ),
    ] {
        refused(case, changes, expected);
    }
}

#[test]
fn positions_leave_room_for_what_they_count_from() {
    let roberta = read("roberta", json!({"max_position_embeddings": 514}));
    assert_eq!(roberta.max_tokens, 512);
    let positions = Positions {
        rows: 514,
        padding: Some(1),
    };
    assert_eq!(roberta.positions, Some(positions));
    // MPNet's is fixed.
    let mpnet = read("mpnet", json!({"pad_token_id": 7}));
    assert_eq!(
        mpnet.positions.and_then(|positions| positions.padding),
        Some(1)
    );
    let bert = read("bert", json!({"max_position_embeddings": 514}));
    assert_eq!(bert.max_tokens, 514);
}

#[test]
fn fields_of_older_files_mean_the_same() {
    let old = json!({"layer_types": null, "rope_parameters": null, "global_rope_theta": 80_000.0,
        "local_rope_theta": 5000.0, "global_attn_every_n_layers": 3});
    let config = read("modernbert", old);
    let local = config.local.expect("local layers");
    assert_eq!(local.layers, [false, true, true, false]);
    assert_eq!((local.reach, local.rope.theta), (3, 5000.0));
    assert_eq!(config.rope.map(|rope| rope.theta), Some(80_000.0));
    let defaults = json!({"rope_parameters": {"sliding_attention": null}});
    let config = read("modernbert", defaults);
    assert_eq!(config.rope.map(|rope| rope.theta), Some(160_000.0));
    let text = read("deberta_v2", json!({"pos_att_type": "c2p | P2C"}));
    assert_eq!(
        text.disentangled,
        read("deberta_v2", json!({})).disentangled
    );
}

#[test]
fn forced_tokens_are_those_of_the_generation_configuration_where_there_is_one() {
    let (folder, path) = changed("bart", &json!({"forced_bos_token_id": 3}));
    let read = || EncoderDecoderConfig::from_file(&path).expect("supported");
    let config = read();
    assert_eq!((config.forced.first, config.forced.last), (Some(3), None));
    let learned = TokenPositions::Learned {
        max_tokens: 64,
        offset: 2,
    };
    assert_eq!(config.positions, learned);
    let generation = json!({"forced_eos_token_id": 2}).to_string();
    std::fs::write(folder.path().join("generation_config.json"), generation).expect("writable");
    assert_eq!((read().forced.first, read().forced.last), (None, Some(2)));
}
