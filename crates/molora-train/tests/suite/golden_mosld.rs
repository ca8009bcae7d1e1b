//! MoSLD against its equations in float64: weight dropout with an explicit mask, top-2, the three
//! readings of the balance loss, and experts that differ by layer.

use crate::cases::cases;
use crate::common::{leaf, stacked};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use molora_adapters::Scaling;
use molora_models::ExpertCount;
use molora_models::{Adapter, AdapterSpec, ForwardContext, MoLoraLinear};
use molora_regularize::{BalanceLiteral, BalanceMass, LoadBalance};
use molora_regularize::{LossBreakdown, ObjectiveConfig, Reduction, SiteView, Term};
use molora_routing::scorer::LinearScorer;
use molora_routing::{RouterOutput, Scorer, Selection};
use molora_testkit::golden::{Case, Tensors};
use molora_testkit::{FORWARD, GRADIENT, assert_close, autodiff_device, device};
use molora_train::recipe;
use serde_json::Value;

fn hyper(case: &Case, name: &str) -> f64 {
    case.number("case.json", &["hyper", name])
}

/// The recipe's specification with the numbers of a case.
fn spec(case: &Case, rank: usize, experts_per_layer: Vec<usize>) -> AdapterSpec {
    let mut spec = recipe::find("mosld").expect("listed").adapter;
    spec.bank.rank = rank;
    spec.bank.scaling = Scaling::AlphaOverRank(hyper(case, "scaling") * rank as f64);
    let most = experts_per_layer.iter().copied().max().unwrap_or(1);
    // A case may ask for more than there are; the specification of a user may not.
    let top_k = most.min(hyper(case, "top_k") as usize);
    spec.router.as_mut().expect("a router").selection = Selection::TopK(top_k);
    spec.experts = ExpertCount::ByLayer(experts_per_layer);
    spec
}

/// A site of `spec` with the case's tensors that begin with `prefix`.
fn site(expected: &Tensors, prefix: &str, spec: &AdapterSpec, device: &Device) -> MoLoraLinear {
    let name = |part: &str| format!("{prefix}{part}");
    let weight = expected.tensor::<2>(&name("W0"), device);
    let bias = expected.tensor::<1>(&name("bias"), device);
    let mut linear = crate::common::adapted(weight, Some(bias), spec, 0, device);
    let adapter = linear.adapter.as_mut().expect("attached");
    adapter.bank.a = leaf(expected.tensor::<2>(&name("A"), device).transpose());
    adapter.bank.b = leaf(stacked(expected.tensor(&name("B"), device)));
    let weight = leaf(expected.tensor::<2>(&name("router"), device));
    adapter.router.as_mut().expect("a router").scorer =
        Scorer::Linear(LinearScorer { weight, bias: None });
    linear
}

fn context(mask: Tensor<2>) -> ForwardContext {
    ForwardContext::new(mask)
}

/// Zeros at padding, as the cases have.
fn real(values: Tensor<3>, mask: &Tensor<2>) -> Tensor<3> {
    values * mask.clone().unsqueeze_dim::<3>(2)
}

/// The output with the entries of `A` that the case's mask drops.
fn forward_dropped(
    linear: &MoLoraLinear,
    x: Tensor<3>,
    expected: &Tensors,
    context: &ForwardContext,
) -> (Tensor<3>, RouterOutput) {
    let adapter = linear.adapter.as_ref().expect("attached");
    let keep_dr = expected.tensor::<2>("input.weight_mask", &x.device());
    let keep = 1.0 - adapter.bank.weight_dropout();
    let factors = keep_dr.transpose().div_scalar(keep);
    let low = adapter.bank.down_masked(x.clone(), factors);
    let (delta, routed) = adapter.mix(low, x.clone(), context, None);
    let mut base = linear.clone();
    base.adapter = None;
    (
        base.forward(x, context, None).0 + delta,
        routed.expect("routed"),
    )
}

/// The term and the reduction that make up a case's reading of the balance loss.
const READINGS: [(&str, Term, Reduction); 3] = [
    ("switch", Term::LoadBalance(LoadBalance), Reduction::Mean),
    ("mass", Term::BalanceMass(BalanceMass), Reduction::Sum),
    (
        "literal",
        Term::BalanceLiteral(BalanceLiteral),
        Reduction::Sum,
    ),
];

/// The recipe's objective with another reading and weight.
fn balance(reading: &str, weight: f64) -> ObjectiveConfig {
    let mut objective = recipe::find("mosld").expect("listed").objective;
    let known = READINGS.iter().find(|(name, ..)| *name == reading);
    let (_, term, within_site) = known.expect("a reading of the balance loss").clone();
    let config = &mut objective.terms[0];
    (config.term, config.within_site) = (term, within_site);
    config.weight = weight;
    objective
}

fn evaluate(
    objective: &ObjectiveConfig,
    adapter: &Adapter,
    routed: &RouterOutput,
) -> LossBreakdown {
    objective.evaluate(&[SiteView {
        routed: Some(routed),
        ..SiteView::of_weights(&adapter.bank)
    }])
}

/// One variant of a case, on parameters of its own: a backward pass uses up the graphs that share
/// its parameters.
struct Pass {
    linear: MoLoraLinear,
    x: Tensor<3>,
    y: Tensor<3>,
    routed: RouterOutput,
    total: Tensor<1>,
}

impl Pass {
    fn new(case: &Case, expected: &Tensors, hypers: &Value, device: &Device) -> Self {
        let experts = expected.shape("param.B")[0];
        let rank = expected.shape("param.A")[0];
        let mut spec = spec(case, rank, vec![experts]);
        spec.bank.weight_dropout = hyper(case, "p_drop");
        let linear = site(expected, "param.", &spec, device);
        let x = expected.tensor::<3>("input.x", device).require_grad();
        let context = context(expected.tensor("input.mask", device));
        let (y, routed) = match hypers["mode"] == "train" {
            true => forward_dropped(&linear, x.clone(), expected, &context),
            false => {
                let (y, route) = linear.forward(x.clone(), &context, None);
                (y, route.expect("routed").routed)
            }
        };
        let reading = hypers["balance"].as_str().expect("a reading");
        let objective = balance(reading, hyper(case, "beta"));
        let adapter = linear.adapter.as_ref().expect("attached");
        let total = evaluate(&objective, adapter, &routed).total;
        Self {
            x,
            y,
            total: total.expect("more than one expert"),
            routed,
            linear,
        }
    }

    /// Outputs, decisions and all three readings.
    fn check_values(&self, expected: &Tensors, name: &str) {
        let key = |tensor: &str| format!("{name}.{tensor}");
        let mask = expected.tensor::<2>("input.mask", &self.y.device());
        let y = real(self.y.clone(), &mask);
        expected.assert_close(&key("output.y"), y, FORWARD);
        let probs = real(self.routed.probs.clone(), &mask);
        expected.assert_close(&key("output.probs"), probs, FORWARD);
        let weights = real(self.routed.weights.clone(), &mask);
        expected.assert_close(&key("output.weights"), weights, FORWARD);
        assert_counts(expected, &key("output.counts"), &self.routed);
        let adapter = self.linear.adapter.as_ref().expect("attached");
        for (reading, ..) in READINGS {
            let found = evaluate(&balance(reading, 1.0), adapter, &self.routed);
            let value = found.total.expect("more than one expert");
            expected.assert_close(&key(&format!("aux.balance_{reading}")), value, FORWARD);
        }
        expected.assert_close(&key("aux.total"), self.total.clone(), FORWARD);
    }

    /// Gradients of `value`, one of this pass, under `kind`: `grad` or `aux_grad`.
    fn check_gradients(&self, value: Tensor<1>, expected: &Tensors, kind: &str) {
        let gradients = value.backward();
        let adapter = self.linear.adapter.as_ref().expect("attached");
        let Scorer::Linear(scorer) = &adapter.router.as_ref().expect("a router").scorer else {
            panic!("a linear scorer")
        };
        let of = |param: &burn::module::Param<Tensor<2>>| param.val().grad(&gradients);
        let a = of(&adapter.bank.a).map(Tensor::transpose);
        let [rows, d_output] = adapter.bank.b.dims();
        let experts = adapter.bank.num_experts();
        let b = of(&adapter.bank.b).map(|b| {
            let b_ero = b.reshape([experts, rows / experts, d_output]);
            b_ero.swap_dims(1, 2)
        });
        compare(expected, &format!("{kind}.A"), a);
        compare(expected, &format!("{kind}.B"), b);
        compare(expected, &format!("{kind}.router"), of(&scorer.weight));
        compare(expected, &format!("{kind}.x"), self.x.grad(&gradients));
    }
}

/// Compares a gradient that the case has.
fn compare<const D: usize>(expected: &Tensors, name: &str, found: Option<Tensor<D>>) {
    if expected.has(name) {
        let found = found.unwrap_or_else(|| panic!("{name}: not tracked"));
        expected.assert_close(name, found, GRADIENT);
    }
}

fn assert_counts(expected: &Tensors, name: &str, routed: &RouterOutput) {
    let counts = routed.selection_counts().into_data();
    let counts: Vec<f32> = counts.try_to_vec().expect("f32");
    let counts: Vec<i64> = counts.into_iter().map(|count| count as i64).collect();
    assert_eq!(counts, expected.ints(name), "{name}");
}

#[test]
fn golden_methods_mosld() {
    let device = autodiff_device();
    for case in cases("mosld") {
        let expected = &case.tensors();
        let document = case.json("case.json").expect("it was found by it");
        let variants = document["variants"].as_object().expect("variants");
        assert!(!variants.is_empty(), "{}: no variants", case.name);
        for (name, variant) in variants {
            let pass = || Pass::new(&case, expected, &variant["hyper"], &device);
            let of_penalty = pass();
            let total = of_penalty.total.clone();
            of_penalty.check_gradients(total, expected, &format!("{name}.aux_grad"));
            let whole = pass();
            whole.check_values(expected, name);
            let cotangent = expected.tensor::<3>("input.cotangent", &device);
            let main = (whole.y.clone() * cotangent).sum();
            let objective = main + whole.total.clone();
            whole.check_gradients(objective, expected, &format!("{name}.grad"));
        }
    }
}

#[test]
fn golden_methods_mosld_layers() {
    let device = device();
    for case in cases("mosld_layers") {
        let expected = &case.tensors();
        let document = case.json("case.json").expect("it was found by it");
        let list = document["hyper"]["experts_per_layer"].as_array();
        let list = list.expect("a list of numbers").iter();
        let list: Vec<usize> = list
            .map(|n| n.as_u64().expect("a number") as usize)
            .collect();
        let rank = expected.shape("param.layers.0.A")[0];
        let layers = list.len();
        let spec = spec(&case, rank, list);
        let x = expected.tensor::<3>("input.x", &device);
        let context = context(expected.tensor("input.mask", &device));
        let counts = expected.ints("eval.output.trainable_parameters");
        assert_eq!(
            counts.len(),
            layers,
            "{}: a count for each layer",
            case.name
        );
        let outputs = expected.tensor::<4>("eval.output.y", &device);
        for (layer, &count) in counts.iter().enumerate() {
            let mut of_layer = spec.at_layer(layer, layers);
            // Of a layer alone top-k may not exceed its experts; in the whole model it may.
            let router = of_layer.router.as_mut().expect("a router");
            if let Selection::TopK(top_k) = &mut router.selection {
                *top_k = of_layer.bank.num_experts.min(*top_k);
            }
            let linear = site(
                expected,
                &format!("param.layers.{layer}."),
                &of_layer,
                &device,
            );
            let adapter = linear.adapter.as_ref().expect("attached");
            assert_eq!(adapter.num_params() as i64, count, "layer {layer}");
            let (y, route) = linear.forward(x.clone(), &context, None);
            let routed = route.expect("routed").routed;
            let expected_y = outputs.clone().narrow(0, layer, 1).squeeze_dim::<3>(0);
            let what = format!("{}: output of layer {layer}", case.name);
            assert_close(real(y, &context.mask), expected_y, FORWARD, &what);
            let key = |name: &str| format!("eval.output.layers.{layer}.{name}");
            let weights = real(routed.weights.clone(), &context.mask);
            expected.assert_close(&key("weights"), weights, FORWARD);
            assert_counts(expected, &key("counts"), &routed);
        }
    }
}
