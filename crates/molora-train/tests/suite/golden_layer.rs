//! One adapted layer of a case, filled and compared tensor by tensor, whatever its parts are.

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use molora_adapters::{Scaling, task_selector};
use molora_models::{AdapterSpec, ForwardContext, MoLoraLinear, RouteTrace};
use molora_regularize::{ObjectiveConfig, SiteView, TermConfig};
use molora_testkit::golden::Tensors;
use molora_testkit::{FORWARD, GRADIENT, assert_close};
use molora_train::recipe;

use crate::common;
pub(crate) use crate::golden_routing::site::Variant;

/// Every matrix of independent or shared experts and a linear router, by its name in cases.
pub(crate) const LINEAR: [(&str, &str); 3] = [
    ("A", "experts.lora_A"),
    ("B", "experts.lora_B"),
    ("router", "router.weight"),
];

/// The recipe's specification with the variant's scaling and the case's number of experts and rank.
pub(crate) fn spec(
    variant: &Variant,
    recipe: &str,
    num_experts: usize,
    rank: usize,
) -> AdapterSpec {
    let mut spec = recipe::find(recipe).expect("listed").adapter;
    (spec.bank.num_experts, spec.bank.rank) = (num_experts, rank);
    spec.bank.scaling = Scaling::AlphaOverRank(variant.number("scaling") * rank as f64);
    spec
}

/// A frozen part, `[B, T, D]` to `[B, T, D]`.
pub(crate) type Beside = Box<dyn Fn(Tensor<3>) -> Tensor<3>>;

/// An adapted layer that has the parameters of a case.
pub(crate) struct Layer<'a> {
    pub(crate) linear: MoLoraLinear,
    pub(crate) context: ForwardContext,
    expected: &'a Tensors,
    names: Vec<(&'a str, &'a str)>,
    turned: Vec<(&'a str, Vec<usize>)>,
    /// Factors of the inputs that the adapter reads: a dropout mask of a case.
    pub(crate) kept: Option<Tensor<3>>,
    /// What the frozen part that the layer stands beside makes of its input.
    pub(crate) beside: Option<Beside>,
    device: Device,
}

impl<'a> Layer<'a> {
    /// A layer of `spec`, on which each tensor of `names` has the values of the case's parameter:
    /// pairs of the name in the case, behind `param.`, and in files.
    pub(crate) fn new(
        expected: &'a Tensors,
        spec: &AdapterSpec,
        names: &[(&'a str, &'a str)],
        num_tasks: usize,
        device: &Device,
    ) -> Self {
        Self::below(expected, "param", spec, names, num_tasks, device)
    }

    /// The same for a layer whose frozen weight and bias have another prefix, as `param.layers.0`.
    pub(crate) fn below(
        expected: &'a Tensors,
        prefix: &str,
        spec: &AdapterSpec,
        names: &[(&'a str, &'a str)],
        num_tasks: usize,
        device: &Device,
    ) -> Self {
        let weight = expected.tensor(&format!("{prefix}.W0"), device);
        let bias = Some(expected.tensor(&format!("{prefix}.bias"), device));
        let linear = common::adapted(weight, bias, spec, num_tasks, device);
        Self::filled(expected, linear, names, device)
    }

    /// The same for a layer beside a frozen part: it has no frozen weight of its own.
    pub(crate) fn beside(
        expected: &'a Tensors,
        width: usize,
        spec: &AdapterSpec,
        names: &[(&'a str, &'a str)],
        device: &Device,
        part: Beside,
    ) -> Self {
        let weight = Tensor::zeros([width, width], device);
        let linear = common::adapted(weight, None, spec, 0, device);
        Self {
            beside: Some(part),
            ..Self::filled(expected, linear, names, device)
        }
    }

    fn filled(
        expected: &'a Tensors,
        linear: MoLoraLinear,
        names: &[(&'a str, &'a str)],
        device: &Device,
    ) -> Self {
        let mut layer = Self {
            linear,
            context: ForwardContext::new(expected.tensor("input.mask", device)),
            expected,
            names: names.to_vec(),
            turned: Vec::new(),
            kept: None,
            beside: None,
            device: device.clone(),
        };
        for (of_case, name) in names {
            layer.set(name, &expected.floats(&format!("param.{of_case}")));
        }
        layer
    }

    /// The same with one more tensor, whose dimensions come in another order in files: `order` gives the
    /// case's dimension at each place of the file's.
    pub(crate) fn turned(mut self, of_case: &'a str, name: &'a str, order: &[usize]) -> Self {
        let of_param = format!("param.{of_case}");
        let values = self.expected.floats(&of_param);
        let (values, _) = permuted(&values, &self.expected.shape(&of_param), order);
        self.set(name, &values);
        self.names.push((of_case, name));
        self.turned.push((of_case, order.to_vec()));
        self
    }

    /// Replaces the values of a tensor, in the order of files.
    pub(crate) fn set(&mut self, name: &str, values: &[f32]) {
        let adapter = self.linear.adapter.as_mut().expect("attached");
        let mut tensors = adapter.tensors();
        let known: Vec<_> = tensors.iter().map(|tensor| tensor.name()).collect();
        let tensor = tensors.iter_mut().find(|tensor| tensor.name() == name);
        let tensor = tensor.unwrap_or_else(|| panic!("no tensor {name} among {known:?}"));
        tensor.set(values);
    }

    /// Gives the rows the tasks of `input.task`; a negative number is an unknown task.
    pub(crate) fn with_tasks(mut self, num_tasks: usize) -> Self {
        let rows = self.expected.ints("input.task").into_iter();
        let rows: Vec<_> = rows.map(|task| usize::try_from(task).ok()).collect();
        let tasks = task_selector(&rows, num_tasks, &self.device).expect("in range");
        self.context.tasks = Some(tasks);
        self
    }

    /// The output and the decisions.
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        keeps_codes: bool,
    ) -> (Tensor<3>, Option<RouteTrace>) {
        let context = ForwardContext {
            keeps_codes,
            ..self.context.clone()
        };
        if let Some(beside) = &self.beside {
            let (y, route) = self.linear.forward(x.clone(), &context, None);
            return (y + beside(x), route);
        }
        let Some(kept) = &self.kept else {
            return self.linear.forward(x, &context, None);
        };
        let adapter = self.linear.adapter.as_ref().expect("attached");
        let read = x.clone() * kept.clone();
        let low = adapter.bank.down(read.clone(), None);
        let (delta, routed) = adapter.mix(low, read, &context, None);
        let route = routed.map(|routed| RouteTrace::new(adapter.site(), routed));
        (self.linear.base(x) + delta, route)
    }

    /// Compares output, weights, terms and every gradient that the variant has. `terms` are the
    /// objective's, each with the name behind `aux.` in the case.
    pub(crate) fn check(&self, variant: &Variant, terms: &[(&str, TermConfig)]) {
        let objective = ObjectiveConfig {
            terms: terms.iter().map(|(_, term)| term.clone()).collect(),
        };
        let x = || {
            let x = self.expected.tensor::<3>("input.x", &self.device);
            x.require_grad()
        };
        // A backward pass uses up every graph that shares its parameters: one pass for the terms alone.
        if !terms.is_empty() && variant.has_gradients("grad") {
            let x = x();
            let (_, route) = self.forward(x.clone(), objective.reads_codes());
            if let Some(total) = self.total(&objective, route.as_ref(), &[]) {
                self.check_gradients(variant, "aux_grad", &x, &total.backward());
            }
        }
        let x = x();
        let (y, route) = self.forward(x.clone(), objective.reads_codes());
        variant.check_tokens("output.y", y.clone());
        if let Some(route) = &route {
            self.check_weights(variant, route);
        }
        let names: Vec<_> = terms
            .iter()
            .map(|(name, _)| variant.key(&format!("aux.{name}")))
            .collect();
        let total = self.total(&objective, route.as_ref(), &names);
        if let Some(total) = &total {
            variant.check("aux.total", total.clone());
        }
        if variant.has_gradients("grad") {
            let cotangent = self.expected.tensor::<3>("input.cotangent", &self.device);
            let products = y * cotangent;
            let size = products.clone().abs().sum().into_scalar::<f32>();
            let main = products.sum();
            let objective = total.into_iter().fold(main, |sum, total| sum + total);
            // Terms of both signs: rounding is that of their sizes, and not of what is left of them.
            let name = variant.key("objective");
            let expected = self.expected.floats(&name)[0];
            let found = objective.clone().into_scalar::<f32>();
            let allowed = FORWARD * size.max(expected.abs()) + 1e-7;
            assert!(
                (found - expected).abs() <= allowed,
                "{name}: got {found}, expected {expected}"
            );
            self.check_gradients(variant, "grad", &x, &objective.backward());
        }
    }

    /// The weighted terms of the objective; their unweighted values are compared with `names`.
    pub(crate) fn total(
        &self,
        objective: &ObjectiveConfig,
        route: Option<&RouteTrace>,
        names: &[String],
    ) -> Option<Tensor<1>> {
        let adapter = self.linear.adapter.as_ref().expect("attached");
        let site = SiteView {
            keys: adapter.router.as_ref().and_then(|router| router.keys()),
            routed: route.map(|route| &route.routed),
            tasks: self.context.tasks.clone(),
            code: route.and_then(|route| route.code.clone()),
            ..SiteView::of_weights(&adapter.bank)
        };
        let found = objective.evaluate(&[site]);
        assert_eq!(found.terms.len(), objective.terms.len(), "every term");
        for (name, (_, value)) in names.iter().zip(&found.terms) {
            // A term without a name is compared by its parts, elsewhere.
            if !name.ends_with('.') {
                self.expected.assert_close(name, value, FORWARD);
            }
        }
        found.total
    }

    fn check_weights(&self, variant: &Variant, route: &RouteTrace) {
        let weights = route.routed.weights.clone();
        let name = variant.key("output.weights");
        match self.expected.has(&name).then(|| self.expected.shape(&name)) {
            // Of a whole sequence: `[B, E]`.
            Some(shape) if shape.len() == 2 => {
                let weights = weights.reshape([shape[0], shape[1]]);
                self.expected.assert_close(&name, weights, FORWARD);
            }
            // Of groups: `[B, T, G, E]`.
            Some(shape) if shape.len() == 4 => self.check_grouped(&name, weights),
            Some(_) => variant.check_tokens("output.weights", weights),
            None => {}
        }
    }

    /// Compares weights `[B, T*G, E]` of real tokens with the case's `[B, T, G, E]`.
    pub(crate) fn check_grouped(&self, name: &str, weights: Tensor<3>) {
        let expected = self.expected.tensor::<4>(name, &self.device);
        let mask = self.expected.tensor::<2>("input.mask", &self.device);
        let mask = mask.unsqueeze_dim::<3>(2).unsqueeze_dim::<4>(3);
        let weights = weights.reshape(expected.dims()) * mask.clone();
        assert_close(weights, expected * mask, FORWARD, name);
    }

    /// Compares every gradient of a kind, `grad` or `aux_grad`, that the variant has.
    pub(crate) fn check_gradients(
        &self,
        variant: &Variant,
        kind: &str,
        x: &Tensor<3>,
        found: &Gradients,
    ) {
        let mut adapter = self.linear.adapter.clone().expect("attached");
        for tensor in adapter.tensors() {
            let of_case = self.names.iter().find(|(_, name)| *name == tensor.name());
            let Some((of_case, _)) = of_case else {
                continue;
            };
            let name = variant.key(&format!("{kind}.{of_case}"));
            if self.expected.has(&name) {
                let gradient = tensor.gradient(found);
                let gradient = gradient.unwrap_or_else(|| panic!("{name}: not reached"));
                let shape = self.expected.shape(&name);
                let turned = self.turned.iter().find(|(turned, _)| turned == of_case);
                let gradient = match turned {
                    Some((_, order)) => turned_back(&gradient, &shape, order),
                    None => gradient,
                };
                let gradient = TensorData::new(gradient, shape);
                self.expected.assert_close(&name, gradient, GRADIENT);
            }
        }
        let name = variant.key(&format!("{kind}.x"));
        if self.expected.has(&name) {
            let mask = self
                .expected
                .tensor::<2>("input.mask", &self.device.clone().inner());
            let to_x = x.grad(found).expect("reached") * mask.unsqueeze_dim(2);
            let expected = self.expected.data(&name);
            assert_close(to_x, expected, GRADIENT, &name);
        }
    }
}

/// Values of a shape with its dimensions in another order, and their shape.
fn permuted(values: &[f32], shape: &[usize], order: &[usize]) -> (Vec<f32>, Vec<usize>) {
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim] * shape[dim];
    }
    let sizes: Vec<usize> = order.iter().map(|&dim| shape[dim]).collect();
    let place = |mut rest: usize| {
        let mut place = 0;
        for (&dim, &size) in order.iter().zip(&sizes).rev() {
            place += rest % size * strides[dim];
            rest /= size;
        }
        place
    };
    (
        (0..values.len()).map(|at| values[place(at)]).collect(),
        sizes,
    )
}

/// What [`permuted`] has turned, in the order of before.
fn turned_back(values: &[f32], shape: &[usize], order: &[usize]) -> Vec<f32> {
    let sizes: Vec<usize> = order.iter().map(|&dim| shape[dim]).collect();
    let back: Vec<usize> = (0..order.len())
        .map(|dim| {
            order
                .iter()
                .position(|&other| other == dim)
                .expect("an order")
        })
        .collect();
    permuted(values, &sizes, &back).0
}
