//! PHATGOOSE and GLIDER.

use burn::module::Param;
use burn::tensor::{Device, Gradients, Tensor};
use molora_models::AdapterSpec;
use molora_routing::scorer::{LinearScorer, PrototypeScorer};
use molora_routing::{Guidance, Scorer, Selection, text_cosines};
use molora_testkit::{FORWARD, assert_close, autodiff_device};
use molora_train::guide::{ExpertInstruction, Instructions};

use super::site::{Site, Variant, bank_gradients, spec};
use crate::cases::cases;
use crate::common::leaf;

/// The recipe's specification with the case's experts.
fn phatgoose(variant: &Variant) -> AdapterSpec {
    let scaling = variant.number("scaling");
    spec("phatgoose", &variant.expected.shape("param.A"), scaling)
}

/// A site whose routers have these prototypes.
fn site(
    variant: &Variant,
    prototypes: &Param<Tensor<2>>,
    selection: Selection,
    device: &Device,
) -> Site {
    let mut spec = phatgoose(variant);
    spec.router.as_mut().expect("a router").selection = selection;
    let experts = ["param.A", "param.B"].map(|name| variant.expected.tensor::<3>(name, device));
    let mut site = Site::new(variant.expected, &spec, experts.into(), device);
    let prototypes = prototypes.clone();
    *site.scorer_mut() = Scorer::Prototype(PrototypeScorer { prototypes });
    site
}

fn check_gradients(variant: &Variant, site: &Site, gates: &Param<Tensor<2>>, found: &Gradients) {
    let (a, b) = bank_gradients(site.bank(), found);
    variant.check_gradient("grad.A", a);
    variant.check_gradient("grad.B", b);
    variant.check_gradient("grad.gate", gates.val().grad(found).expect("tracked"));
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

/// One expert behind its gate, as the second stage trains it. The others are not there, so what the
/// case has for them has to be zero.
fn gate_training(variant: &Variant, device: &Device) {
    let expert = variant.number("expert") as usize;
    let of_expert = |name| {
        variant
            .expected
            .tensor::<3>(name, device)
            .narrow(0, expert, 1)
    };
    let experts = (of_expert("param.A"), of_expert("param.B"));
    let spec = phatgoose(variant).one_expert(true);
    let mut site = Site::new(variant.expected, &spec, experts, device);
    let gates = variant.expected.tensor::<2>("param.gate", device);
    let weight = leaf(gates.clone().narrow(0, expert, 1));
    *site.scorer_mut() = Scorer::Linear(LinearScorer {
        weight: weight.clone(),
        bias: None,
    });
    let (y, routed) = site.forward(Guidance::default());
    let mask = variant.expected.tensor::<2>("input.mask", device);
    let name = variant.key("output.gate");
    let of_case = variant.expected.tensor::<2>(&name, device);
    let found = routed.weights.squeeze_dim::<2>(2) * mask.clone();
    assert_close(found, of_case * mask, FORWARD, &name);

    let gradients = variant.check_site(&site, y).expect("a training variant");
    let (a, b) = bank_gradients(site.bank(), &gradients);
    variant.check_gradient(
        "grad.A",
        in_place(a, &variant.expected.shape("param.A"), expert),
    );
    variant.check_gradient(
        "grad.B",
        in_place(b, &variant.expected.shape("param.B"), expert),
    );
    let to_gate = weight.val().grad(&gradients).expect("tracked");
    variant.check_gradient("grad.gate", in_place(to_gate, &gates.dims(), expert));
}

/// Values of one expert among zeros for all others.
fn in_place<const D: usize>(values: Tensor<D>, shape: &[usize], expert: usize) -> Tensor<D> {
    let mut rest = values.dims();
    rest[0] = shape[0];
    Tensor::zeros(rest, &values.device()).slice_assign(burn::tensor::s![expert..expert + 1], values)
}

fn inference(variant: &Variant, device: &Device) {
    let mut prototypes = variant.expected.tensor::<2>("param.gate", device);
    if variant.hyper("zeroed_gate").is_some() {
        let width = prototypes.dims()[1];
        let row = variant.number("zeroed_gate") as usize;
        let zero = Tensor::zeros([1, width], device);
        prototypes = prototypes.slice_assign([row..row + 1, 0..width], zero);
    }
    let prototypes = leaf(prototypes);
    let selection = Selection::TopK(variant.number("top_k") as usize);
    let site = site(variant, &prototypes, selection, device);
    let (y, routed) = site.forward(Guidance::default());
    variant.check_routed(&routed);
    if let Some(gradients) = variant.check_site(&site, y) {
        check_gradients(variant, &site, &prototypes, &gradients);
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
    let prototypes = leaf(variant.expected.tensor::<2>("param.gate", device));
    let selection = match variant.hyper("top_p").is_some() {
        true => Selection::TopP(variant.number("top_p")),
        false => Selection::TopK(variant.number("top_k") as usize),
    };
    let site = site(variant, &prototypes, selection, device);
    let texts = leaf(variant.expected.tensor::<2>("param.expert_text", device));
    let queries = variant.expected.tensor::<2>("input.query_text", device);
    let width = queries.dims()[1] - usize::from(variant.hyper("drop_last_component").is_some());
    let queries = queries.narrow(1, 0, width);
    let experts = texts.val().narrow(1, 0, width);
    let cosines = text_cosines(queries.clone(), experts.clone());
    variant.check("output.gamma", cosines.clone());
    let bias = cosines.mul_scalar(variant.number("alpha_g"));
    let scores = scores(variant, experts, queries);
    assert_close(scores, bias.clone(), FORWARD, "scores by instruction");
    let guidance = Guidance {
        bias: Some(bias),
        labels: None,
        ..Guidance::default()
    };
    let (y, routed) = site.forward(guidance);
    variant.check_routed(&routed);
    if let Some(gradients) = variant.check_site(&site, y) {
        check_gradients(variant, &site, &prototypes, &gradients);
        let to_texts = texts.val().grad(&gradients).expect("tracked");
        variant.check_gradient("grad.expert_text", to_texts);
    }
}

/// What a run adds to the logits, from the vectors in its file of instructions.
fn scores(variant: &Variant, experts: Tensor<2>, queries: Tensor<2>) -> Tensor<2> {
    let device = experts.device();
    let rows = |tensor: Tensor<2>| -> Vec<Vec<f32>> {
        let width = tensor.dims()[1];
        let values = tensor.into_data().try_to_vec::<f32>().expect("f32");
        values.chunks(width).map(<[f32]>::to_vec).collect()
    };
    let expert = |vector| ExpertInstruction {
        name: String::new(),
        text: String::new(),
        vector,
    };
    let instructions = Instructions {
        version: 1,
        encoder: String::new(),
        weight: variant.number("alpha_g"),
        experts: rows(experts).into_iter().map(expert).collect(),
    };
    let shape = [queries.dims()[0], instructions.experts.len()];
    let scores = instructions.scores(&rows(queries), &device).concat();
    Tensor::from_data(burn::tensor::TensorData::new(scores, shape), &device)
}
