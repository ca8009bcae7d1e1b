//! A bank of one expert against burn's own LoRA, which forms `W + s A B` at full size.

use burn::module::{Lora, Module, ModuleMapper, Param, ParamGroup};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use molora_adapters::{BankConfig, ExpertBank, Scaling, SiteDims};
use molora_kernels::random::{Seed, uniform};
use molora_testkit::{FORWARD, GRADIENT, assert_close, autodiff_device};

const DIMS: SiteDims = SiteDims {
    d_input: 13,
    d_output: 9,
};
const RANK: usize = 4;
const ALPHA: f64 = 10.0;

/// Replaces the up-projection of a LoRA, which starts at zero.
struct SetUp {
    b: Tensor<2>,
}

impl ModuleMapper for SetUp {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.lazy_shape().as_slice() != [RANK, DIMS.d_output] {
            return param;
        }
        let values = self.b.to_data();
        param.map(|old| Tensor::from_data(values, &old.device()).require_grad())
    }
}

/// burn's adapted layer and ours, with the same factors on the same base.
fn adapted(device: &Device) -> (Linear, Linear, ExpertBank) {
    let base = LinearConfig::new(DIMS.d_input, DIMS.d_output)
        .init(device)
        .no_grad();
    let only_weight = ParamGroup::from_path("weight");
    let lora = Lora::new(RANK, ALPHA).set_param_group(only_weight);
    let mut up = SetUp {
        b: uniform([RANK, DIMS.d_output], 0.7, Seed::new(1), device),
    };
    let burns = base.clone().apply_lora(lora).map(&mut up);

    let scaling = Scaling::AlphaOverRank(ALPHA);
    let config = BankConfig {
        rank: RANK,
        scaling,
        ..BankConfig::default()
    };
    let mut bank = config.init(DIMS, Seed::new(0), device);
    let adapter = burns.weight.adapter().expect("burn adapted the weight");
    bank.a = Param::from_data(adapter.a.val().to_data(), device);
    bank.b = Param::from_data(up.b.to_data(), device);
    (base, burns, bank)
}

#[test]
fn golden_one_expert_equals_apply_lora() {
    let device = autodiff_device();
    let (base, burns, bank) = adapted(&device);
    let x = uniform([3, 5, DIMS.d_input], 1.0, Seed::new(2), &device);
    let cotangent = uniform([3, 5, DIMS.d_output], 1.0, Seed::new(3), &device);

    let x_burn = x.clone().require_grad();
    let y_burn = burns.forward(x_burn.clone());
    let x_ours = x.require_grad();
    let y_ours = base.forward(x_ours.clone()) + bank.up(bank.down(x_ours.clone(), None), None);
    assert_close(&y_ours, &y_burn, FORWARD, "y");

    let expected = (y_burn * cotangent.clone()).sum().backward();
    let found = (y_ours * cotangent).sum().backward();
    let adapter = burns.weight.adapter().expect("burn adapted the weight");
    let same = |ours: Option<Tensor<2>>, burns: Option<Tensor<2>>, what: &str| {
        assert_close(
            ours.expect("tracked"),
            burns.expect("tracked"),
            GRADIENT,
            what,
        );
    };
    same(
        bank.a.val().grad(&found),
        adapter.a.val().grad(&expected),
        "gradient of A",
    );
    same(
        bank.b.val().grad(&found),
        adapter.b.val().grad(&expected),
        "gradient of B",
    );
    let x_grad = (
        x_ours.grad(&found).expect("tracked"),
        x_burn.grad(&expected).expect("tracked"),
    );
    assert_close(x_grad.0, x_grad.1, GRADIENT, "gradient of x");
    assert!(
        base.weight.val().grad(&found).is_none(),
        "the base is frozen"
    );
}

#[test]
fn the_merged_weight_is_the_one_that_apply_lora_forms() {
    let device = autodiff_device();
    let (base, burns, bank) = adapted(&device);
    let merged = base.weight.val() + bank.weight_delta(Tensor::ones([1], &device));
    assert_close(merged, burns.weight.val(), FORWARD, "W + s A B");
    let moved = (burns.weight.val() - base.weight.val())
        .abs()
        .max()
        .into_scalar::<f32>();
    assert!(moved > 0.1, "the adapter moves the weight, here by {moved}");
}
