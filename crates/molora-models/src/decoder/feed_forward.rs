//! The feed-forward part of a layer.

use burn::module::Module;
use burn::tensor::Tensor;

use super::pass::Pass;
use crate::MoLoraLinear;
use crate::feed_forward::FeedForwardParts;
use crate::layers::Activation;
use crate::scope::Decides;

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
        let parts = self.parts();
        let Some((router, routed)) = pass.decide_feed_forward(parts.first_site(), &x) else {
            let y = parts.compute(x.clone(), |linear, x| pass.apply(linear, x));
            return pass.beside(&self.down, y, x);
        };
        if router.decides == Decides::FeedForward {
            let slots = router.router.most_selected(routed.num_experts());
            return parts.mixed(x, &routed, slots, &pass.context);
        }
        pass.shared = Some(routed);
        let y = parts.compute(x, |linear, x| pass.apply(linear, x));
        pass.shared = None;
        y
    }

    /// Whether anything is attached to its linear layers.
    pub(crate) fn is_adapted(&self) -> bool {
        self.linears()
            .any(|linear| linear.adapter.is_some() || linear.pooled.is_some())
    }

    /// Its linear layers.
    pub(super) fn linears(&self) -> impl Iterator<Item = &MoLoraLinear> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    fn parts(&self) -> FeedForwardParts<'_> {
        FeedForwardParts {
            gate: self.gate.as_ref(),
            up: &self.up,
            down: &self.down,
            activation: self.activation,
        }
    }
}
