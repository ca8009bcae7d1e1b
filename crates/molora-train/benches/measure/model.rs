//! Folders with random models in the shape of real ones.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::{Seed, uniform};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

/// Folder of the encoder in MiniLM's shape.
pub(crate) const MINILM: &str = "minilm";
/// Folder of the decoder in the shape of SmolLM2-135M.
pub(crate) const SMOLLM2: &str = "smollm2";

/// Sizes of all-MiniLM-L6-v2.
#[derive(Debug)]
pub(crate) struct MiniLm;

impl MiniLm {
    pub(crate) const WIDTH: usize = 384;
    pub(crate) const INNER: usize = 1536;
    pub(crate) const LAYERS: usize = 6;
    const VOCABULARY: usize = 30_522;

    fn config() -> Value {
        json!({
            "model_type": "bert", "vocab_size": Self::VOCABULARY, "hidden_size": Self::WIDTH,
            "num_hidden_layers": Self::LAYERS, "num_attention_heads": 12,
            "intermediate_size": Self::INNER, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            "max_position_embeddings": 512, "type_vocab_size": 2,
        })
    }

    fn shapes() -> Shapes {
        let (width, inner) = (Self::WIDTH, Self::INNER);
        let mut shapes = Shapes::new();
        for (table, rows) in [
            ("word", Self::VOCABULARY),
            ("position", 512),
            ("token_type", 2),
        ] {
            let name = format!("embeddings.{table}_embeddings.weight");
            shapes.push((name, vec![rows, width]));
        }
        let mut norms = vec!["embeddings.LayerNorm".to_owned()];
        for layer in 0..Self::LAYERS {
            let at = |part: &str| format!("encoder.layer.{layer}.{part}");
            for (part, input, output) in [
                ("attention.self.query", width, width),
                ("attention.self.key", width, width),
                ("attention.self.value", width, width),
                ("attention.output.dense", width, width),
                ("intermediate.dense", width, inner),
                ("output.dense", inner, width),
            ] {
                shapes.push((format!("{}.weight", at(part)), vec![output, input]));
                shapes.push((format!("{}.bias", at(part)), vec![output]));
            }
            norms.extend([at("attention.output.LayerNorm"), at("output.LayerNorm")]);
        }
        for norm in norms {
            shapes.push((format!("{norm}.weight"), vec![width]));
            shapes.push((format!("{norm}.bias"), vec![width]));
        }
        shapes
    }
}

type Shapes = Vec<(String, Vec<usize>)>;

fn smollm2_config() -> Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49_152,
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "rope_theta": 100_000.0,
        "tie_word_embeddings": true,
    })
}

fn smollm2_shapes() -> Shapes {
    let (width, keys, inner) = (576, 192, 1536);
    let mut shapes = vec![
        ("model.embed_tokens.weight".into(), vec![49_152, width]),
        ("model.norm.weight".into(), vec![width]),
    ];
    for layer in 0..30 {
        for (part, shape) in [
            ("input_layernorm", vec![width]),
            ("post_attention_layernorm", vec![width]),
            ("self_attn.q_proj", vec![width, width]),
            ("self_attn.k_proj", vec![keys, width]),
            ("self_attn.v_proj", vec![keys, width]),
            ("self_attn.o_proj", vec![width, width]),
            ("mlp.gate_proj", vec![inner, width]),
            ("mlp.up_proj", vec![inner, width]),
            ("mlp.down_proj", vec![width, inner]),
        ] {
            shapes.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    shapes
}

/// Writes both models, unless they are there.
pub(crate) fn write_all(folder: &Path) -> Result<()> {
    write(&folder.join(MINILM), &MiniLm::config(), MiniLm::shapes())?;
    write(&folder.join(SMOLLM2), &smollm2_config(), smollm2_shapes())
}

/// Writes a model with weights of bf16; the configuration comes last and so marks a whole one.
fn write(folder: &Path, config: &Value, shapes: Shapes) -> Result<()> {
    let config_file = folder.join("config.json");
    if config_file.exists() {
        return Ok(());
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let bytes = bytes(&name, &shape);
        (name, shape, bytes)
    });
    let tensors: Vec<_> = tensors.collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::BF16, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    // What transformers wants to know of a file.
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    serialize_to_file(views, metadata, &folder.join("model.safetensors"))?;
    fs::write(&config_file, config.to_string()).with_context(|| config_file.display().to_string())
}

/// Values of a tensor in bf16: ones for norms, zeros for biases, else U(-0.05, 0.05).
fn bytes(name: &str, shape: &[usize]) -> Vec<u8> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = if name.ends_with(".bias") {
        vec![0.0; count]
    } else if name.to_lowercase().contains("norm") {
        vec![1.0; count]
    } else {
        let seed = Seed::new(0).child(name);
        let draw: Tensor<1> = uniform([count], 0.05, seed, &Device::flex());
        draw.into_data().try_into_vec().expect("f32 was drawn")
    };
    // bf16 is the upper half of f32.
    let halves = values.iter().map(|value| (value.to_bits() >> 16) as u16);
    halves.flat_map(u16::to_le_bytes).collect()
}
