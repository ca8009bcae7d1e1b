//! A ReLU between `A` and `B`, which makes the experts small networks. mtLoRA beside a block,
//! arXiv:2603.01526; AdaptFormer, Chen et al., arXiv:2205.13535.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation::relu};
use molora_kernels::random::Seed;
use molora_parts::{Axis, Count, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CoreDims, CoreNumbers, Transforming};

/// `relu(x A)`, and with `expert_scale` a learned factor on the weight of each expert, initially 1 (the paper
/// starts it at 0, beside a `B` of zeros, where neither would ever learn).
///
/// No LoRA holds such experts: they are not linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReluConfig {
    /// Whether each expert has a learned factor (style `adaptformer` of mtLoRA).
    pub expert_scale: bool,
}

impl CoreNumbers for ReluConfig {
    type Core = ReluCore;

    fn init(&self, dims: CoreDims, _seed: Seed, device: &Device) -> ReluCore {
        let ones = || Param::from_tensor(Tensor::ones([dims.experts], device));
        ReluCore {
            scale: self.expert_scale.then(ones),
        }
    }

    fn is_linear(&self) -> bool {
        false
    }
}

/// A ReLU of the low-rank code.
#[derive(Module, Debug)]
pub struct ReluCore {
    /// A factor for each expert, `[E]`, if they have one.
    pub scale: Option<Param<Tensor<1>>>,
}

impl Transforming for ReluCore {
    fn apply(&self, low: Tensor<3>, _tasks: Option<&Tensor<2>>) -> Tensor<3> {
        relu(low)
    }

    fn resized(&self, _slices: Count, experts: usize) -> Self {
        let zeros = |scale: &Param<Tensor<1>>| {
            Param::from_tensor(Tensor::zeros([experts], &scale.device()))
        };
        Self {
            scale: self.scale.as_ref().map(zeros),
        }
    }

    fn is_linear(&self) -> bool {
        false
    }

    fn expert_scale(&self) -> Option<Tensor<1>> {
        self.scale.as_ref().map(Param::val)
    }

    fn tensors(&mut self, _slices: Axis) -> Vec<PartTensor<'_>> {
        let scale = self.scale.iter_mut().map(|scale| {
            let experts = [Axis::Expert.of(scale.dims()[0])];
            PartTensor::vector("experts.scale", ParameterKind::Adapters, scale, &experts)
        });
        scale.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BankConfig, SiteDims, Slices};
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn codes_are_cut_at_zero_and_experts_are_scaled() {
        let device = molora_testkit::device();
        let config = BankConfig {
            slices: Slices::Shared,
            num_experts: 2,
            rank: 1,
            core: ReluConfig { expert_scale: true }.into(),
            ..BankConfig::default()
        };
        let dims = SiteDims {
            d_input: 1,
            d_output: 1,
        };
        let mut bank = config.init(dims, Seed::new(0), &device);
        bank.a = Param::from_data([[1.0]], &device);
        bank.b = Param::from_data([[1.0], [10.0]], &device);
        let crate::core::Core::Relu(core) = &mut bank.core else {
            panic!("another core");
        };
        core.scale = Some(Param::from_data([2.0, 3.0], &device));
        // Alpha over rank is 16.
        let y = |x: f32, weights: Option<[f32; 2]>| {
            let x = Tensor::from_data([[[x]]], &device);
            let weights = weights.map(|weights| Tensor::from_data([[weights]], &device));
            bank.up(bank.down(x, None), weights)
        };
        assert_close(y(-1.0, None), [[[0.0]]], FORWARD, "below zero");
        assert_close(y(1.0, None), [[[16.0 * 32.0]]], FORWARD, "both");
        let weighed = y(1.0, Some([0.5, 0.1]));
        assert_close(weighed, [[[16.0 * (1.0 + 3.0)]]], FORWARD, "weighed");
    }
}
