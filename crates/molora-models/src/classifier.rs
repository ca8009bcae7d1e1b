//! An encoder with one linear head per task.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::{Seed, uniform};
use serde::{Deserialize, Serialize};

use crate::{Bert, EncoderInput, ForwardContext, RouteTrace, masked_mean};

/// What a parameter is for; stages and counts go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterKind {
    /// The pretrained model, which is always frozen.
    Base,
    /// Matrices of experts and their learned scales.
    Adapters,
    /// Parameters of routers.
    Routers,
    /// Parameters of task gates.
    Gates,
    /// Heads of tasks.
    Heads,
}

impl ParameterKind {
    /// The kind of a parameter by its module path in a [`Classifier`].
    pub fn of(path: &str) -> Self {
        let has = |part: &str| path.contains(part);
        if path.starts_with("heads.") {
            Self::Heads
        } else if has(".adapter.bank.") {
            Self::Adapters
        } else if has(".router.") {
            Self::Routers
        } else if has(".adapter.gate.") {
            Self::Gates
        } else {
            Self::Base
        }
    }
}

/// A linear classifier on a pooled hidden state.
#[derive(Module, Debug)]
pub struct TaskHead {
    /// Weight, `[D, classes]`.
    pub weight: Param<Tensor<2>>,
    /// Bias, `[classes]`.
    pub bias: Param<Tensor<1>>,
}

impl TaskHead {
    /// A head with weights and biases from U(-1/sqrt(D), 1/sqrt(D)), PyTorch's default.
    pub fn new(width: usize, classes: usize, seed: Seed, device: &Device) -> Self {
        let bound = 1.0 / (width as f64).sqrt();
        let weight = uniform([width, classes], bound, seed.child("weight"), device);
        let bias = uniform([classes], bound, seed.child("bias"), device);
        Self {
            weight: Param::from_tensor(weight),
            bias: Param::from_tensor(bias),
        }
    }

    /// `[B, D]` to logits `[B, classes]`.
    pub fn forward(&self, pooled: Tensor<2>) -> Tensor<2> {
        molora_kernels::linear(pooled, self.weight.val(), Some(self.bias.val()))
    }

    /// Number of classes.
    pub fn num_classes(&self) -> usize {
        self.bias.dims()[0]
    }
}

/// An encoder, mean pooling over real tokens, and one head per task.
#[derive(Module, Debug)]
pub struct Classifier {
    /// The encoder with its adapters.
    pub encoder: Bert,
    /// One head per task, in the order of the tasks.
    pub heads: Vec<TaskHead>,
}

impl Classifier {
    /// Fresh heads on an encoder; `tasks` are names and numbers of classes. A head's initial values
    /// depend on `seed` and its task's name alone.
    pub fn new(encoder: Bert, tasks: &[(String, usize)], seed: Seed, device: &Device) -> Self {
        let width = encoder.width();
        let head = |(name, classes): &(String, usize)| {
            TaskHead::new(width, *classes, seed.child(name), device)
        };
        Self {
            encoder,
            heads: tasks.iter().map(head).collect(),
        }
    }

    /// One pooled state per row `[B, D]`, and the routing decisions behind it.
    pub fn encode(
        &self,
        input: &EncoderInput,
        context: &ForwardContext,
    ) -> (Tensor<2>, Vec<RouteTrace>) {
        let output = self.encoder.forward(input, context);
        (masked_mean(output.hidden, &input.mask), output.routes)
    }
}
