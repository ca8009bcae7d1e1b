//! PHATGOOSE and GLIDER.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_routing::{
    Guidance, PrototypeScorer, Router, RouterConfig, Scorer, ScorerConfig, Selection,
    expert_labels, text_cosines,
};
use molora_testkit::{FORWARD, assert_close, autodiff_device};

use crate::site::{Site, Variant, cases, leaf};

/// A router with the case's prototypes.
fn router(prototypes: &Param<Tensor<2>>, selection: Selection) -> Router {
    let config = RouterConfig {
        scorer: ScorerConfig::Prototype,
        selection,
        ..RouterConfig::default()
    };
    let [num_experts, width] = prototypes.dims();
    let mut router = config.init(width, num_experts, 0, Seed::new(0), &prototypes.device());
    let prototypes = prototypes.clone();
    router.scorer = Scorer::Prototype(PrototypeScorer { prototypes });
    router
}

#[test]
fn golden_methods_phatgoose() {
    let device = autodiff_device();
    for case in cases("phatgoose") {
        let (document, expected) = (case.json("case.json").expect("found by it"), case.tensors());
        for variant in Variant::all(&document, &expected) {
            match variant.hyper("expert").is_some() {
                true => gate_training(&variant, &device),
                false => inference(&variant, &device),
            }
        }
    }
}

/// One expert with its gate; the others have weight 0.
fn gate_training(variant: &Variant, device: &Device) {
    let site = Site::new(variant.expected, variant.number("scaling"), device);
    let prototypes = leaf(variant.expected.tensor::<2>("param.gate", device));
    let expert = variant.number("expert") as usize;
    let scorer = PrototypeScorer { prototypes };
    let [batch, tokens, width] = site.x.dims();
    let features = site.x.clone().reshape([batch * tokens, width]);
    let gate = scorer.gate(expert, features).reshape([batch, tokens, 1]);
    let of_case = variant
        .expected
        .tensor::<2>(&variant.key("output.gate"), device);
    let found = gate.clone().reshape([batch, tokens]) * site.mask.clone();
    let what = variant.key("output.gate");
    assert_close(found, of_case * site.mask.clone(), FORWARD, &what);

    let row = expert_labels(&[Some(expert)], site.bank.num_experts(), device).expect("exists");
    let y = site.base() + site.mixture(gate * row.unsqueeze());
    let gradients = variant.check_site(&site, y).expect("a training variant");
    let to_gate = scorer.prototypes.val().grad(&gradients).expect("tracked");
    variant.check_gradient("grad.gate", to_gate);
}

fn inference(variant: &Variant, device: &Device) {
    let site = Site::new(variant.expected, variant.number("scaling"), device);
    let mut prototypes = variant.expected.tensor::<2>("param.gate", device);
    if variant.hyper("zeroed_gate").is_some() {
        let width = prototypes.dims()[1];
        let row = variant.number("zeroed_gate") as usize;
        let zero = Tensor::zeros([1, width], device);
        prototypes = prototypes.slice_assign([row..row + 1, 0..width], zero);
    }
    let prototypes = leaf(prototypes);
    let selection = Selection::TopK(variant.number("top_k") as usize);
    let routed = router(&prototypes, selection).route(&site.route_input());
    variant.check_routed(&routed);
    let y = site.base() + site.mixture(routed.weights);
    if let Some(gradients) = variant.check_site(&site, y) {
        let to_gate = prototypes.val().grad(&gradients).expect("tracked");
        variant.check_gradient("grad.gate", to_gate);
    }
}

#[test]
fn golden_methods_glider() {
    let device = autodiff_device();
    for case in cases("glider") {
        let (document, expected) = (case.json("case.json").expect("found by it"), case.tensors());
        for variant in Variant::all(&document, &expected) {
            glider(&variant, &device);
        }
    }
}

fn glider(variant: &Variant, device: &Device) {
    let site = Site::new(variant.expected, variant.number("scaling"), device);
    let prototypes = leaf(variant.expected.tensor::<2>("param.gate", device));
    let selection = match variant.hyper("top_p").is_some() {
        true => Selection::TopP(variant.number("top_p")),
        false => Selection::TopK(variant.number("top_k") as usize),
    };
    let texts = leaf(variant.expected.tensor::<2>("param.expert_text", device));
    let queries = variant.expected.tensor::<2>("input.query_text", device);
    let width = queries.dims()[1] - usize::from(variant.hyper("drop_last_component").is_some());
    let experts = texts.val().narrow(1, 0, width);
    let cosines = text_cosines(queries.narrow(1, 0, width), experts);
    variant.check("output.gamma", cosines.clone());
    let guidance = Guidance {
        bias: Some(cosines.mul_scalar(variant.number("alpha_g"))),
        labels: None,
    };
    let router = router(&prototypes, selection);
    let routed = router.route_guided(&site.route_input(), &guidance);
    variant.check_routed(&routed);
    let y = site.base() + site.mixture(routed.weights);
    if let Some(gradients) = variant.check_site(&site, y) {
        let to_gate = prototypes.val().grad(&gradients).expect("tracked");
        variant.check_gradient("grad.gate", to_gate);
        let to_texts = texts.val().grad(&gradients).expect("tracked");
        variant.check_gradient("grad.expert_text", to_texts);
    }
}
