//! A projection onto the simplex that gives exact zeros, with a learned sparsity for each decision.
//! LD-MoLE, arXiv:2509.25684; sparsegen-lin, Laha et al., arXiv:1810.11975.
//!
//! ```text
//! lambda = logsigmoid(w2 relu(W1 x + b1) + b2) + 0.99
//! p_e    = max(u_e - tau, 0) / (1 - lambda)
//! tau    = (sum_S u - 1 + lambda) / |S|
//! ```
//!
//! where `S` are the kept experts: the largest j with `1 - lambda + j u_(j) > u_(1) + ... + u_(j)`. At
//! least one is kept. lambda = 0 is sparsemax, lambda -> 1 one expert, lambda -> -inf uniform. In the
//! paper's code one network serves all sites of the same input width; here each router has its own.

use burn::module::{Module, Param};
use burn::tensor::activation::{log_sigmoid, relu};
use burn::tensor::{Bool, Device, Tensor};
use molora_kernels::random::{Seed, uniform};
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Learned, Normalise, NormaliserNumbers, Scores, Weighed};
use crate::RoutingError;

/// Start of both biases, which makes lambda about -1.6: many experts at first.
const BIAS: f64 = -2.5;

/// Added to the logarithm of the sigmoid, so that lambda stays below 1.
const LARGEST: f64 = 0.99;

/// Stands for a logit of minus infinity in sums.
const BARRED: f32 = -1e9;

/// Sparsegen with a network of one hidden layer for lambda.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SparsegenConfig {
    /// Width H of the hidden layer.
    pub hidden: usize,
}

impl Default for SparsegenConfig {
    /// The smallest width of the paper's code.
    fn default() -> Self {
        Self { hidden: 128 }
    }
}

impl NormaliserNumbers for SparsegenConfig {
    type Normaliser = Sparsegen;

    fn init(&self, d_features: usize, seed: Seed, device: &Device) -> Sparsegen {
        let draw = |shape: [usize; 2], name| {
            let bound = 1.0 / (shape[1] as f64).sqrt();
            Param::from_tensor(uniform(shape, bound, seed.child(name), device))
        };
        let bias = |width| Param::from_tensor(Tensor::full([width], BIAS, device));
        Sparsegen {
            hidden: draw([self.hidden, d_features], "hidden"),
            hidden_bias: bias(self.hidden),
            output: draw([1, self.hidden], "output"),
            output_bias: bias(1),
        }
    }

    fn learns(&self) -> Option<Learned> {
        Some(Learned::Sparsity)
    }

    fn validate(&self) -> Result<(), RoutingError> {
        match self.hidden {
            0 => Err(RoutingError::Zero { field: "hidden" }),
            _ => Ok(()),
        }
    }
}

/// Sparsegen with the network that gives lambda.
#[derive(Module, Debug)]
pub struct Sparsegen {
    /// `W1`, `[H, F]`.
    pub hidden: Param<Tensor<2>>,
    /// `b1`, `[H]`.
    pub hidden_bias: Param<Tensor<1>>,
    /// `w2`, `[1, H]`.
    pub output: Param<Tensor<2>>,
    /// `b2`, `[1]`.
    pub output_bias: Param<Tensor<1>>,
}

impl Sparsegen {
    /// lambda of every decision, `[B, T', F]` to `[B, T', 1]`, below 0.99.
    pub fn lambda(&self, features: Tensor<3>) -> Tensor<3> {
        let layer = |x: Tensor<3>, weight: &Param<Tensor<2>>, bias: &Param<Tensor<1>>| {
            x.matmul(weight.val().transpose().unsqueeze()) + bias.val().unsqueeze()
        };
        let hidden = relu(layer(features, &self.hidden, &self.hidden_bias));
        let output = layer(hidden, &self.output, &self.output_bias);
        log_sigmoid(output).add_scalar(LARGEST)
    }
}

/// Which experts have a weight above 0, from scores `[B, T', E]` and `1 - lambda` `[B, T', 1]`.
fn kept(scores: &Tensor<3>, room: &Tensor<3>) -> Tensor<3, Bool> {
    let [batch, decisions, experts] = scores.dims();
    let pairs = [batch, decisions, experts, experts];
    let own = scores.clone().detach().unsqueeze_dim::<4>(3).expand(pairs);
    let other = scores.clone().detach().unsqueeze_dim::<4>(2).expand(pairs);
    // Row e, column j: whether j stands no lower than e. Equal scores are kept or dropped together.
    let before = other.clone().greater_equal(own).float();
    let count = before
        .clone()
        .sum_dim(3)
        .reshape([batch, decisions, experts]);
    let sum = (before * other)
        .sum_dim(3)
        .reshape([batch, decisions, experts]);
    let left = room.clone().detach() + count * scores.clone().detach();
    left.greater(sum)
}

impl Normalise for Sparsegen {
    fn weigh(&self, scores: Scores) -> Weighed {
        let barred = scores.logits.clone().detach().lower_equal_elem(BARRED);
        let barred = match scores.selected {
            None => barred,
            Some(selected) => barred.bool_or(selected.bool_not()),
        };
        let logits = scores.logits.mask_fill(barred, BARRED);
        let lambda = self.lambda(scores.features);
        let room = lambda.clone().neg().add_scalar(1.0);
        let kept = kept(&logits, &room);
        let mask = kept.clone().float();
        let count = mask.clone().sum_dim(2);
        let zeroed = logits.mask_fill(kept.clone().bool_not(), 0.0);
        let tau = (zeroed.clone().sum_dim(2) - room.clone()) / count;
        Weighed::new((zeroed - tau) * mask / room, Some(kept)).with_learned(lambda)
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let kind = ParameterKind::Routers;
        let [hidden, width] = self.hidden.dims();
        let (units, features) = ([Axis::Unit.of(hidden)], [Axis::Feature.of(width)]);
        let one = [Axis::Unit.of(1)];
        let (weight, bias) = (&mut self.hidden, &mut self.hidden_bias);
        vec![
            PartTensor::matrix(
                "router.lambda.hidden.weight",
                kind,
                weight,
                &units,
                &features,
            ),
            PartTensor::vector("router.lambda.hidden.bias", kind, bias, &units),
            PartTensor::matrix(
                "router.lambda.output.weight",
                kind,
                &mut self.output,
                &one,
                &units,
            ),
            PartTensor::vector(
                "router.lambda.output.bias",
                kind,
                &mut self.output_bias,
                &one,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::activation::softmax;
    use molora_testkit::{FORWARD, GRADIENT, assert_close};

    /// A network whose lambda is `logsigmoid(b2) + 0.99`, whatever it reads.
    fn constant(lambda: f64, device: &Device) -> Sparsegen {
        let sparsegen = SparsegenConfig { hidden: 2 }.init(3, Seed::new(0), device);
        // The inverse of the logarithm of the sigmoid.
        let sigmoid = (lambda - LARGEST).exp();
        let bias = (sigmoid / (1.0 - sigmoid)).ln();
        Sparsegen {
            output_bias: Param::from_tensor(Tensor::full([1], bias, device)),
            output: Param::from_tensor(Tensor::zeros([1, 2], device)),
            ..sparsegen
        }
    }

    fn scores(logits: Tensor<3>) -> Scores {
        let [batch, decisions, _] = logits.dims();
        Scores {
            features: Tensor::ones([batch, decisions, 3], &logits.device()),
            probs: softmax(logits.clone(), 2),
            logits,
            selected: None,
        }
    }

    /// Scores 1, 0.6 and -1. With lambda 0 both first ones are kept: tau = (1.6 - 1) / 2 = 0.3. With
    /// lambda 0.5 as well: tau = 0.55, weights 0.45 / 0.5 and 0.05 / 0.5. With lambda 0.7 one is left.
    /// With lambda -4 all are kept: tau = (0.6 - 5) / 3.
    #[test]
    fn weights_that_can_be_checked_by_hand() {
        let device = molora_testkit::device();
        let logits = Tensor::<3>::from_data([[[1.0, 0.6, -1.0]]], &device);
        for (lambda, expected) in [
            (0.0, [0.7, 0.3, 0.0]),
            (0.5, [0.9, 0.1, 0.0]),
            (0.7, [1.0, 0.0, 0.0]),
            (-4.0, [0.493333, 0.413333, 0.093333]),
        ] {
            let sparsegen = constant(lambda, &device);
            let Weighed {
                weights, selected, ..
            } = sparsegen.weigh(scores(logits.clone()));
            assert_close(weights.clone(), [[expected]], 1e-4, "weights");
            let kept = selected.expect("some").float();
            assert_close(kept, weights.greater_elem(0.0).float(), 0.0, "kept");
        }
    }

    /// Inside the kept set: `dp_e/du_f = (1[e = f] - 1/k) / (1 - lambda)`, and
    /// `dp_e/dlambda = (u_e - mean u) / (1 - lambda)^2`.
    #[test]
    fn gradients_are_analytic() {
        let device = molora_testkit::autodiff_device();
        let logits = Tensor::<3>::from_data([[[1.0, 0.6, -1.0]]], &device).require_grad();
        let sparsegen = constant(0.5, &device);
        let weights = sparsegen.weigh(scores(logits.clone())).weights;
        let gradients = weights.narrow(2, 0, 1).sum().backward();
        let to_logits = logits.grad(&gradients).expect("tracked");
        assert_close(to_logits, [[[1.0, -1.0, 0.0]]], GRADIENT, "d p / d u");
        let to_bias = sparsegen
            .output_bias
            .val()
            .grad(&gradients)
            .expect("tracked");
        // 0.2 / 0.25 times the derivative of the logarithm of the sigmoid, 1 - sigmoid.
        let expected = 0.8 * (1.0 - (0.5 - LARGEST).exp());
        assert_close(to_bias, [expected as f32], GRADIENT, "d p / d b2");
    }

    #[test]
    fn barred_and_unselected_experts_have_no_weight() {
        let device = molora_testkit::device();
        let logits = Tensor::<3>::from_data([[[f32::NEG_INFINITY, 0.0, 0.0, 5.0]]], &device);
        let selected = Tensor::<3>::from_data([[[1.0, 1.0, 1.0, 0.0]]], &device).bool();
        let scores = Scores {
            selected: Some(selected),
            ..scores(logits)
        };
        let weights = constant(0.0, &device).weigh(scores).weights;
        assert_close(weights, [[[0.0, 0.5, 0.5, 0.0]]], FORWARD, "weights");
    }

    #[test]
    fn a_fresh_network_keeps_many_experts() {
        let device = molora_testkit::device();
        let sparsegen = SparsegenConfig::default().init(3, Seed::new(1), &device);
        let lambda = sparsegen.lambda(Tensor::zeros([1, 1, 3], &device));
        assert_close(lambda, [[[-1.588933]]], 1e-4, "lambda");
    }
}
