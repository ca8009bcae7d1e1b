//! A layer of the decoder.

use burn::module::Module;
use burn::tensor::Tensor;

use super::attention::Attention;
use super::cache::LayerCache;
use super::config::LayerConfig;
use super::experts::FeedForwardPart;
use super::pass::Pass;
use crate::LayerRouter;
use crate::layers::Norm;

/// The normalisations around attention or a feed-forward part.
#[derive(Module, Debug)]
pub(super) struct PartNorms {
    /// Of what the part reads.
    pub(super) input: Option<Norm>,
    /// Of what it gives.
    pub(super) output: Option<Norm>,
    /// Of the sum of both.
    pub(super) sum: Option<Norm>,
}

impl PartNorms {
    /// What the part reads.
    fn enter(&self, x: Tensor<3>) -> Tensor<3> {
        normed(self.input.as_ref(), x)
    }

    /// The sum of `x` and the output `y` of the part, `scale` times as large.
    fn leave(&self, x: Tensor<3>, y: Tensor<3>, scale: f64) -> Tensor<3> {
        let y = normed(self.output.as_ref(), y);
        let y = if scale == 1.0 { y } else { y.mul_scalar(scale) };
        normed(self.sum.as_ref(), x + y)
    }
}

fn normed(norm: Option<&Norm>, x: Tensor<3>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}

/// A layer: `h = x + attention(norm(x))`, `y = h + feed_forward(norm(h))`, with normalisations in other
/// places of some families. In a parallel one both parts read `x`:
/// `y = x + attention(norm(x)) + feed_forward(norm(x))` (GPT-J; GPT-NeoX, arXiv:2204.06745, section 2.1).
#[derive(Module, Debug)]
pub(super) struct Layer {
    pub(super) attention_norms: PartNorms,
    pub(super) attention: Attention,
    pub(super) feed_forward_norms: PartNorms,
    pub(super) feed_forward: FeedForwardPart,
    pub(super) is_parallel: bool,
    /// Factor on what the parts add.
    pub(super) residual_scale: f64,
    /// Window and rotary positions.
    #[module(skip)]
    pub(super) own: LayerConfig,
    /// Weighs the experts of all sites of the layer, or of its feed-forward part, where routers belong
    /// to those.
    pub(super) router: Option<LayerRouter>,
}

impl Layer {
    /// `[B, T, D]` to `[B, T, D]`.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        cache: Option<&mut LayerCache>,
        pass: &mut Pass,
    ) -> Tensor<3> {
        pass.see(self.own);
        let scale = self.residual_scale;
        let read = self.attention_norms.enter(x.clone());
        let attended = self.attention.forward(read, cache, pass);
        let (read, x) = match self.is_parallel {
            true => (
                self.feed_forward_norms.enter(x.clone()),
                self.attention_norms.leave(x, attended, scale),
            ),
            false => {
                let x = self.attention_norms.leave(x, attended, scale);
                (self.feed_forward_norms.enter(x.clone()), x)
            }
        };
        let fed = self.feed_forward.forward(read, pass);
        self.feed_forward_norms.leave(x, fed, scale)
    }
}
