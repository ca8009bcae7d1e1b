//! What is attached to a site: experts, a router and a task gate.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use molora_adapters::{ExpertBank, GeneralExpert, Mixing, TaskGate};
use molora_parts::{Axis, ParameterKind, PartTensor};
use molora_routing::{RouteInput, Router, RouterOutput};

use crate::ForwardContext;

/// What the router of a site reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// The site's input.
    Input,
    /// The low-rank code.
    LowRank,
    /// The input as `A` reads it, behind dropout.
    Dropped,
    /// What a first pass left, of this width.
    FirstPass(usize),
}

/// The trainable part of one site.
#[derive(Module, Debug)]
pub struct Adapter {
    /// The experts.
    pub bank: ExpertBank,
    /// How they are weighed.
    pub router: Option<Router>,
    /// How strongly the mixture acts for each task.
    pub gate: Option<TaskGate>,
    /// Norm of the weight of each output, `[O]` (DoRA).
    pub magnitude: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(crate) reads: Reads,
    #[module(skip)]
    pub(crate) general: Option<GeneralExpert>,
    /// Whether it stands beside the whole feed-forward part that its linear layer ends.
    pub(crate) is_beside: bool,
    pub(crate) site: usize,
}

impl Adapter {
    /// A bank alone: every expert has weight 1.
    pub(crate) fn of_bank(bank: ExpertBank, site: usize) -> Self {
        Self {
            bank,
            router: None,
            gate: None,
            magnitude: None,
            reads: Reads::Input,
            general: None,
            is_beside: false,
            site,
        }
    }

    /// Every tensor of its parts.
    pub fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let mut tensors = self.bank.tensors();
        tensors.extend(self.router.iter_mut().flat_map(Router::tensors));
        tensors.extend(self.gate.iter_mut().flat_map(TaskGate::tensors));
        tensors.extend(self.magnitude.iter_mut().map(|magnitude| {
            let outputs = [Axis::Output.of(magnitude.dims()[0])];
            let name = "lora_magnitude_vector"; // PEFT's
            PartTensor::vector(name, ParameterKind::Adapters, magnitude, &outputs)
        }));
        tensors
    }

    /// Whether the adapter stands beside the whole feed-forward part that its linear layer ends, and reads that
    /// part's input.
    pub fn is_beside(&self) -> bool {
        self.is_beside
    }

    /// Number of the site among the model's sites.
    pub fn site(&self) -> usize {
        self.site
    }

    /// The frozen layer's output `base` `[B, T, O]` plus the delta of the mixture for inputs
    /// `[B, T, D]`, the decisions of the site's own router, if it has one, and the low-rank code, if
    /// the context keeps codes.
    ///
    /// `shared` are the decisions of the layer's router, which weigh the experts of a site that has
    /// no router of its own.
    ///
    /// # Panics
    /// If the adapter reads tasks and the context has none.
    pub fn add_delta(
        &self,
        base: Tensor<3>,
        x: Tensor<3>,
        context: &ForwardContext,
        shared: Option<&RouterOutput>,
    ) -> (Tensor<3>, Option<RouterOutput>, Option<Tensor<3>>) {
        let dropout = context.dropout.map(|seed| seed.index(self.site as u64));
        let base = self.bank.less_start(Some(base), &x);
        let low = self.bank.down(x.clone(), dropout);
        let tasks = context.tasks.as_ref();
        let code = context
            .keeps_codes
            .then(|| self.bank.core.apply(low.clone(), tasks));
        let (weights, own) = self.weigh(&low, x, context, shared);
        let routed = own.as_ref().or(shared);
        let is_selection = routed.is_some_and(RouterOutput::is_selection);
        let mixing = Mixing {
            weights,
            is_selection,
            tasks: context.tasks.as_ref(),
        };
        (self.bank.mix(base, low, mixing), own, code)
    }

    /// As [`add_delta`](Self::add_delta) with the same weight for every expert, whatever routers say.
    pub(crate) fn add_fixed(&self, base: Tensor<3>, x: Tensor<3>, weight: f64) -> Tensor<3> {
        let shape = [1, 1, self.bank.choices()];
        let weights = Tensor::full(shape, weight, &base.device());
        let base = self.bank.less_start(Some(base), &x);
        let low = self.bank.down(x, None);
        let mixing = Mixing {
            weights: Some(weights),
            ..Mixing::default()
        };
        self.bank.mix(base, low, mixing)
    }

    /// As [`add_delta`](Self::add_delta) for rows that no decision is for; `is_routed` gives each
    /// expert the same share.
    pub(crate) fn add_undecided(
        &self,
        base: Tensor<3>,
        x: Tensor<3>,
        context: &ForwardContext,
        is_routed: bool,
    ) -> Tensor<3> {
        let dropout = context.dropout.map(|seed| seed.index(self.site as u64));
        let base = self.bank.less_start(Some(base), &x);
        let low = self.bank.down(x, dropout);
        let weights = is_routed.then(|| same_shares(self.bank.choices(), &low));
        let mixing = Mixing {
            weights: self.gated(weights, context),
            is_selection: false,
            tasks: context.tasks.as_ref(),
        };
        self.bank.mix(base, low, mixing)
    }

    /// As [`add_delta`](Self::add_delta) under decisions `[B, 1, E]` that were taken before.
    pub(crate) fn add_decided(
        &self,
        base: Tensor<3>,
        x: Tensor<3>,
        context: &ForwardContext,
        decided: &RouterOutput,
    ) -> Tensor<3> {
        let dropout = context.dropout.map(|seed| seed.index(self.site as u64));
        let weights = self.with_general(Some(decided.weights.clone()));
        let base = self.bank.less_start(Some(base), &x);
        let low = self.bank.down(x, dropout);
        let weights = self.gated(weights, context);
        let mixing = Mixing {
            weights,
            is_selection: decided.is_selection(),
            tasks: context.tasks.as_ref(),
        };
        self.bank.mix(base, low, mixing)
    }

    /// The gated weights `[B, T', E]` of the experts under decisions that were taken; none where
    /// every expert has weight 1.
    pub(crate) fn decided_weights(
        &self,
        decided: Option<&RouterOutput>,
        context: &ForwardContext,
    ) -> Option<Tensor<3>> {
        let weights = decided.map(|decided| decided.weights.clone());
        self.gated(self.with_general(weights), context)
    }

    /// The delta `[B, T, O]` for inputs `[B, T, D]` whose low-rank code `[B, T, A*R]` is given, for
    /// example one with an explicit mask from [`ExpertBank::down_masked`]; otherwise as
    /// [`add_delta`](Self::add_delta).
    ///
    /// # Panics
    /// If the adapter reads tasks and the context has none.
    pub fn mix(
        &self,
        low: Tensor<3>,
        x: Tensor<3>,
        context: &ForwardContext,
        shared: Option<&RouterOutput>,
    ) -> (Tensor<3>, Option<RouterOutput>) {
        let base = self.bank.less_start(None, &x);
        let (weights, own) = self.weigh(&low, x, context, shared);
        let mixing = Mixing {
            weights,
            is_selection: false,
            tasks: context.tasks.as_ref(),
        };
        (self.bank.mix(base, low, mixing), own)
    }

    /// The gated weights of the experts, and the decisions of the site's own router.
    fn weigh(
        &self,
        low: &Tensor<3>,
        x: Tensor<3>,
        context: &ForwardContext,
        shared: Option<&RouterOutput>,
    ) -> (Option<Tensor<3>>, Option<RouterOutput>) {
        let own = self.router.as_ref().map(|router| {
            let key = context.dropout.map(|seed| seed.index(self.site as u64));
            let (features, factor) = match self.reads {
                Reads::Input => (x, None),
                Reads::LowRank => (low.clone(), None),
                Reads::Dropped => (self.bank.dropped(x, key), None),
                Reads::FirstPass(_) => {
                    let states = context.first_pass.as_ref();
                    let states = states.expect("a model with such sites runs a first pass");
                    let features = states.features.clone().expect("set where a layer begins");
                    (features, Some(states.global_weight))
                }
            };
            let input = RouteInput {
                features,
                mask: context.mask.clone(),
                tasks: context.tasks.clone(),
                columns: router.reads_columns().then(|| self.bank.a_matrix()),
            };
            let mut routed = router.route_in_training(&input, &context.guidance, key);
            if let Some(factor) = factor {
                routed.weights = routed.weights.mul_scalar(factor);
            }
            routed
        });
        let weights = own.as_ref().or(shared).map(|routed| routed.weights.clone());
        (self.gated(self.with_general(weights), context), own)
    }

    /// Weights `[B, T', E]` as `[B, T', E + 1]` where a general expert takes its share.
    fn with_general(&self, weights: Option<Tensor<3>>) -> Option<Tensor<3>> {
        match (self.general, weights) {
            (Some(general), Some(weights)) => Some(general.joined(weights)),
            (_, weights) => weights,
        }
    }

    /// The gate multiplies the experts' weights, which are smaller than the output.
    fn gated(&self, weights: Option<Tensor<3>>, context: &ForwardContext) -> Option<Tensor<3>> {
        let Some(gate) = &self.gate else {
            return weights;
        };
        let tasks = context
            .tasks
            .clone()
            .expect("a gated adapter is given tasks");
        let gate_b11 = gate.forward(tasks);
        Some(match weights {
            Some(weights) => weights * gate_b11,
            None => {
                let rows = gate_b11.dims()[0];
                gate_b11.expand([rows, 1, self.bank.choices()])
            }
        })
    }
}

/// Weights `[1, 1, E]` that add up to 1, on the device of another tensor.
pub(crate) fn same_shares(experts: usize, like: &Tensor<3>) -> Tensor<3> {
    Tensor::full([1, 1, experts], 1.0 / experts as f64, &like.device())
}
