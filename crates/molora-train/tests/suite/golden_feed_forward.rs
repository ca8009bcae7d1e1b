//! Mixtures in gated feed-forward parts, against the cases `mixlora_ffn` and `straight_through_ffn`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use molora_adapters::Scaling;
use molora_kernels::random::Seed;
use molora_models::{
    Adaptable, AdapterSpec, Composition, Decoder, ForwardContext, RouteTrace, RouterScope,
};
use molora_regularize::{
    ObjectiveConfig, Reduction, SiteView, load_balance, sequence_gini, token_gini,
};
use molora_routing::{RouterOutput, Selection};
use molora_testkit::golden::Tensors;
use molora_testkit::{FORWARD, GRADIENT, assert_close, autodiff_device};
use molora_train::recipe;

use crate::cases::cases;
use crate::common::write_tensors;
use crate::golden_layer::Variant;

/// A part of a gated feed-forward in cases and in a Llama's files.
const PARTS: [(&str, &str); 3] = [
    ("gate", "gate_proj"),
    ("up", "up_proj"),
    ("down", "down_proj"),
];

#[test]
fn golden_methods_mixlora_ffn() {
    let device = autodiff_device();
    for case in cases("mixlora_ffn") {
        let (document, expected) = (case.json("case.json").expect("found by it"), case.tensors());
        for variant in Variant::all(&document, &expected) {
            let mut recipe = recipe::find("mixlora").expect("listed");
            recipe.adapter.router.as_mut().expect("a router").selection =
                Selection::TopK(variant.number("top_k") as usize);
            recipe.objective.terms[0].weight = variant.number("balance_coefficient");
            let stack = Stack::new(&variant, &recipe.adapter, &[""], &device);
            let names = [variant.key("aux.balance")];
            stack.check(
                &variant,
                |x| {
                    let (y, routes) = stack.model.feed_forward(0, x, &stack.context);
                    variant.check_tokens("output.weights", routes[0].routed.weights.clone());
                    (y, routes)
                },
                |routes| stack.total(&recipe.objective, routes, &names),
            );
        }
    }
}

/// Hard-routed MoR-LoRA: one router for all feed-forward parts, and one expert for gate, up and down.
#[test]
fn golden_methods_straight_through_ffn() {
    let device = autodiff_device();
    for case in cases("straight_through_ffn") {
        let (document, expected) = (case.json("case.json").expect("found by it"), case.tensors());
        for variant in Variant::all(&document, &expected) {
            let mut spec = recipe::find("mixlora").expect("listed").adapter;
            spec.composition = Composition::FeedForwardSites;
            spec.router_scope = RouterScope::Model;
            spec.router.as_mut().expect("a router").selection = Selection::StraightThrough;
            let layers = variant.number("layers") as usize;
            let prefixes: Vec<_> = (0..layers).map(|l| format!("layers.{l}.")).collect();
            let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
            let stack = Stack::new(&variant, &spec, &prefixes, &device);
            stack.check(
                &variant,
                |x| stack.blocks(&variant, x),
                |routes| losses(&variant, routes),
            );
        }
    }
}

/// The weighted sum of the terms that the variant has. The released Gini terms read the mean of the
/// probabilities over layers.
fn losses(variant: &Variant, routes: &[RouteTrace]) -> Option<Tensor<1>> {
    let weight = |name: &str| variant.hyper(name).and_then(|value| value.as_f64());
    let layers = routes.len() as f64;
    let each = routes
        .iter()
        .map(|route| load_balance(&route.routed, Reduction::Mean));
    let balance = each
        .reduce(|sum, of_layer| sum + of_layer)?
        .div_scalar(layers);
    let probs = routes.iter().map(|route| route.routed.probs.clone());
    let mean = RouterOutput {
        probs: probs
            .reduce(|sum, of_layer| sum + of_layer)?
            .div_scalar(layers),
        ..routes[0].routed.clone()
    };
    let terms = [
        ("balance", balance),
        ("token_gini", token_gini(&mean, Reduction::Mean)),
        ("sequence_gini", sequence_gini(&mean, Reduction::Mean)),
    ];
    let weighed = terms.into_iter().filter_map(|(name, value)| {
        let weight = weight(name)?;
        variant.check(&format!("aux.{name}"), value.clone());
        Some(value.mul_scalar(weight))
    });
    weighed.reduce(|sum, term| sum + term)
}

impl Stack<'_> {
    /// `h + feed_forward(h)`, block after block.
    fn blocks(&self, variant: &Variant, x: Tensor<3>) -> (Tensor<3>, Vec<RouteTrace>) {
        let (mut h, mut routes) = (x, Vec::new());
        for layer in 0..self.prefixes.len() {
            let (y, decided) = self.model.feed_forward(layer, h.clone(), &self.context);
            let routed = &decided[0].routed;
            let name = |what: &str| format!("output.layers.{layer}.{what}");
            variant.check_tokens(&name("probs"), routed.probs.clone());
            let selected = routed.selected.clone().expect("one of them").float();
            variant.check_tokens(&name("selected"), selected);
            h = h + y;
            routes.extend(decided);
        }
        (h, routes)
    }
}

/// Feed-forward parts of a Llama with the parameters of a case.
struct Stack<'a> {
    model: Decoder,
    context: ForwardContext,
    expected: &'a Tensors,
    /// In front of a layer's parameters in the case.
    prefixes: Vec<String>,
    device: Device,
}

impl<'a> Stack<'a> {
    fn new(variant: &Variant<'a>, spec: &AdapterSpec, prefixes: &[&str], device: &Device) -> Self {
        let expected = variant.expected;
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_llama(folder.path(), expected, prefixes);
        let mut model = Decoder::from_folder(folder.path(), device).expect("a whole model");
        let mut spec = spec.clone();
        let shape = expected.shape(&format!("param.{}gate.A", prefixes[0]));
        (spec.bank.num_experts, spec.bank.rank) = (shape[0], shape[1]);
        let scaling = match expected.has("input.scaling") {
            true => 1.0,
            false => variant.number("scaling"),
        };
        spec.bank.scaling = Scaling::AlphaOverRank(scaling * shape[1] as f64);
        let attached = model.attach(&spec, 0, Seed::new(0), device);
        attached.expect("a valid specification");
        let prefixes: Vec<_> = prefixes.iter().map(|&prefix| prefix.to_owned()).collect();
        let visited = model.visit_tensors(|path, mut tensor| {
            if let Some(name) = name_in_case(&prefixes, path, tensor.name()) {
                let mut values = expected.floats(&format!("param.{name}"));
                scale(&mut values, expected, tensor.name());
                tensor.set(&values);
            }
            Ok::<_, Infallible>(())
        });
        let Ok(()) = visited;
        Self {
            model,
            context: ForwardContext::new(expected.tensor("input.mask", device)),
            expected,
            prefixes,
            device: device.clone(),
        }
    }

    /// Compares outputs, the weighted sum of `terms` and every gradient that the variant has; `forward`
    /// and `terms` compare what else there is. Gradients of the terms alone need a pass of their own: a pass uses its graph up.
    fn check(
        &self,
        variant: &Variant,
        forward: impl Fn(Tensor<3>) -> (Tensor<3>, Vec<RouteTrace>),
        terms: impl Fn(&[RouteTrace]) -> Option<Tensor<1>>,
    ) {
        for kind in ["aux_grad", "grad"] {
            let x = self.expected.tensor::<3>("input.x", &self.device);
            let x = x.require_grad();
            let (y, routes) = forward(x.clone());
            variant.check_tokens("output.y", y.clone());
            let total = terms(&routes);
            if let Some(total) = &total {
                variant.check("aux.total", total.clone());
            }
            let cotangent = self.expected.tensor::<3>("input.cotangent", &self.device);
            let of = match (kind, total) {
                ("aux_grad", None) => continue,
                ("aux_grad", Some(total)) => total,
                (_, total) => {
                    let main = (y * cotangent).sum();
                    let sum = total.into_iter().fold(main, |sum, total| sum + total);
                    variant.check("objective", sum.clone());
                    sum
                }
            };
            self.check_gradients(variant, kind, &x, &of.backward());
        }
    }

    /// The weighted terms; their own values are compared with `names`.
    fn total(
        &self,
        objective: &ObjectiveConfig,
        routes: &[RouteTrace],
        names: &[String],
    ) -> Option<Tensor<1>> {
        let sites = self.model.sites();
        let view = |(_, adapter): &(String, &'_ molora_models::Adapter)| {
            routes.iter().find(|route| route.site == adapter.site())
        };
        let lent: Vec<_> = sites.iter().map(view).collect();
        let views = sites
            .iter()
            .zip(lent)
            .map(|((_, adapter), route)| SiteView {
                routed: route.map(|route| &route.routed),
                ..SiteView::of_weights(&adapter.bank)
            });
        let found = objective.evaluate(&views.collect::<Vec<_>>());
        for (name, (_, value)) in names.iter().zip(&found.terms) {
            self.expected.assert_close(name, value, FORWARD);
        }
        found.total
    }

    fn check_gradients(&self, variant: &Variant, kind: &str, x: &Tensor<3>, found: &Gradients) {
        let mut compared = 0;
        let visited = self.model.clone().visit_tensors(|path, tensor| {
            let name = name_in_case(&self.prefixes, path, tensor.name());
            let key = name.map(|name| variant.key(&format!("{kind}.{name}")));
            let key: Option<String> = key.filter(|key: &String| self.expected.has(key));
            if let Some(key) = key {
                let gradient = tensor.gradient(found);
                let mut gradient = gradient.unwrap_or_else(|| panic!("{key}: not reached"));
                scale(&mut gradient, self.expected, tensor.name());
                let gradient = TensorData::new(gradient, self.expected.shape(&key));
                self.expected.assert_close(&key, gradient, GRADIENT);
                compared += 1;
            }
            Ok::<_, Infallible>(())
        });
        let Ok(()) = visited;
        assert!(compared > 0, "{kind}: no gradient was compared");
        let name = variant.key(&format!("{kind}.x"));
        if self.expected.has(&name) {
            let mask = self
                .expected
                .tensor::<2>("input.mask", &self.device.clone().inner());
            let to_x = x.grad(found).expect("reached") * mask.unsqueeze_dim(2);
            assert_close(to_x, self.expected.data(&name), GRADIENT, &name);
        }
    }
}

/// Multiplies up-projections by the scaling that each expert has of its own, where a case has one; the
/// gradient of what was multiplied becomes that of the original in the same way.
fn scale(values: &mut [f32], expected: &Tensors, tensor: &str) {
    if tensor == "experts.lora_B" && expected.has("input.scaling") {
        let scaling = expected.floats("input.scaling");
        let each = values.len() / scaling.len();
        for (values, factor) in values.chunks_mut(each).zip(scaling) {
            values.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

/// What a case calls a tensor at a path of the model.
fn name_in_case(prefixes: &[String], path: &str, tensor: &str) -> Option<String> {
    if tensor == "router.weight" {
        return Some("router".into());
    }
    let matrix = tensor.strip_prefix("experts.lora_")?;
    let is_of = |layer: &usize| path.contains(&format!("layers.{layer}.mlp"));
    let layer = (0..prefixes.len()).find(is_of)?;
    let (part, _) = PARTS.iter().find(|(_, name)| path.ends_with(name))?;
    let prefix = &prefixes[layer];
    Some(format!("{prefix}{part}.{matrix}"))
}

/// A Llama whose feed-forward parts are those of a case; everything else is zero.
fn write_llama(folder: &Path, expected: &Tensors, prefixes: &[&str]) {
    // No narrower than the experts' rank, which attention has too.
    let head = 2 * expected.shape(&format!("param.{}gate.A", prefixes[0]))[1];
    let weight = |prefix: &str, part: &str| format!("param.{prefix}{part}.W0");
    let shape = expected.shape(&weight(prefixes[0], "gate"));
    let (inner, width) = (shape[0], shape[1]);
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 1, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": prefixes.len(), "num_attention_heads": 1, "num_key_value_heads": 1,
        "head_dim": head, "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 8,
        "rope_theta": 10000.0, "tie_word_embeddings": true,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("writable");
    let zeros = |shape: &[usize]| (shape.to_vec(), vec![0.0; shape.iter().product()]);
    let mut tensors = BTreeMap::new();
    tensors.insert("model.embed_tokens.weight".to_owned(), zeros(&[1, width]));
    tensors.insert("model.norm.weight".into(), zeros(&[width]));
    for (layer, prefix) in prefixes.iter().enumerate() {
        let path = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for part in ["q_proj", "k_proj", "v_proj"] {
            tensors.insert(path(&format!("self_attn.{part}")), zeros(&[head, width]));
        }
        tensors.insert(path("self_attn.o_proj"), zeros(&[width, head]));
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.insert(path(norm), zeros(&[width]));
        }
        for (part, name) in PARTS {
            let weight = weight(prefix, part);
            let values = (expected.shape(&weight), expected.floats(&weight));
            tensors.insert(path(&format!("mlp.{name}")), values);
        }
    }
    write_tensors(&folder.join("model.safetensors"), &tensors);
}
