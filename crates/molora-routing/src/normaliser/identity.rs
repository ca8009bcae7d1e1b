//! Scores that are weights as they are: WEMoE's gate, arXiv:2402.00433, section 3.3.

use burn::module::Module;
use burn::tensor::Device;
use molora_kernels::random::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Normalise, NormaliserNumbers, Scores, Weighed};

/// Each expert's own logit, which may be negative or above 1. WEMoE, arXiv:2402.00433, section 3.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct IdentityConfig;

impl NormaliserNumbers for IdentityConfig {
    type Normaliser = Identity;

    fn init(&self, _d_features: usize, _seed: Seed, _device: &Device) -> Identity {
        Identity {}
    }
}

/// Each expert's own logit; nothing is trained.
#[derive(Module, Debug)]
pub struct Identity {}

impl Normalise for Identity {
    fn weigh(&self, scores: Scores) -> Weighed {
        match scores.selected {
            None => {
                let barred = scores.logits.clone().detach();
                let barred = barred.lower_equal_elem(f32::NEG_INFINITY);
                Weighed::new(scores.logits.mask_fill(barred, 0.0), None)
            }
            Some(selected) => {
                let weights = scores.logits.mask_fill(selected.clone().bool_not(), 0.0);
                Weighed::new(weights, Some(selected))
            }
        }
    }
}
