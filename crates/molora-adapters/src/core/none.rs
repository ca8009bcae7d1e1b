//! No core: `B` reads the code as `A` makes it.

use burn::module::Module;
use burn::tensor::Device;
use molora_kernels::random::Seed;
use molora_parts::Count;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CoreDims, CoreNumbers, Transforming};

/// The code stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NoCoreConfig;

impl CoreNumbers for NoCoreConfig {
    type Core = NoCore;

    fn init(&self, _dims: CoreDims, _seed: Seed, _device: &Device) -> NoCore {
        NoCore {}
    }
}

/// Changes nothing.
#[derive(Module, Debug)]
pub struct NoCore {}

impl Transforming for NoCore {
    fn resized(&self, _slices: Count, _experts: usize) -> Self {
        Self {}
    }
}
