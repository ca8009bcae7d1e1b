//! A softmax over the experts of all groups, the cells of a grid, blended with similarities of the sequence.
//! MoR1E, arXiv:2404.08985.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation::sigmoid};
use molora_kernels::random::Seed;
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Normalise, NormaliserNumbers, Scores, Weighed};
use crate::RoutingError;

/// `g = a omega softmax(l) + c (1 - omega) s` over all cells, with similarities s of the sequence and
/// `omega = sigmoid(sharpness omega_raw)`; without similarities they are 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CellsConfig {
    /// Factor a of the softmax; the released one, 32, is the number of cells.
    pub token_scale: f64,
    /// Factor c of the similarities.
    pub prior_scale: f64,
    /// Factor on `omega_raw`, which makes its steps larger.
    pub sharpness: f64,
}

impl Default for CellsConfig {
    fn default() -> Self {
        Self {
            token_scale: 32.0,
            prior_scale: 4.0,
            sharpness: 100.0,
        }
    }
}

impl NormaliserNumbers for CellsConfig {
    type Normaliser = Cells;

    fn init(&self, _d_features: usize, _seed: Seed, device: &Device) -> Cells {
        Cells {
            omega_raw: Param::from_tensor(Tensor::zeros([1], device)),
            token_scale: self.token_scale,
            prior_scale: self.prior_scale,
            sharpness: self.sharpness,
        }
    }

    fn is_joint(&self) -> bool {
        true
    }

    fn validate(&self) -> Result<(), RoutingError> {
        let numbers = [
            ("token_scale", self.token_scale),
            ("prior_scale", self.prior_scale),
            ("sharpness", self.sharpness),
        ];
        match numbers.into_iter().find(|(_, value)| !value.is_finite()) {
            Some((field, value)) => Err(RoutingError::NotFinite { field, value }),
            None => Ok(()),
        }
    }
}

/// The share of the softmax.
#[derive(Module, Debug)]
pub struct Cells {
    /// The share before the sigmoid, `[1]`; 0 at the start, where it is one half.
    pub omega_raw: Param<Tensor<1>>,
    token_scale: f64,
    prior_scale: f64,
    sharpness: f64,
}

impl Normalise for Cells {
    fn weigh(&self, scores: Scores) -> Weighed {
        let selected = scores.selected.clone();
        Weighed::new(self.blend(scores, None), selected)
    }

    fn is_joint(&self) -> bool {
        true
    }

    fn blend(&self, scores: Scores, prior: Option<Tensor<3>>) -> Tensor<3> {
        let omega = sigmoid(self.omega_raw.val().mul_scalar(self.sharpness));
        let omega = omega.reshape([1, 1, 1]);
        let tokens = scores.probs.mul_scalar(self.token_scale) * omega.clone();
        match prior {
            None => tokens,
            Some(prior) => tokens + prior.mul_scalar(self.prior_scale) * (omega.neg() + 1.0),
        }
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let (name, kind) = ("router.blend", ParameterKind::Routers);
        vec![PartTensor::vector(
            name,
            kind,
            &mut self.omega_raw,
            &[Axis::Unit.of(1)],
        )]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::activation::softmax;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn half_of_each_at_the_start() {
        let device = molora_testkit::device();
        let cells = CellsConfig {
            token_scale: 4.0,
            ..CellsConfig::default()
        }
        .init(3, Seed::new(0), &device);
        let logits = Tensor::<3>::zeros([1, 2, 4], &device);
        let scores = Scores {
            features: logits.clone(),
            probs: softmax(logits.clone(), 2),
            logits,
            selected: None,
        };
        let alone = cells.blend(scores.clone(), None);
        assert_close(alone, [[[0.5; 4]; 2]], FORWARD, "tokens alone");
        let prior = Tensor::from_data([[[1.0, 0.0, -1.0, 0.5]]], &device);
        let blended = cells.blend(scores, Some(prior));
        assert_close(blended, [[[2.5, 0.5, -1.5, 1.5]; 2]], FORWARD, "blend");
    }
}
