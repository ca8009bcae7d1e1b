//! Phi-3 and Phi-4 (arXiv:2404.14219): Llama with fused matrices.

use super::llama::{Defaults, NAMES, base, small};
use super::window;
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::decoder::config::{DecoderConfig, QkvForm};
use crate::decoder::names::Names;
use crate::decoder::rope::RopeFields;
use crate::family::About;

const FUSED: Names = Names {
    qkv: ["self_attn.qkv_proj", "", ""],
    gate: "",
    up: "mlp.gate_up_proj",
    ..NAMES
};

/// What is said of Phi-3, Phi-4.
pub(super) const PHI3: About = About {
    model_type: "phi3",
    models: "Phi-3, Phi-4",
    special: "one matrix for queries, keys and values, one for gate and up; a part of each head turns; LongRoPE",
    gguf: None,
    transformers: true,
    small,
};

/// Phi-3 and Phi-4 mini and medium, with LongRoPE in those of long texts.
pub(super) fn phi3(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults {
        epsilon: 1e-5,
        ..Defaults::default()
    };
    let original = file.optional_size("original_max_position_embeddings")?;
    let fields = RopeFields {
        share: Some(("partial_rotary_factor", 1.0)),
        original_max_tokens: Some(original.unwrap_or(4096)),
        // What the first files call LongRoPE.
        long_rope_names: &["su", "yarn"],
        ..RopeFields::default()
    };
    let window = window(file, None)?;
    DecoderConfig {
        qkv: QkvForm::Fused,
        has_fused_gate: true,
        names: &FUSED,
        ..base(file, defaults)?
    }
    .with_rope(file, fields)?
    .with_windows(file, window, |_| true)
}
