//! One learned factor on the whole delta, in place of a constant. MoR1E, arXiv:2404.08985.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation::sigmoid};
use molora_kernels::random::Seed;
use molora_parts::{Axis, Count, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CoreDims, CoreNumbers, Transforming};

/// `sigmoid(sharpness beta) x A` with one learned beta for a site, initially 0: a factor of one half.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputGateConfig {
    /// Factor on beta, which makes its steps larger.
    pub sharpness: f64,
}

impl Default for OutputGateConfig {
    fn default() -> Self {
        Self { sharpness: 100.0 }
    }
}

impl CoreNumbers for OutputGateConfig {
    type Core = OutputGateCore;

    fn init(&self, _dims: CoreDims, _seed: Seed, device: &Device) -> OutputGateCore {
        OutputGateCore {
            beta: Param::from_tensor(Tensor::zeros([1], device)),
            sharpness: self.sharpness,
        }
    }
}

/// One learned factor on the code of all experts, and so on the delta.
#[derive(Module, Debug)]
pub struct OutputGateCore {
    /// The factor before the sigmoid, `[1]`.
    pub beta: Param<Tensor<1>>,
    sharpness: f64,
}

impl Transforming for OutputGateCore {
    fn apply(&self, low: Tensor<3>, _tasks: Option<&Tensor<2>>) -> Tensor<3> {
        let gate = sigmoid(self.beta.val().mul_scalar(self.sharpness));
        low * gate.reshape([1, 1, 1])
    }

    fn resized(&self, _slices: Count, _experts: usize) -> Self {
        self.clone()
    }

    fn is_common(&self) -> bool {
        true
    }

    fn tensors(&mut self, _slices: Axis) -> Vec<PartTensor<'_>> {
        let (name, kind) = ("experts.output_gate", ParameterKind::Adapters);
        vec![PartTensor::vector(
            name,
            kind,
            &mut self.beta,
            &[Axis::Unit.of(1)],
        )]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn the_gate_starts_at_one_half_and_steps_are_sharp() {
        let device = molora_testkit::device();
        let core = |beta: f32| OutputGateCore {
            beta: Param::from_data([beta], &device),
            sharpness: 100.0,
        };
        let low = || Tensor::<3>::from_data([[[2.0, -4.0]]], &device);
        let half = core(0.0).apply(low(), None);
        assert_close(half, [[[1.0, -2.0]]], FORWARD, "fresh");
        // sigmoid(ln 3) is 3/4.
        let more = core(3.0_f32.ln() / 100.0).apply(low(), None);
        assert_close(more, [[[1.5, -3.0]]], FORWARD, "after a step");
    }
}
