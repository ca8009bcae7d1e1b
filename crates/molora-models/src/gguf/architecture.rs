//! What llama.cpp calls the families and their parts.

use std::path::Path;

use super::container::Value;
use crate::checkpoint::ConfigFile;
use crate::decoder::any_of;
use crate::{Activation, DecoderConfig, Family, ModelError, Rope, RopeScaling};

/// A family that llama.cpp has, with what a model of it needs there.
#[derive(Debug)]
pub(super) struct Architecture {
    /// Its name in llama.cpp.
    pub(super) name: &'static str,
    /// Whether llama.cpp turns neighbouring numbers of a head together, instead of numbers half a head apart:
    /// rows of queries and keys then go in another order.
    is_interleaved: bool,
    config: DecoderConfig,
}

/// Parts of a layer by their names in Hugging Face's files and in llama.cpp's.
const PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

impl Architecture {
    /// That of the model in a folder.
    ///
    /// # Errors
    /// A family, or a choice of the configuration, that is not known to compute the same there.
    pub(super) fn of(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let file = ConfigFile::open(&path)?;
        let found = file.text("model_type")?.and_then(Family::find);
        let Some(name) = found.and_then(|family| family.about.gguf) else {
            let written = Family::all().filter(|family| family.about.gguf.is_some());
            let names: Vec<&str> = written.map(|family| family.about.model_type).collect();
            let expected = format!("{}, the families that are written as GGUF", any_of(&names));
            return Err(file.unsupported("model_type", &expected));
        };
        let config = DecoderConfig::from_file(&path)?;
        if name == "qwen3" && config.qkv_bias {
            let expected = "false: llama.cpp has no biases in the attention of this family";
            return Err(file.unsupported("attention_bias", expected));
        }
        refuse_other_choices(&file, &config)?;
        let is_llama3 = |rope: &Rope| matches!(rope.scaling, RopeScaling::Llama3 { .. });
        if name != "llama" && config.rope().is_some_and(is_llama3) {
            let problem =
                "rope_type is llama3, which llama.cpp has for llama alone, not for this family";
            return Err(ModelError::file(&path, problem));
        }
        Ok(Self {
            name,
            is_interleaved: name == "llama",
            config,
        })
    }

    /// The name of a module, without `.weight` or `.bias`; none of what llama.cpp does not know.
    pub(super) fn module(&self, path: &str) -> Option<String> {
        match path {
            "model.embed_tokens" => return Some("token_embd".into()),
            "model.norm" => return Some("output_norm".into()),
            "lm_head" => return Some("output".into()),
            _ => {}
        }
        let (layer, part) = path.strip_prefix("model.layers.")?.split_once('.')?;
        let (_, ours) = PARTS.iter().find(|(theirs, _)| *theirs == part)?;
        Some(format!("blk.{layer}.{ours}"))
    }

    /// Rows of a module's matrix, or numbers of its bias, in the order of llama.cpp: of each head of queries
    /// and keys the first and the second half by turns, where the family is interleaved.
    pub(super) fn rows(&self, path: &str, values: Vec<f32>, num_rows: usize) -> Vec<f32> {
        let heads = match path.rsplit('.').next() {
            Some("q_proj") => self.config.num_heads,
            Some("k_proj") => self.config.num_kv_heads,
            _ => return values,
        };
        if !self.is_interleaved {
            return values;
        }
        let (width, half) = (values.len() / num_rows, num_rows / heads / 2);
        let row = |index: usize| &values[index * width..(index + 1) * width];
        let pairs = (0..heads).flat_map(|head| (0..half).map(move |pair| (2 * head * half) + pair));
        pairs
            .flat_map(|first| [row(first), row(first + half)])
            .flatten()
            .copied()
            .collect()
    }

    /// The divisors of the frequencies, for the scaling that has no name in llama.cpp.
    pub(super) fn frequency_factors(&self) -> Option<Vec<f32>> {
        let rope = self.config.rope()?;
        matches!(rope.scaling, RopeScaling::Llama3 { .. }).then(|| rope.divisors())
    }

    /// Sizes and numbers.
    pub(super) fn values(&self) -> Vec<(String, Value)> {
        let config = &self.config;
        let size = |name: &str, size: usize| (name.to_owned(), Value::Integer(size as u32));
        let number = |name: &str, number: f64| (name.to_owned(), Value::Number(number as f32));
        let mut values = vec![
            size("vocab_size", config.vocab_size),
            size("block_count", config.num_layers),
            size("context_length", config.max_tokens),
            size("embedding_length", config.width),
            size("feed_forward_length", config.inner_width),
            size("attention.head_count", config.num_heads),
            size("attention.head_count_kv", config.num_kv_heads),
            size("attention.key_length", config.head_dim),
            size("attention.value_length", config.head_dim),
            number("attention.layer_norm_rms_epsilon", config.epsilon),
            size("rope.dimension_count", config.head_dim),
        ];
        if let Some(rope) = config.rope() {
            values.push(number("rope.freq_base", rope.theta));
            if let RopeScaling::Linear { factor } = rope.scaling {
                let kind = Value::Text("linear".into());
                values.push(("rope.scaling.type".into(), kind));
                values.push(number("rope.scaling.factor", factor));
            }
        }
        let own = |(name, value): (String, Value)| (format!("{}.{name}", self.name), value);
        values.into_iter().map(own).collect()
    }
}

/// Refuses choices of which it has not been checked that llama.cpp computes the same.
fn refuse_other_choices(file: &ConfigFile, config: &DecoderConfig) -> Result<(), ModelError> {
    if config.layers.iter().any(|layer| layer.window.is_some()) {
        let expected = "null: windows are not written as GGUF";
        return Err(file.unsupported("sliding_window", expected));
    }
    if config.activation != Activation::Silu {
        let expected = "silu: others are not written as GGUF";
        return Err(file.unsupported("hidden_act", expected));
    }
    let scaling = config.rope().map(|rope| &rope.scaling);
    let kind = match scaling {
        Some(RopeScaling::Yarn { .. }) => "yarn",
        Some(RopeScaling::Dynamic { .. }) => "dynamic",
        Some(RopeScaling::LongRope { .. }) => "longrope",
        _ => return Ok(()),
    };
    let field = match file.has("rope_parameters") {
        true => "rope_parameters",
        false => "rope_scaling",
    };
    let text = format!("is of type {kind}, expected default, linear or llama3 for GGUF");
    Err(file.problem(field, &text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Architecture {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        Architecture::of(golden.as_ref()).expect("a Llama")
    }

    #[test]
    fn halves_of_a_head_go_by_turns() {
        let architecture = llama();
        let rows = architecture.config.num_kv_heads * 4;
        let values: Vec<f32> = (0..rows).map(|row| row as f32).collect();
        let path = "model.layers.0.self_attn.k_proj";
        let found = architecture.rows(path, values.clone(), rows);
        assert_eq!(found[..8], [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let path = "model.layers.0.self_attn.v_proj";
        assert_eq!(architecture.rows(path, values.clone(), rows), values);
    }

    #[test]
    fn names_of_modules() {
        let name = |path| llama().module(path);
        assert_eq!(
            name("model.layers.3.mlp.down_proj").as_deref(),
            Some("blk.3.ffn_down")
        );
        assert_eq!(name("lm_head").as_deref(), Some("output"));
        assert_eq!(name("model.layers.3.mlp.router"), None);
    }

    #[test]
    fn other_families_are_refused() {
        for folder in ["gpt2", "bert", "t5", "gemma2", "gpt_neox", "mixtral"] {
            let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/golden")
                .join(folder);
            let error = Architecture::of(&golden).expect_err(folder).to_string();
            assert!(error.contains("config.json: model_type is"), "{error}");
            assert!(error.contains("llama, mistral, qwen2 or qwen3"), "{error}");
        }
    }

    #[test]
    fn choices_that_were_not_checked_are_refused() {
        for (folder, expected) in [
            ("mistral_window", "sliding_window is 6, expected null"),
            ("llama_yarn", "rope_parameters is of type yarn"),
            ("llama_dynamic", "rope_parameters is of type dynamic"),
        ] {
            let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/golden")
                .join(folder);
            let error = Architecture::of(&golden).expect_err(folder).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
