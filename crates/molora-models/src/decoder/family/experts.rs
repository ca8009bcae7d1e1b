//! Families whose feed-forward parts are mixtures of experts: Mixtral (arXiv:2401.04088) and Qwen3-MoE
//! (arXiv:2505.09388).

use serde_json::Value;

use super::llama::{self, Defaults, NAMES, base};
use super::window;
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::decoder::config::{DecoderConfig, ExpertsConfig, QkNorm};
use crate::decoder::names::Names;
use crate::decoder::rope::RopeFields;
use crate::family::{About, Sizes};

const MIXTRAL_NAMES: Names = Names {
    router: "block_sparse_moe.gate",
    experts: "block_sparse_moe.experts",
    expert: ["w1", "w3", "w2"],
    ..NAMES
};

const QWEN_NAMES: Names = Names {
    router: "mlp.gate",
    experts: "mlp.experts",
    expert: ["gate_proj", "up_proj", "down_proj"],
    ..NAMES
};

const TOP_K: &str = "num_experts_per_tok";

/// As many experts as Qwen3-MoE gives a token where a file says nothing.
fn small(sizes: &Sizes) -> Value {
    let mut config = llama::small(sizes);
    config["num_local_experts"] = 8.into();
    config
}

/// What is said of Mixtral.
pub(super) const MIXTRAL: About = About {
    model_type: "mixtral",
    models: "Mixtral",
    special: "experts with a router in the place of the feed-forward part",
    gguf: None,
    transformers: false,
    small,
};

/// Mixtral: Mistral with experts in all layers.
pub(super) fn mixtral(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults {
        num_kv_heads: Some(8),
        epsilon: 1e-5,
        ..Defaults::default()
    };
    let fields = RopeFields {
        theta: ("rope_theta", 1_000_000.0),
        ..RopeFields::default()
    };
    let window = window(file, None)?;
    let config = DecoderConfig {
        names: &MIXTRAL_NAMES,
        ..base(file, defaults)?
    };
    let experts = ExpertsConfig {
        count: count(file)?,
        top_k: file.optional_size(TOP_K)?.unwrap_or(2),
        inner_width: config.inner_width,
        shares_out: true,
    };
    config
        .with_experts(file, experts, |_| true)?
        .with_rope(file, fields)?
        .with_windows(file, window, |_| true)
}

/// What is said of Qwen3-MoE.
pub(super) const QWEN3_MOE: About = About {
    model_type: "qwen3_moe",
    models: "Qwen3-MoE",
    special: "Qwen3 with such experts in some layers or all",
    gguf: None,
    transformers: false,
    small,
};

/// Qwen3-MoE: Qwen3 with experts in some layers or all, and a window in all of them.
pub(super) fn qwen3_moe(file: &ConfigFile) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults {
        num_kv_heads: Some(4),
        ..Defaults::default()
    };
    let in_use = file.flag("use_sliding_window", false)?;
    let window = window(file, Some(4096))?.filter(|_| in_use);
    // Of Qwen3; it says nothing here.
    file.pass_over(&["max_window_layers"]);
    let experts = ExpertsConfig {
        count: count(file)?,
        top_k: file.optional_size(TOP_K)?.unwrap_or(8),
        inner_width: file.optional_size("moe_intermediate_size")?.unwrap_or(768),
        shares_out: file.flag("norm_topk_prob", false)?,
    };
    let step = file.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let dense = dense_layers(file)?;
    let config = DecoderConfig {
        qk_norm: Some(QkNorm::Heads),
        names: &QWEN_NAMES,
        ..base(file, defaults)?
    };
    config
        .with_biases(file, false)?
        .with_experts(file, experts, |index| {
            !dense.contains(&(index as u64)) && (index + 1).is_multiple_of(step)
        })?
        .with_rope(file, RopeFields::default())?
        .with_windows(file, window, |_| true)
}

impl DecoderConfig {
    /// With experts in the layers that `has_experts` names.
    fn with_experts(
        mut self,
        file: &ConfigFile,
        experts: ExpertsConfig,
        has_experts: impl Fn(usize) -> bool,
    ) -> Result<Self, ModelError> {
        if experts.top_k > experts.count {
            let text = format!(
                "{} exceeds the number of experts {}",
                experts.top_k, experts.count
            );
            return Err(file.problem(TOP_K, &text));
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.has_experts = has_experts(index);
        }
        self.experts = Some(experts);
        Ok(self)
    }
}

/// Number of experts, which has two names.
fn count(file: &ConfigFile) -> Result<usize, ModelError> {
    const NAMES: [&str; 2] = ["num_local_experts", "num_experts"];
    match NAMES.map(|name| file.optional_size(name)) {
        [Err(error), _] | [_, Err(error)] => Err(error),
        [Ok(Some(local)), Ok(Some(other))] if local != other => {
            let text = format!("is {other}, but {} beside it is {local}", NAMES[0]);
            Err(file.problem(NAMES[1], &text))
        }
        [Ok(Some(count)), _] | [_, Ok(Some(count))] => Ok(count),
        _ => Err(file.problem(NAMES[0], "is missing")),
    }
}

/// The layers that `mlp_only_layers` lists.
fn dense_layers(file: &ConfigFile) -> Result<Vec<u64>, ModelError> {
    const FIELD: &str = "mlp_only_layers";
    let Some(list) = file.get(FIELD) else {
        return Ok(Vec::new());
    };
    let list = list.as_array();
    let list = list.and_then(|list| list.iter().map(Value::as_u64).collect());
    list.ok_or_else(|| file.unsupported(FIELD, "a list of numbers of layers"))
}
