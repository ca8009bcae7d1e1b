//! What a bank is made of: which matrices, how many of them, and where they start.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::{Seed, normal, uniform};
use molora_parts::{Axis, Count};
use serde::{Deserialize, Serialize};

use super::ExpertBank;
use crate::core::{CoreConfig, CoreDims};
use crate::{AdapterError, Scaling};

/// Which down-projection an expert reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slices {
    /// Each expert has its own `A`.
    Independent,
    /// One `A` serves all experts, each has its own `B` (HydraLoRA, arXiv:2404.19245; MoSLD; SAMoRA).
    #[serde(alias = "shared_a")]
    Shared,
}

impl Slices {
    /// The down-projections of so many experts, and what they are counted by.
    pub fn count(self, num_experts: usize) -> Count {
        match self {
            Self::Independent => Axis::Expert.of(num_experts),
            Self::Shared => Axis::Slice.of(1),
        }
    }
}

/// Where training starts. `B` is zero, so that a fresh bank changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// `A` from U(-1/sqrt(D), 1/sqrt(D)): PyTorch's `kaiming_uniform(a = sqrt 5)`, which PEFT and the
    /// reference codes of HydraLoRA and SAMoRA use.
    #[default]
    Kaiming,
    /// `A` from N(0, 1/R^2): PEFT's `init_lora_weights="gaussian"`.
    Gaussian,
}

/// Input and output width of an adapted layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteDims {
    /// Input width D.
    pub d_input: usize,
    /// Output width O.
    pub d_output: usize,
}

/// Numbers of an [`ExpertBank`]; widths come with [`init`](Self::init).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BankConfig {
    /// Which down-projection an expert reads.
    #[serde(alias = "sharing")]
    pub slices: Slices,
    /// Number of experts E.
    pub num_experts: usize,
    /// Rank R of each expert.
    pub rank: usize,
    /// Constant factor on the delta.
    pub scaling: Scaling,
    /// What happens to the low-rank code between `A` and `B`.
    #[serde(alias = "rank_scale", deserialize_with = "core_or_flag")]
    pub core: CoreConfig,
    /// Where training starts.
    #[serde(skip_serializing_if = "is_kaiming")]
    pub start: Start,
    /// Probability of dropping an input activation in training.
    pub dropout: f64,
    /// Probability of dropping an entry of `A` in training, in `[0, 1)` (MoSLD's DropConnect).
    pub weight_dropout: f64,
}

impl Default for BankConfig {
    /// A plain LoRA: one expert of rank 8, alpha 16, no dropout.
    fn default() -> Self {
        Self {
            slices: Slices::Independent,
            num_experts: 1,
            rank: 8,
            scaling: Scaling::AlphaOverRank(16.0),
            core: CoreConfig::default(),
            start: Start::default(),
            dropout: 0.0,
            weight_dropout: 0.0,
        }
    }
}

impl BankConfig {
    /// Checks every number that does not depend on a site.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), AdapterError> {
        for (field, value) in [("num_experts", self.num_experts), ("rank", self.rank)] {
            if value == 0 {
                return Err(AdapterError::Zero { field });
            }
        }
        let probabilities = [
            ("dropout", self.dropout),
            ("weight_dropout", self.weight_dropout),
        ];
        for (field, value) in probabilities {
            if !(0.0..1.0).contains(&value) {
                return Err(AdapterError::Probability { field, value });
            }
        }
        self.scaling.validate()
    }

    /// Checks that the rank fits into a site.
    ///
    /// # Errors
    /// [`AdapterError::RankTooLarge`] if it exceeds the smaller width.
    pub fn validate_for(&self, dims: SiteDims) -> Result<(), AdapterError> {
        let limit = dims.d_input.min(dims.d_output);
        if self.rank > limit {
            return Err(AdapterError::RankTooLarge {
                rank: self.rank,
                limit,
            });
        }
        Ok(())
    }

    /// A bank for one site of a model without tasks; see [`init_for`](Self::init_for).
    pub fn init(&self, dims: SiteDims, seed: Seed, device: &Device) -> ExpertBank {
        self.init_for(0, dims, seed, device)
    }

    /// A bank for one site: `A` by its start, `B` zero, a core that changes nothing. The number of
    /// tasks is read by a core that depends on tasks.
    pub fn init_for(
        &self,
        num_tasks: usize,
        dims: SiteDims,
        seed: Seed,
        device: &Device,
    ) -> ExpertBank {
        let slices = self.slices.count(self.num_experts);
        let shape = [dims.d_input, slices.size * self.rank];
        let a = match self.start {
            Start::Kaiming => {
                let bound = 1.0 / (dims.d_input as f64).sqrt();
                uniform(shape, bound, seed.child("a"), device)
            }
            Start::Gaussian => normal(shape, 1.0 / self.rank as f64, seed.child("a"), device),
        };
        let b = Tensor::zeros([self.num_experts * self.rank, dims.d_output], device);
        let core = CoreDims {
            slices,
            rank: self.rank,
            tasks: num_tasks,
        };
        ExpertBank {
            a: Param::from_tensor(a),
            b: Param::from_tensor(b),
            core: self.core.init(core, seed.child("core"), device),
            slices: self.slices,
            num_experts: self.num_experts,
            rank: self.rank,
            factor: self.scaling.factor(self.rank),
            dropout: self.dropout,
            weight_dropout: self.weight_dropout,
        }
    }
}

fn is_kaiming(start: &Start) -> bool {
    *start == Start::Kaiming
}

/// Reads a core, or whether there is a scale, which was a flag of its own once.
fn core_or_flag<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<CoreConfig, D::Error> {
    molora_parts::or_flag(deserializer, |flag| match flag {
        true => crate::core::ScaleConfig.into(),
        false => CoreConfig::default(),
    })
}
