//! What tests of PEFT files share.

#![allow(dead_code, reason = "each test file uses its part")]

use burn::tensor::{Bool, Device, Tensor};
use molora_kernels::random::Seed;
use molora_models::{Decoder, DecoderInput, ForwardContext};
use molora_routing::{Granularity, RouterConfig};

pub(crate) fn logits(model: &Decoder, input: &DecoderInput) -> Tensor<3> {
    let context = ForwardContext::new(input.mask.clone().float());
    model.logits(model.forward(input, &context).hidden)
}

/// Zeros at padded positions, where a model may hold anything.
pub(crate) fn at_real_tokens(values: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<3> {
    let padding = mask.clone().bool_not().unsqueeze_dim::<3>(2);
    let padding = padding.expand(values.dims());
    values.mask_fill(padding, 0.0)
}

/// Gives every site a router per sequence, which labels overrule.
pub(crate) fn route_rows(model: &mut Decoder, num_experts: usize, device: &Device) {
    let config = RouterConfig {
        granularity: Granularity::Sequence,
        ..RouterConfig::default()
    };
    for (path, site) in model.sites_mut() {
        let seed = Seed::new(0).child(&path);
        let width = site.bank.a.dims()[0];
        site.router = Some(config.init(width, num_experts, 1, seed, device));
    }
}
