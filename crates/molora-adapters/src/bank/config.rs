//! What a bank is made of: which matrices, how many of them, and where they start.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::{Axis, Count, ParameterKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ExpertBank;
use crate::combine::Combine;
use crate::core::{CoreConfig, CoreDims};
use crate::down::{DownConfig, DownDims};
use crate::start::StartDims;
use crate::{AdapterError, Scaling, Start};

/// Which down-projection an expert reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// What a weight means for the gradient of its expert; the output is the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GateGradient {
    /// The weight itself multiplies it.
    #[default]
    Plain,
    /// The root of the weight does, so that experts with small weights learn faster. Riemannian
    /// MoE-LoRA, Sun et al., arXiv:2502.15828, section 3.
    SquareRoot,
}

/// Input and output width of an adapted layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteDims {
    /// Input width D.
    pub d_input: usize,
    /// Output width O.
    pub d_output: usize,
}

/// What a bank has to know of the site that it is for.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// Its widths.
    pub dims: SiteDims,
    /// Number of tasks, read by a core that depends on tasks.
    pub tasks: usize,
    /// The frozen weight `[D, O]` in f32, read by a [`Start`] from it.
    pub weight: Option<&'a Tensor<2>>,
}

/// Numbers of an [`ExpertBank`]; widths come with [`init`](Self::init).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BankConfig {
    /// Which down-projection an expert reads.
    #[serde(alias = "sharing")]
    pub slices: Slices,
    /// How the matrix `A` is made of parameters.
    #[serde(skip_serializing_if = "DownConfig::is_dense")]
    pub down: DownConfig,
    /// How weighed experts become the delta.
    #[serde(skip_serializing_if = "Combine::is_sum")]
    pub combine: Combine,
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
    /// What a weight means for the gradient of its expert.
    #[serde(skip_serializing_if = "is_plain")]
    pub gate_gradient: GateGradient,
    /// Whether all values are read from a file afterwards, so that a start from the frozen weight is not
    /// computed; not in files.
    #[serde(skip)]
    pub is_blank: bool,
}

impl Default for BankConfig {
    /// A plain LoRA: one expert of rank 8, alpha 16, no dropout.
    fn default() -> Self {
        Self {
            slices: Slices::Independent,
            down: DownConfig::default(),
            combine: Combine::default(),
            num_experts: 1,
            rank: 8,
            scaling: Scaling::AlphaOverRank(16.0),
            core: CoreConfig::default(),
            start: Start::default(),
            dropout: 0.0,
            weight_dropout: 0.0,
            gate_gradient: GateGradient::default(),
            is_blank: false,
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
        self.down.validate()?;
        if self.down.is_shared() && self.weight_dropout > 0.0 {
            return Err(AdapterError::Combine {
                name: "weight_dropout",
                needs: "a down-projection whose entries are those of A",
            });
        }
        self.combine.validate(self)?;
        if self.combine.needs_shared_slice() && self.slices != Slices::Shared {
            return Err(AdapterError::Combine {
                name: self.combine.name(),
                needs: "slices = \"shared\"",
            });
        }
        if self.gate_gradient == GateGradient::SquareRoot && self.combine.reads_inputs() {
            return Err(AdapterError::Combine {
                name: "gate_gradient = \"square_root\"",
                needs: "experts whose outputs are added",
            });
        }
        if !self.core.is_linear() && !self.combine.is_linear() {
            return Err(AdapterError::Combine {
                name: "a core that is not linear",
                needs: "experts that are combined as they are",
            });
        }
        self.start.validate(self.num_experts)?;
        let is_plain = self.slices == Slices::Independent
            && self.down.is_dense()
            && self.combine.is_sum()
            && self.core.is_none();
        if self.start.reads_weight() && !is_plain {
            return Err(AdapterError::Combine {
                name: "a start from the frozen weight",
                needs: "independent slices, a dense down, a plain sum and no core",
            });
        }
        self.scaling.validate()
    }

    /// Checks what depends on the widths of a site.
    ///
    /// # Errors
    /// [`AdapterError::RankTooLarge`] if a rank exceeds the smaller width, or if all experts together do
    /// where each starts as a part of the frozen weight; [`AdapterError::Groups`] if a width does not
    /// divide.
    pub fn validate_for(&self, dims: SiteDims) -> Result<(), AdapterError> {
        let limit = dims.d_input.min(dims.d_output);
        let rank = match self.start.reads_weight() {
            true => self.num_experts * self.rank,
            false => self.rank,
        };
        if rank > limit {
            return Err(AdapterError::RankTooLarge { rank, limit });
        }
        self.down.validate_for(dims.d_input)?;
        self.combine.validate_for(dims)
    }

    /// Whether one expert of weight 1 is a LoRA as PEFT writes it: nothing between its matrices, the same
    /// alpha everywhere, and a frozen weight that nothing was taken out of.
    pub fn is_plain(&self) -> bool {
        self.core.is_none()
            && self.scaling.alpha(self.rank).is_some()
            && self.down.is_dense()
            && self.combine.is_sum()
            && !self.start.reads_weight()
    }

    /// Whether the delta under fixed weights is linear in the input, so that a LoRA holds it.
    pub fn is_linear(&self) -> bool {
        self.combine.is_linear() && self.core.is_linear()
    }

    /// Number of experts that a router decides among.
    pub fn choices(&self) -> usize {
        self.combine.choices(self.num_experts)
    }

    /// What each expert costs relative to the largest, where they differ.
    pub fn costs(&self) -> Option<Vec<f64>> {
        self.combine.costs(self.rank)
    }

    /// Number of decisions that weigh the experts of one token.
    pub fn groups(&self) -> usize {
        self.combine.groups(self.rank)
    }

    /// A bank for one site of a model without tasks; see [`init_at`](Self::init_at).
    ///
    /// # Panics
    /// If the start reads the frozen weight.
    pub fn init(&self, dims: SiteDims, seed: Seed, device: &Device) -> ExpertBank {
        self.init_for(0, dims, seed, device)
    }

    /// A bank for one site of a model with tasks; see [`init_at`](Self::init_at).
    ///
    /// # Panics
    /// If the start reads the frozen weight.
    pub fn init_for(
        &self,
        tasks: usize,
        dims: SiteDims,
        seed: Seed,
        device: &Device,
    ) -> ExpertBank {
        let site = Site {
            dims,
            tasks,
            weight: None,
        };
        self.init_at(site, seed, device)
    }

    /// A bank for one site: `A` and `B` by its start, a core that changes nothing.
    ///
    /// # Panics
    /// If the start reads the frozen weight and the site has none.
    pub fn init_at(&self, site: Site<'_>, seed: Seed, device: &Device) -> ExpertBank {
        let SiteDims { d_input, d_output } = site.dims;
        let slices = self.slices.count(self.num_experts);
        let factor = self.scaling.factor(self.rank, d_input);
        let start = StartDims {
            site: site.dims,
            slices: slices.size,
            experts: self.num_experts,
            rank: self.rank,
            factor,
            is_blank: self.is_blank,
        };
        let started = self.start.draw(&start, site.weight, seed, device);
        let down = DownDims {
            d_input,
            slices,
            rank: self.rank,
        };
        let (a, down) = self.down.init(down, started.a, seed.child("down"), device);
        let rows = self.num_experts * self.combine.rows(self.rank);
        let (b, residual) = match started.b {
            Some((b, residual)) => (b, Some(residual)),
            None => (Tensor::zeros([rows, d_output], device), None),
        };
        let core = CoreDims {
            slices,
            experts: self.num_experts,
            rank: self.rank,
            tasks: site.tasks,
        };
        let trains = down.kind() != ParameterKind::Frozen;
        ExpertBank {
            a: Param::from_tensor(a).set_require_grad(trains),
            b: Param::from_tensor(b),
            down,
            core: self.core.init(core, seed.child("core"), device),
            residual,
            slices: self.slices,
            combine: self.combine.clone(),
            num_experts: self.num_experts,
            rank: self.rank,
            factor,
            dropout: self.dropout,
            weight_dropout: self.weight_dropout,
            gate_gradient: self.gate_gradient,
        }
    }
}

fn is_plain(gradient: &GateGradient) -> bool {
    *gradient == GateGradient::Plain
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
