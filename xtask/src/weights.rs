//! `cargo xtask weights`: a decoder of random weights in the shape of a large one, as sharded files, to measure with what no
//! machine has to download.
//!
//! Nothing but a part of a shard is held in memory. A matrix has numbers of U(-0.035, 0.035) in bf16, whose deviation is that
//! of a fresh initialisation (0.02); norms are ones.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::torture::Draw;

/// What `cargo xtask weights` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Weights {
    /// The shape
    #[arg(value_enum)]
    shape: Shape,
    /// Folder to write, which must not be there
    folder: PathBuf,
    /// Folder of a model whose tokenizer is copied, with no more tokens than the shape has
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Bytes of a file at most, but for a larger tensor
    #[arg(long, value_name = "BYTES", default_value_t = 4_000_000_000)]
    shard: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shape {
    /// Llama 3.1 8B: 8.0 billion parameters, 16 GB
    #[value(name = "llama-8b")]
    Llama8b,
    /// Llama 3.2 1B: 1.2 billion parameters, 2.5 GB
    #[value(name = "llama-1b")]
    Llama1b,
}

/// Sizes of a Llama.
struct Sizes {
    width: usize,
    layers: usize,
    heads: usize,
    inner: usize,
    is_tied: bool,
}

/// Tokens of a Llama 3.
const VOCABULARY: usize = 128_256;
/// Heads of keys and values.
const KEY_HEADS: usize = 8;
/// Files that a tokenizer may consist of.
const TOKENIZER: [&str; 3] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];
/// Bytes that are drawn before they are written.
const PART: usize = 4 << 20;
/// Four ones of bf16.
const ONES: u64 = 0x3f80_3f80_3f80_3f80;

impl Shape {
    fn sizes(self) -> Sizes {
        match self {
            Self::Llama8b => Sizes {
                width: 4096,
                layers: 32,
                heads: 32,
                inner: 14_336,
                is_tied: false,
            },
            Self::Llama1b => Sizes {
                width: 2048,
                layers: 16,
                heads: 32,
                inner: 8192,
                is_tied: true,
            },
        }
    }
}

impl Sizes {
    fn config(&self) -> Value {
        json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16",
            "vocab_size": VOCABULARY, "hidden_size": self.width, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": KEY_HEADS,
            "intermediate_size": self.inner, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "rope_theta": 500_000.0,
            "tie_word_embeddings": self.is_tied,
        })
    }

    /// Names and shapes of all tensors, in the order of the layers.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (width, keys) = (self.width, KEY_HEADS * self.width / self.heads);
        let mut tensors = vec![("model.embed_tokens.weight".into(), vec![VOCABULARY, width])];
        for layer in 0..self.layers {
            for (part, shape) in [
                ("input_layernorm", vec![width]),
                ("self_attn.q_proj", vec![width, width]),
                ("self_attn.k_proj", vec![keys, width]),
                ("self_attn.v_proj", vec![keys, width]),
                ("self_attn.o_proj", vec![width, width]),
                ("post_attention_layernorm", vec![width]),
                ("mlp.gate_proj", vec![self.inner, width]),
                ("mlp.up_proj", vec![self.inner, width]),
                ("mlp.down_proj", vec![width, self.inner]),
            ] {
                tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
            }
        }
        tensors.push(("model.norm.weight".into(), vec![width]));
        if !self.is_tied {
            tensors.push(("lm_head.weight".into(), vec![VOCABULARY, width]));
        }
        tensors
    }
}

pub(crate) fn run(options: &Weights) -> Result<()> {
    let folder = &options.folder;
    ensure!(!folder.exists(), "{} exists already", folder.display());
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let sizes = options.shape.sizes();
    let shards = shards(sizes.tensors(), options.shard);
    let (mut index, mut total) = (BTreeMap::new(), 0);
    for (number, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        write_shard(&folder.join(&name), shard)?;
        println!("{name}: {} tensors", shard.len());
        for (tensor, shape) in shard {
            total += bytes(shape);
            index.insert(tensor, name.clone());
        }
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": index});
    write_text(&folder.join("model.safetensors.index.json"), &index)?;
    if let Some(tokenizer) = &options.tokenizer {
        for name in TOKENIZER {
            let from = tokenizer.join(name);
            if from.is_file() {
                fs::copy(&from, folder.join(name)).with_context(|| from.display().to_string())?;
            }
        }
    }
    // Last: it marks a whole model.
    write_text(&folder.join("config.json"), &sizes.config())?;
    println!("{}: {:.2} GB", folder.display(), total as f64 / 1e9);
    Ok(())
}

fn write_text(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, format!("{value:#}\n")).with_context(|| path.display().to_string())
}

fn bytes(shape: &[usize]) -> u64 {
    2 * shape.iter().product::<usize>() as u64
}

/// The tensors of each file.
fn shards(tensors: Vec<(String, Vec<usize>)>, most: u64) -> Vec<Vec<(String, Vec<usize>)>> {
    let (mut shards, mut size) = (vec![Vec::new()], 0);
    for (name, shape) in tensors {
        if size > 0 && size + bytes(&shape) > most {
            shards.push(Vec::new());
            size = 0;
        }
        size += bytes(&shape);
        shards.last_mut().expect("one at least").push((name, shape));
    }
    shards
}

/// Writes a file in the format of safetensors: the length of a header of JSON, the header, the numbers.
fn write_shard(path: &Path, tensors: &[(String, Vec<usize>)]) -> Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut start = 0;
    for (name, shape) in tensors {
        let end = start + bytes(shape);
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
        start = end;
    }
    let mut header = Value::Object(header).to_string();
    // Numbers begin at a multiple of eight bytes.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for (number, (name, shape)) in tensors.iter().enumerate() {
        let count = shape.iter().product();
        match name.contains("norm") {
            true => write_numbers(&mut file, count, || ONES)?,
            false => {
                let mut draw = Draw(start ^ number as u64);
                write_numbers(&mut file, count, || four(&mut draw))?;
            }
        }
    }
    file.flush().with_context(|| path.display().to_string())
}

/// Four numbers of U(-0.035, 0.035) as bf16, whose bits are the upper half of those of f32.
fn four(draw: &mut Draw) -> u64 {
    let bits = draw.next();
    (0..4).fold(0, |four, part| {
        let number = f32::from((bits >> (16 * part)) as u16) - 32767.5;
        let number = number * (0.035 / 32768.0);
        four | u64::from(number.to_bits() >> 16) << (16 * part)
    })
}

/// Writes numbers of bf16, four at a time.
fn write_numbers(file: &mut impl Write, count: usize, mut four: impl FnMut() -> u64) -> Result<()> {
    let mut left = 2 * count;
    let mut buffer = Vec::with_capacity(PART);
    while left > 0 {
        buffer.clear();
        while buffer.len() < PART.min(left) {
            buffer.extend_from_slice(&four().to_le_bytes());
        }
        buffer.truncate(left);
        file.write_all(&buffer)?;
        left -= buffer.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_8b_has_8_billion_parameters_in_files_of_the_size() {
        let tensors = Shape::Llama8b.sizes().tensors();
        let count: u64 = tensors.iter().map(|(_, shape)| bytes(shape) / 2).sum();
        assert_eq!(count, 8_030_261_248);
        let shards = shards(tensors.clone(), 4_000_000_000);
        let size = |shard: &Vec<(String, Vec<usize>)>| -> u64 {
            shard.iter().map(|(_, shape)| bytes(shape)).sum()
        };
        assert!(shards.iter().all(|shard| size(shard) <= 4_000_000_000));
        assert_eq!(shards.concat(), tensors);
    }

    #[test]
    fn a_file_has_its_tensors_where_its_header_says() {
        let folder = std::env::temp_dir().join(format!("weights-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("one.safetensors");
        let tensors = [
            ("a.norm.weight".to_owned(), vec![3]),
            ("b".to_owned(), vec![40, 50]),
        ];
        write_shard(&path, &tensors).expect("written");
        let read = fs::read(&path).expect("a file");
        fs::remove_dir_all(&folder).expect("removed");
        let length = u64::from_le_bytes(read[..8].try_into().expect("eight")) as usize;
        let header: Value = serde_json::from_slice(&read[8..8 + length]).expect("JSON");
        assert_eq!(header["b"]["data_offsets"], json!([6, 4006]));
        let numbers: Vec<f32> = read[8 + length..]
            .chunks_exact(2)
            .map(|half| f32::from_bits(u32::from(u16::from_le_bytes([half[0], half[1]])) << 16))
            .collect();
        assert_eq!((numbers.len(), &numbers[..3]), (2003, &[1.0; 3][..]));
        let mean = numbers[3..].iter().sum::<f32>() / 2000.0;
        assert!(
            mean.abs() < 2e-3 && numbers[3..].iter().all(|x| x.abs() <= 0.0351),
            "{mean}"
        );
    }
}
