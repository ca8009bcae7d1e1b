//! One trained matrix.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::Count;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DownDims, DownNumbers, Lower};

/// `A` is one trained matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct DenseConfig;

impl DownNumbers for DenseConfig {
    type Down = DenseDown;

    fn init(
        &self,
        _dims: DownDims,
        drawn: Tensor<2>,
        _seed: Seed,
        _device: &Device,
    ) -> (Tensor<2>, DenseDown) {
        (drawn, DenseDown {})
    }
}

/// Nothing follows the matrix.
#[derive(Module, Debug)]
pub struct DenseDown {}

impl Lower for DenseDown {
    fn resized(&self, _slices: Count) -> Self {
        Self {}
    }
}
