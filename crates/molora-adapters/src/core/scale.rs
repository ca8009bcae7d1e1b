//! A learned factor for each coordinate of the code. SAMoRA, arXiv:2604.19048.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::{Axis, Count, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CoreDims, CoreNumbers, Transforming};

/// `sigma o x A` with a learned vector `sigma`, initially ones. SAMoRA, arXiv:2604.19048.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ScaleConfig;

impl CoreNumbers for ScaleConfig {
    type Core = ScaleCore;

    fn init(&self, dims: CoreDims, _seed: Seed, device: &Device) -> ScaleCore {
        let ones = Tensor::ones([dims.slices.size * dims.rank], device);
        ScaleCore {
            sigma: Param::from_tensor(ones),
            rank: dims.rank,
        }
    }
}

/// A learned scale of the low-rank code.
#[derive(Module, Debug)]
pub struct ScaleCore {
    /// One factor for each coordinate, `[S*R]`.
    pub sigma: Param<Tensor<1>>,
    rank: usize,
}

impl ScaleCore {
    /// A core with given factors, `[S*R]`.
    pub fn new(sigma: Param<Tensor<1>>, rank: usize) -> Self {
        Self { sigma, rank }
    }
}

impl Transforming for ScaleCore {
    fn resized(&self, slices: Count, _experts: usize) -> Self {
        let zeros = Tensor::zeros([slices.size * self.rank], &self.sigma.device());
        Self {
            sigma: Param::from_tensor(zeros),
            rank: self.rank,
        }
    }

    fn scale(&self) -> Option<Tensor<1>> {
        Some(self.sigma.val())
    }

    fn tensors(&mut self, slices: Axis) -> Vec<PartTensor<'_>> {
        let slices = slices.of(self.sigma.dims()[0] / self.rank);
        let counts = [slices, Axis::Rank.of(self.rank)];
        let kind = ParameterKind::Adapters;
        let name = "experts.rank_scale";
        vec![PartTensor::vector(name, kind, &mut self.sigma, &counts)]
    }
}
