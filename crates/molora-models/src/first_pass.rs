//! A first pass that decides for all sites of a model. X-LoRA, arXiv:2402.07148.
//!
//! ```text
//! c = last hidden state of a pass in which every expert has weight v, without gradient
//! f = c, or relu(.. relu(c W_1 + b_1) ..) with hidden layers
//! w = router(f)                     one decision for all sites, or one at each site
//! y = x W0 + b + global * sum_e w_e s_e B_e A_e x          in the second pass, at every site
//! ```

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation::relu};
use molora_kernels::linear;
use molora_kernels::random::{Seed, uniform};
use molora_parts::{Axis, ParameterKind, PartTensor};
use molora_routing::{RouteInput, Router, RouterOutput};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ForwardContext, ModelError};

/// Numbers of a first pass that decides for all sites.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FirstPassConfig {
    /// Whether every site has a router of its own, on the same hidden states.
    pub layerwise: bool,
    /// Layers of the classifier: 1 is the router alone, each more is a layer of `width` units with a
    /// ReLU in front of it.
    pub depth: usize,
    /// Units of a hidden layer of the classifier.
    pub width: usize,
    /// Probability of dropping a hidden unit of the classifier in training.
    pub dropout: f64,
    /// Weight of every expert in the first pass; with 0 it is the base model's.
    pub scaling_pass_value: f64,
    /// Factor on all weights in the second pass.
    pub global_weight: f64,
}

impl Default for FirstPassConfig {
    /// X-LoRA's: one decision for all sites by a linear layer on the base model's last state.
    fn default() -> Self {
        Self {
            layerwise: false,
            depth: 1,
            width: 2048,
            dropout: 0.2,
            scaling_pass_value: 0.0,
            global_weight: 1.0,
        }
    }
}

impl FirstPassConfig {
    /// Checks every number.
    pub(crate) fn validate(&self) -> Result<(), ModelError> {
        let problem = |field: &str, found: String, expected: &str| {
            Err(ModelError::Inconsistent(format!(
                "adapter.router_scope.first_pass.{field} is {found}, expected {expected}"
            )))
        };
        if self.depth == 0 || self.depth > 16 {
            return problem("depth", self.depth.to_string(), "1 to 16");
        }
        if self.width == 0 {
            return problem("width", "0".into(), "at least 1");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let found = self.dropout.to_string();
            return problem("dropout", found, "at least 0 and less than 1");
        }
        for (field, value) in [
            ("scaling_pass_value", self.scaling_pass_value),
            ("global_weight", self.global_weight),
        ] {
            if !value.is_finite() {
                return problem(field, value.to_string(), "a finite number");
            }
        }
        Ok(())
    }

    /// Width of what the routers read, for hidden states of a width.
    pub fn features(&self, width: usize) -> usize {
        match self.depth {
            1 => width,
            _ => self.width,
        }
    }

    /// A classifier for hidden states of a width; `router` reads its features, where all sites share it.
    pub fn init(
        &self,
        width: usize,
        router: Option<Router>,
        seed: Seed,
        device: &Device,
    ) -> FirstPass {
        let hidden = (self.depth > 1).then(|| Hidden::new(*self, width, seed, device));
        FirstPass {
            hidden,
            router,
            config: *self,
        }
    }
}

/// The classifier of a first pass: hidden layers, and the router where sites share one.
#[derive(Module, Debug)]
pub struct FirstPass {
    /// Hidden layers in front of the routers.
    pub hidden: Option<Hidden>,
    /// The router of all sites; without it every site has its own.
    pub router: Option<Router>,
    #[module(skip)]
    config: FirstPassConfig,
}

/// Linear layers with a ReLU behind each.
#[derive(Module, Debug)]
pub struct Hidden {
    /// The first one's weight, `[D, width]`.
    pub weight: Param<Tensor<2>>,
    /// Its bias, `[width]`.
    pub bias: Param<Tensor<1>>,
    /// Weights of the others, `[depth - 2, width, width]`, if there are any.
    pub more: Option<Param<Tensor<3>>>,
    /// Their biases, `[depth - 2, width]`.
    pub more_bias: Option<Param<Tensor<2>>>,
}

/// What sites know of the first pass.
#[derive(Debug, Clone)]
pub struct FirstPassStates {
    /// Its last hidden states, without gradient, `[B, T, D]`; arbitrary at padded positions.
    pub hidden: Tensor<3>,
    /// What the routers of sites read, `[B, T, F]`; set where a layer is entered.
    pub features: Option<Tensor<3>>,
    /// Factor on the weights that those routers give.
    pub global_weight: f64,
}

impl FirstPass {
    /// Weight of every expert in the first pass.
    pub fn scaling_pass_value(&self) -> f64 {
        self.config.scaling_pass_value
    }

    /// What sites may know of last hidden states `[B, T, D]`, which get no gradient.
    pub fn states(&self, hidden: Tensor<3>) -> FirstPassStates {
        FirstPassStates {
            hidden: hidden.detach(),
            features: None,
            global_weight: self.config.global_weight,
        }
    }

    /// Puts what routers read into a context that has the states of the first pass, and decides for all
    /// sites, where they share a router.
    ///
    /// # Panics
    /// If the context has no states of a first pass.
    pub fn decide(&self, context: &mut ForwardContext) -> Option<RouterOutput> {
        let seed = context.dropout.map(|seed| seed.child("first_pass"));
        let states = context.first_pass.as_mut();
        let states = states.expect("the first pass comes before the second");
        let dropout = (self.config.dropout, seed);
        let features = match &self.hidden {
            Some(hidden) => hidden.forward(states.hidden.clone(), dropout),
            None => states.hidden.clone(),
        };
        states.features = Some(features.clone());
        let input = RouteInput {
            features,
            mask: context.mask.clone(),
            tasks: context.tasks.clone(),
            columns: None,
        };
        let router = self.router.as_ref()?;
        let mut routed = router.route_in_training(&input, &context.guidance, seed);
        routed.weights = routed.weights.mul_scalar(self.config.global_weight);
        Some(routed)
    }

    /// Every tensor.
    pub fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let router = self.router.iter_mut().flat_map(Router::tensors);
        let hidden = self.hidden.iter_mut().flat_map(Hidden::tensors);
        router.chain(hidden).collect()
    }
}

impl Hidden {
    fn new(config: FirstPassConfig, width: usize, seed: Seed, device: &Device) -> Self {
        let (units, more) = (config.width, config.depth - 2);
        let bound = |inputs: usize| 1.0 / (inputs as f64).sqrt();
        let seed = |name| seed.child(name);
        let first = uniform([width, units], bound(width), seed("weight"), device);
        let bias = uniform([units], bound(width), seed("bias"), device);
        let others = || uniform([more, units, units], bound(units), seed("more"), device);
        let biases = || uniform([more, units], bound(units), seed("more_bias"), device);
        Self {
            weight: Param::from_tensor(first),
            bias: Param::from_tensor(bias),
            more: (more > 0).then(|| Param::from_tensor(others())),
            more_bias: (more > 0).then(|| Param::from_tensor(biases())),
        }
    }

    /// `[B, T, D]` to `[B, T, width]`, with dropout by a probability and a seed in training.
    fn forward(&self, x: Tensor<3>, (dropout, seed): (f64, Option<Seed>)) -> Tensor<3> {
        let active = |x: Tensor<3>, layer: usize| match seed {
            Some(seed) if dropout > 0.0 => {
                molora_kernels::dropout(relu(x), dropout, seed.index(layer as u64))
            }
            _ => relu(x),
        };
        let mut x = active(linear(x, self.weight.val(), Some(self.bias.val())), 0);
        if let (Some(more), Some(biases)) = (&self.more, &self.more_bias) {
            let (more, biases) = (more.val(), biases.val());
            for layer in 0..more.dims()[0] {
                let weight = more.clone().narrow(0, layer, 1).squeeze_dim(0);
                let bias = biases.clone().narrow(0, layer, 1).squeeze_dim(0);
                x = active(linear(x, weight, Some(bias)), layer + 1);
            }
        }
        x
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let kind = ParameterKind::Routers;
        let [width, units] = self.weight.dims();
        let (inputs, units) = ([Axis::Feature.of(width)], [Axis::Unit.of(units)]);
        let layers = self.more.as_ref().map_or(0, |more| more.dims()[0]);
        let layers = [Axis::Unit.of(layers)];
        let weight = &mut self.weight;
        // In PyTorch's layout.
        let weight = PartTensor::matrix("classifier.weight", kind, weight, &inputs, &units);
        let bias = PartTensor::vector("classifier.bias", kind, &mut self.bias, &units);
        let mut tensors = vec![weight.stored(&[1, 0]), bias];
        tensors.extend(self.more.iter_mut().map(|more| {
            let counts = [&layers[..], &units[..], &units[..]];
            PartTensor::cube("classifier.more.weight", kind, more, counts).stored(&[0, 2, 1])
        }));
        tensors.extend(
            self.more_bias.iter_mut().map(|bias| {
                PartTensor::matrix("classifier.more.bias", kind, bias, &layers, &units)
            }),
        );
        tensors
    }
}
