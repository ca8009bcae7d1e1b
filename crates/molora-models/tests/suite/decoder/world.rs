//! Folders with small random models.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use molora_kernels::random::{Seed, normal};
use molora_models::{Decoder, DecoderInput, ForwardContext, ModelWeights};
use molora_testkit::device;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const VOCAB: usize = 23;

pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub(crate) fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 20, "vocab_size": VOCAB,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 24, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    })
}

pub(crate) fn qwen2() -> Value {
    let mut config = llama();
    config["model_type"] = "qwen2".into();
    config
}

pub(crate) fn qwen3() -> Value {
    let mut config = llama();
    config["model_type"] = "qwen3".into();
    config["head_dim"] = 6.into();
    config
}

pub(crate) fn gpt2() -> Value {
    json!({
        "model_type": "gpt2", "n_embd": 16, "vocab_size": VOCAB, "n_layer": 2, "n_head": 2,
        "n_positions": 24, "activation_function": "gelu_new",
    })
}

/// The tensors that a configuration of [`llama`]'s or [`gpt2`]'s kind needs, with random values.
pub(crate) fn tensors(config: &Value, seed: u64) -> Tensors {
    let shapes = match config["model_type"] == "gpt2" {
        true => gpt2_shapes(config),
        false => llama_shapes(config),
    };
    let fill = |(name, shape): (String, Vec<usize>)| {
        let values = drawn(&name, &shape, seed);
        (name, (shape, values))
    };
    shapes.into_iter().map(fill).collect()
}

/// Random numbers of a tensor.
fn drawn(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let count = shape.iter().product();
    let seed = Seed::new(seed).child(name);
    let values: Tensor<1> = normal([count], 0.3, seed, &Device::flex());
    values.into_data().try_into_vec().expect("f32 values")
}

fn size(config: &Value, field: &str) -> usize {
    config[field].as_u64().expect("a size") as usize
}

fn llama_shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let (width, inner) = (
        size(config, "hidden_size"),
        size(config, "intermediate_size"),
    );
    let heads = size(config, "num_attention_heads");
    let head = config["head_dim"]
        .as_u64()
        .map_or(width / heads, |head| head as usize);
    let (queries, keys) = (heads * head, size(config, "num_key_value_heads") * head);
    let mut shapes = vec![
        ("model.embed_tokens.weight".into(), vec![VOCAB, width]),
        ("model.norm.weight".into(), vec![width]),
        ("lm_head.weight".into(), vec![VOCAB, width]),
    ];
    for layer in 0..size(config, "num_hidden_layers") {
        let mut add = |part: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{part}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[width]);
        add("post_attention_layernorm.weight", &[width]);
        add("self_attn.q_proj.weight", &[queries, width]);
        add("self_attn.k_proj.weight", &[keys, width]);
        add("self_attn.v_proj.weight", &[keys, width]);
        add("self_attn.o_proj.weight", &[width, queries]);
        add("mlp.gate_proj.weight", &[inner, width]);
        add("mlp.up_proj.weight", &[inner, width]);
        add("mlp.down_proj.weight", &[width, inner]);
        if config["model_type"] == "qwen2" {
            add("self_attn.q_proj.bias", &[queries]);
            add("self_attn.k_proj.bias", &[keys]);
            add("self_attn.v_proj.bias", &[keys]);
        }
        if config["model_type"] == "qwen3" {
            add("self_attn.q_norm.weight", &[head]);
            add("self_attn.k_norm.weight", &[head]);
        }
    }
    shapes
}

fn gpt2_shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let width = size(config, "n_embd");
    let positions = size(config, "n_positions");
    let mut shapes = vec![
        ("transformer.wte.weight".into(), vec![VOCAB, width]),
        ("transformer.wpe.weight".into(), vec![positions, width]),
        ("transformer.ln_f.weight".into(), vec![width]),
        ("transformer.ln_f.bias".into(), vec![width]),
    ];
    for layer in 0..size(config, "n_layer") {
        for norm in ["ln_1", "ln_2"] {
            for part in ["weight", "bias"] {
                shapes.push((format!("transformer.h.{layer}.{norm}.{part}"), vec![width]));
            }
        }
        for (part, inputs, outputs) in [
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ] {
            let path = format!("transformer.h.{layer}.{part}");
            shapes.push((format!("{path}.weight"), vec![inputs, outputs]));
            shapes.push((format!("{path}.bias"), vec![outputs]));
        }
    }
    shapes
}

/// Writes a safetensors file of f32.
pub(crate) fn write_file(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name]);
        (name, view.expect("a valid view"))
    });
    std::fs::write(path, serialize(views, None).expect("serialisable")).expect("writable");
}

/// A folder with a configuration and weights.
pub(crate) fn folder(config: &Value, tensors: &Tensors) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("writable");
    write_file(&folder.path().join("model.safetensors"), tensors);
    folder
}

/// A random model.
pub(crate) fn model(config: &Value, seed: u64) -> Decoder {
    let folder = folder(config, &tensors(config, seed));
    Decoder::from_folder(folder.path(), &device()).expect("a whole folder")
}

/// The golden cases of families, without those of which a token depends on the length of its text.
pub(crate) const FAMILIES: [&str; 14] = [
    "mistral_window",
    "llama_yarn",
    "llama_bias",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "olmo2",
    "granite",
    "smollm3",
    "gpt_neox",
    "opt",
    "mixtral",
    "qwen3_moe",
];

/// Configuration and tensors of a golden case.
pub(crate) fn bundled(name: &str) -> (Value, Tensors) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let text = std::fs::read_to_string(folder.join("config.json")).expect("a case");
    let weights = ModelWeights::open(&folder).expect("a case");
    let tensors = weights.names().iter().map(|name| {
        let shape = weights.shape(name).expect("listed").to_vec();
        let values = weights.values(name, &shape).expect("readable");
        (name.clone(), (shape, values))
    });
    let config = serde_json::from_str(&text).expect("a configuration");
    (config, tensors.collect())
}

/// The model of a golden case with other numbers.
pub(crate) fn family(name: &str, seed: u64) -> Decoder {
    let (config, mut tensors) = bundled(name);
    for (name, (shape, values)) in &mut tensors {
        *values = drawn(name, shape, seed);
    }
    let folder = folder(&config, &tensors);
    Decoder::from_folder(folder.path(), &device()).expect("a whole folder")
}

/// The one-line message of a folder that cannot be read.
pub(crate) fn refusal(folder: &Path) -> String {
    let text = Decoder::from_folder(folder, &device())
        .expect_err("must fail")
        .to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

pub(crate) fn context(input: &DecoderInput) -> ForwardContext {
    ForwardContext::new(input.mask.clone().float())
}

pub(crate) fn logits(model: &Decoder, input: &DecoderInput) -> Tensor<3> {
    model.logits(model.forward(input, &context(input)).hidden)
}

/// Random tokens.
pub(crate) fn sequence(length: usize, seed: u64) -> Vec<usize> {
    let token = |index| Seed::new(seed).index(index).value() as usize % VOCAB;
    (0..length as u64).map(token).collect()
}
