//! A random, sparse matrix that never trains. FlyLoRA, Zou et al., arXiv:2510.08396.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use molora_kernels::random::{Seed, normal, unit};
use molora_parts::{Count, ParameterKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DownDims, DownNumbers, Lower};
use crate::AdapterError;

/// Each coordinate of the code reads a few inputs at random places, with weights from N(0, 1/r^2),
/// where r is the width of the whole code. The matrix is drawn once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FrozenSparseConfig {
    /// Share of the inputs that a coordinate reads; the paper's is k / r, selected ranks by ranks.
    pub density: f64,
    /// Whether the input gets no gradient through the matrix, as in the layer that the authors'
    /// scripts run.
    pub detached: bool,
}

impl Default for FrozenSparseConfig {
    fn default() -> Self {
        Self {
            density: 0.25,
            detached: false,
        }
    }
}

impl DownNumbers for FrozenSparseConfig {
    type Down = FrozenSparseDown;

    fn init(
        &self,
        dims: DownDims,
        _drawn: Tensor<2>,
        seed: Seed,
        device: &Device,
    ) -> (Tensor<2>, FrozenSparseDown) {
        let (inputs, code) = (dims.d_input, dims.code());
        let kept = ((inputs as f64 * self.density) as usize).clamp(1, inputs);
        let mut mask = vec![0.0_f32; inputs * code];
        let mut generator = seed.child("places").generator();
        for column in 0..code {
            // The first `kept` of a shuffled list of inputs.
            let mut places: Vec<usize> = (0..inputs).collect();
            for at in 0..kept {
                let other = at + (unit(&mut generator) * (inputs - at) as f64) as usize;
                places.swap(at, other);
                mask[places[at] * code + column] = 1.0;
            }
        }
        let mask = Tensor::<2>::from_data(TensorData::new(mask, [inputs, code]), device);
        let values = normal([inputs, code], 1.0 / code as f64, seed.child("a"), device);
        let down = FrozenSparseDown {
            detached: self.detached,
        };
        (values * mask, down)
    }

    fn validate(&self) -> Result<(), AdapterError> {
        match self.density > 0.0 && self.density <= 1.0 {
            true => Ok(()),
            false => Err(AdapterError::Share {
                field: "density",
                value: self.density,
            }),
        }
    }
}

/// A matrix that never trains.
#[derive(Module, Debug)]
pub struct FrozenSparseDown {
    detached: bool,
}

impl Lower for FrozenSparseDown {
    fn kind(&self) -> ParameterKind {
        ParameterKind::Frozen
    }

    fn is_detached(&self) -> bool {
        self.detached
    }

    fn resized(&self, _slices: Count) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BankConfig, SiteDims};

    #[test]
    fn each_coordinate_reads_its_share_of_the_inputs() {
        let config = BankConfig {
            num_experts: 6,
            rank: 1,
            down: FrozenSparseConfig::default().into(),
            ..BankConfig::default()
        };
        let dims = SiteDims {
            d_input: 18,
            d_output: 8,
        };
        let bank = config.init(dims, Seed::new(3), &molora_testkit::device());
        let used = bank.a.val().abs().greater_elem(0.0).int().sum_dim(0);
        let counts: Vec<i64> = used.into_data().iter::<i64>().collect();
        assert_eq!(counts, [4; 6], "18 / 4, rounded down");
    }
}
