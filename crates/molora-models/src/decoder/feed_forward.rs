//! The feed-forward part of a layer.

use burn::module::Module;
use burn::tensor::Tensor;

use super::pass::Pass;
use crate::MoLoraLinear;
use crate::layers::Activation;

/// `down(activation(up(x)))`, or `down(activation(gate(x)) * up(x))` with a gate (Shazeer,
/// arXiv:2002.05202).
#[derive(Module, Debug)]
pub(crate) struct FeedForward {
    pub(crate) gate: Option<MoLoraLinear>,
    pub(crate) up: MoLoraLinear,
    pub(crate) down: MoLoraLinear,
    #[module(skip)]
    pub(crate) activation: Activation,
}

impl FeedForward {
    /// `[B, T, D]` to `[B, T, D]`.
    pub(crate) fn forward(&self, x: Tensor<3>, pass: &mut Pass) -> Tensor<3> {
        let gate = self.gate.as_ref().map(|gate| pass.apply(gate, x.clone()));
        let up = pass.apply(&self.up, x);
        let inner = match (gate, self.activation) {
            (Some(gate), Activation::Silu) => molora_kernels::silu_gate(gate, up),
            (Some(gate), activation) => activation.apply(gate) * up,
            (None, activation) => activation.apply(up),
        };
        pass.apply(&self.down, inner)
    }
}
