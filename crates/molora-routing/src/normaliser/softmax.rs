//! Softmax over the experts that take part.

use burn::module::Module;
use burn::tensor::{Device, Tensor, activation::softmax};
use molora_kernels::random::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Normalise, NormaliserNumbers, Scores, Weighed};

/// Softmax over the experts that take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct SoftmaxConfig;

impl NormaliserNumbers for SoftmaxConfig {
    type Normaliser = Softmax;

    fn init(&self, _d_features: usize, _seed: Seed, _device: &Device) -> Softmax {
        Softmax {}
    }
}

/// Softmax over the experts that take part; nothing is trained.
#[derive(Module, Debug)]
pub struct Softmax {}

impl Normalise for Softmax {
    /// Renormalising a softmax over the selected experts equals the softmax of their logits, so
    /// experts that were not selected get weight 0 and no gradient through the weights. PHATGOOSE's
    /// code divides by the selected mass plus 1e-6 instead: a relative difference of 1e-6 over that
    /// mass. The softmax of the logits is preferred because it is exact where the mass of a
    /// selected expert underflows, as it does with a large [`bias`](crate::Guidance::bias).
    fn weigh(&self, scores: Scores) -> Weighed {
        let Some(selected) = scores.selected else {
            return Weighed::new(scores.probs, None);
        };
        let weights = masked_softmax(scores.logits, selected.clone());
        Weighed::new(weights, Some(selected))
    }
}

/// Softmax over the selected of the last axis; 0 for the others.
pub(super) fn masked_softmax(
    logits: Tensor<3>,
    selected: Tensor<3, burn::tensor::Bool>,
) -> Tensor<3> {
    softmax(logits.mask_fill(selected.bool_not(), f32::NEG_INFINITY), 2)
}
