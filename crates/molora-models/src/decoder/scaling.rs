//! Factors and bounds of whole tensors.

use burn::tensor::Tensor;
use molora_kernels::soft_cap;

/// What a family multiplies and bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scaling {
    /// Factor on the embeddings.
    pub(super) embeddings: f64,
    /// Factor on the scores of attention; one over the square root of a head's width where absent.
    pub(super) attention: Option<f64>,
    /// Bound of those.
    pub(super) attention_cap: Option<f64>,
    /// Factor on the scores of the vocabulary.
    pub(super) logits: f64,
    /// Bound of those.
    pub(super) logit_cap: Option<f64>,
}

impl Scaling {
    /// The input of the first layer.
    pub(super) fn embeddings(&self, hidden: Tensor<3>) -> Tensor<3> {
        scaled(hidden, self.embeddings)
    }

    /// `cap * tanh(scale * x / cap)` of the products `x` with the head.
    pub(super) fn logits(&self, products: Tensor<3>) -> Tensor<3> {
        let logits = scaled(products, self.logits);
        match self.logit_cap {
            Some(cap) => soft_cap(logits, cap),
            None => logits,
        }
    }
}

fn scaled(x: Tensor<3>, factor: f64) -> Tensor<3> {
    match factor {
        1.0 => x,
        factor => x.mul_scalar(factor),
    }
}
