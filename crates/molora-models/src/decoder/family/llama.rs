//! Llama (Touvron et al., arXiv:2302.13971) and the families that differ from it by a few fields.

use serde_json::{Value, json};

use super::{activation, blank, shared_width, window};
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::decoder::config::{DecoderConfig, LayerConfig, NormPlace, QkNorm};
use crate::decoder::names::Names;
use crate::decoder::rope::RopeFields;
use crate::family::{About, Sizes};
use crate::reader::Layout;

pub(super) const NAMES: Names = Names {
    prefix: "model.",
    tokens: "embed_tokens",
    positions: "",
    layers: "layers",
    attention_norm: "input_layernorm",
    attention_output_norm: "",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    fused_qkv: None,
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    output: "self_attn.o_proj",
    feed_forward_norm: "post_attention_layernorm",
    feed_forward_output_norm: "",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    router: "",
    experts: "",
    expert: ["", "", ""],
    final_norm: "norm",
    head: "lm_head",
    layout: Layout::OutIn,
    unused: &["rotary_emb.inv_freq"],
};

/// Norms behind attention and behind the feed-forward part.
const OLMO2_NAMES: Names = Names {
    attention_norm: "",
    attention_output_norm: "post_attention_layernorm",
    feed_forward_norm: "",
    feed_forward_output_norm: "post_feedforward_layernorm",
    ..NAMES
};

/// The fields that Llama and most of its kin cannot do without.
pub(super) fn small(sizes: &Sizes) -> Value {
    json!({
        "hidden_size": sizes.width, "intermediate_size": sizes.inner, "vocab_size": sizes.vocabulary,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.tokens, "hidden_act": "silu",
    })
}

/// What a family has where a file says nothing.
pub(super) struct Defaults {
    /// The width of a head; that of the hidden states by the number of heads where absent.
    pub(super) head_dim: Option<usize>,
    /// As many as query heads where absent.
    pub(super) num_kv_heads: Option<usize>,
    pub(super) epsilon: f64,
    pub(super) has_tied_head: bool,
    /// The field of the activation.
    pub(super) activation: &'static str,
}

impl Default for Defaults {
    /// Llama's.
    fn default() -> Self {
        Self {
            head_dim: None,
            num_kv_heads: None,
            epsilon: 1e-6,
            has_tied_head: false,
            activation: "hidden_act",
        }
    }
}

/// What is said of Llama 1 to 3, SmolLM, TinyLlama.
pub(super) const LLAMA: About = About {
    model_type: "llama",
    models: "Llama 1 to 3, SmolLM, TinyLlama",
    special: "grouped queries, biases, scaled rotary positions (linear, dynamic, yarn, longrope, llama3)",
    gguf: Some("llama"),
    transformers: true,
    small,
};

/// Llama 1 to 3, SmolLM, TinyLlama.
pub(super) fn llama(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    base(file, Defaults::default())?
        .with_biases(file, true)?
        .with_rope(file, RopeFields::default())?
        .without_windows(file)
}

/// What is said of Mistral.
pub(super) const MISTRAL: About = About {
    model_type: "mistral",
    models: "Mistral",
    special: "no biases, a sliding window in all layers",
    gguf: Some("llama"),
    transformers: true,
    small,
};

/// Mistral: Llama without biases, and a sliding window in all layers (Jiang et al., arXiv:2310.06825).
pub(super) fn mistral(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    no_bias(file)?;
    let defaults = Defaults {
        num_kv_heads: Some(8),
        ..Defaults::default()
    };
    let window = window(file, Some(4096))?;
    base(file, defaults)?
        .with_rope(file, RopeFields::default())?
        .with_windows(file, window, |_| true)
}

/// What is said of Qwen2.
pub(super) const QWEN2: About = About {
    model_type: "qwen2",
    models: "Qwen2",
    special: "biases on queries, keys and values; windows from a layer on",
    gguf: Some("qwen2"),
    transformers: true,
    small,
};

/// Qwen2: biases on queries, keys and values, and windows from a layer on (arXiv:2407.10671).
pub(super) fn qwen2(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    if !file.flag("attention_bias", true)? {
        return Err(file.unsupported("attention_bias", "true or nothing: Qwen2 has these biases"));
    }
    let config = DecoderConfig {
        qkv_bias: true,
        ..base(file, Defaults::default())?
    };
    let config = config.with_rope(file, RopeFields::default())?;
    with_late_windows(config, file)
}

/// What is said of Qwen3.
pub(super) const QWEN3: About = About {
    model_type: "qwen3",
    models: "Qwen3",
    special: "norms on the heads of queries and keys, a head width of its own; windows from a layer on",
    gguf: Some("qwen3"),
    transformers: true,
    small,
};

/// Qwen3: normalised heads of queries and keys (arXiv:2505.09388).
pub(super) fn qwen3(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults {
        head_dim: Some(128),
        ..Defaults::default()
    };
    let config = DecoderConfig {
        qk_norm: Some(QkNorm::Heads),
        ..base(file, defaults)?
    };
    let config = config
        .with_biases(file, false)?
        .with_rope(file, RopeFields::default())?;
    with_late_windows(config, file)
}

/// What is said of OLMo 2.
pub(super) const OLMO2: About = About {
    model_type: "olmo2",
    models: "OLMo 2",
    special: "norms behind attention and feed-forward part instead of in front, norms over all heads of queries and keys",
    gguf: None,
    transformers: true,
    small,
};

/// OLMo 2: norms behind the parts instead of in front of them, and norms over all heads of queries and
/// keys (arXiv:2501.00656).
pub(super) fn olmo2(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults {
        epsilon: 1e-5,
        ..Defaults::default()
    };
    let config = DecoderConfig {
        norm_place: NormPlace::Output,
        qk_norm: Some(QkNorm::Whole),
        names: &OLMO2_NAMES,
        ..base(file, defaults)?
    };
    config
        .with_biases(file, false)?
        .with_rope(file, RopeFields::default())?
        .without_windows(file)
}

/// What is said of Granite.
pub(super) const GRANITE: About = About {
    model_type: "granite",
    models: "Granite",
    special: "factors on embeddings, residuals, scores of attention and of the vocabulary",
    gguf: None,
    transformers: true,
    small,
};

/// Granite: factors on embeddings, residuals, scores of attention and scores of the vocabulary.
pub(super) fn granite(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    let factor = |field| {
        let factor = file.optional_number(field);
        factor.map(|factor| factor.unwrap_or(1.0))
    };
    let config = DecoderConfig {
        embedding_scale: factor("embedding_multiplier")?,
        residual_scale: factor("residual_multiplier")?,
        attention_scale: Some(factor("attention_multiplier")?),
        logit_scale: 1.0 / factor("logits_scaling")?,
        ..base(file, Defaults::default())?
    };
    config
        .with_biases(file, true)?
        .with_rope(file, RopeFields::default())?
        .without_windows(file)
}

/// What is said of SmolLM3.
pub(super) const SMOLLM3: About = About {
    model_type: "smollm3",
    models: "SmolLM3",
    special: "layers without rotary positions",
    gguf: None,
    transformers: true,
    small,
};

/// SmolLM3: layers without rotary positions, every fourth one unless the file names them.
pub(super) fn smollm3(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults {
        num_kv_heads: Some(4),
        has_tied_head: true,
        ..Defaults::default()
    };
    let fields = RopeFields {
        theta: ("rope_theta", 2_000_000.0),
        ..RopeFields::default()
    };
    let mut config = base(file, defaults)?
        .with_biases(file, true)?
        .with_rope(file, fields)?;
    let has_rope = has_rope(file, config.num_layers)?;
    for (layer, has_rope) in config.layers.iter_mut().zip(&has_rope) {
        layer.rope = layer.rope.filter(|_| *has_rope);
    }
    let in_use = file.flag("use_sliding_window", false)?;
    let window = window(file, None)?.filter(|_| in_use);
    config.with_windows(file, window, |index| !has_rope[index])
}

/// Which layers have rotary positions: those with a 1 in `no_rope_layers`.
fn has_rope(file: &ConfigFile, num_layers: usize) -> Result<Vec<bool>, ModelError> {
    const LAYERS: &str = "no_rope_layers";
    let interval = file.optional_size("no_rope_layer_interval")?.unwrap_or(4);
    let Some(layers) = file.get(LAYERS) else {
        return Ok((1..=num_layers)
            .map(|layer| layer % interval != 0)
            .collect());
    };
    let flag = |value: &serde_json::Value| match value.as_u64() {
        Some(0) => Some(false),
        Some(1) => Some(true),
        _ => None,
    };
    let layers = layers.as_array().filter(|list| list.len() >= num_layers);
    let layers = layers.and_then(|list| list.iter().take(num_layers).map(flag).collect());
    let expected = || format!("0 or 1 for each of {num_layers} layers");
    layers.ok_or_else(|| file.unsupported(LAYERS, &expected()))
}

/// What all of them share, but for positions.
pub(super) fn base(file: &ConfigFile, defaults: Defaults) -> Result<DecoderConfig, ModelError> {
    let (width, num_heads) = (file.size("hidden_size")?, file.size("num_attention_heads")?);
    let num_kv_heads = file.optional_size("num_key_value_heads")?;
    let num_kv_heads = num_kv_heads.or(defaults.num_kv_heads).unwrap_or(num_heads);
    if num_heads % num_kv_heads != 0 {
        let text = format!("{num_kv_heads} does not divide num_attention_heads {num_heads}");
        return Err(file.problem("num_key_value_heads", &text));
    }
    let head_dim = match file.optional_size("head_dim")?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None => shared_width(file, "hidden_size", "num_attention_heads")?,
    };
    let num_layers = file.size("num_hidden_layers")?;
    let epsilon = file.optional_number("rms_norm_eps")?;
    Ok(DecoderConfig {
        vocab_size: file.size("vocab_size")?,
        width,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        inner_width: file.size("intermediate_size")?,
        max_tokens: file.size("max_position_embeddings")?,
        epsilon: epsilon.unwrap_or(defaults.epsilon),
        activation: activation(file, defaults.activation)?,
        layers: vec![LayerConfig::default(); num_layers],
        has_tied_head: file.flag("tie_word_embeddings", defaults.has_tied_head)?,
        ..blank(&NAMES)
    })
}

impl DecoderConfig {
    /// With the biases of attention and, of some families, of the feed-forward part.
    pub(super) fn with_biases(
        self,
        file: &ConfigFile,
        may_have_mlp_bias: bool,
    ) -> Result<Self, ModelError> {
        let attention_bias = file.flag("attention_bias", false)?;
        Ok(Self {
            qkv_bias: attention_bias,
            output_bias: attention_bias,
            feed_forward_bias: may_have_mlp_bias && file.flag("mlp_bias", false)?,
            ..self
        })
    }
}

/// Windows from the layer `max_window_layers` on, where they are switched on.
fn with_late_windows(
    config: DecoderConfig,
    file: &ConfigFile,
) -> Result<DecoderConfig, ModelError> {
    const FIRST: &str = "max_window_layers";
    let in_use = file.flag("use_sliding_window", false)?;
    let window = window(file, Some(4096))?.filter(|_| in_use);
    // 0 is a number of layers too.
    let first = match file.get(FIRST) {
        None => 28,
        Some(first) => first
            .as_u64()
            .ok_or_else(|| file.unsupported(FIRST, "a whole number"))?,
    };
    config.with_windows(file, window, |index| index as u64 >= first)
}

fn no_bias(file: &ConfigFile) -> Result<(), ModelError> {
    for field in ["attention_bias", "mlp_bias"] {
        if file.flag(field, false)? {
            return Err(file.unsupported(field, "false or nothing: this family has no biases"));
        }
    }
    Ok(())
}
