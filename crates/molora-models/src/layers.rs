//! Layers that models have in common.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// Layer normalisation over the last axis: `(x - mean) / sqrt(var + epsilon) * gamma + beta`.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Frozen scale, `[width]`.
    pub gamma: Param<Tensor<1>>,
    /// Frozen shift, `[width]`.
    pub beta: Param<Tensor<1>>,
    epsilon: f64,
}

impl LayerNorm {
    /// A frozen layer.
    pub fn new(gamma: Tensor<1>, beta: Tensor<1>, epsilon: f64) -> Self {
        let frozen = |tensor| Param::from_tensor(tensor).set_require_grad(false);
        Self {
            gamma: frozen(gamma),
            beta: frozen(beta),
            epsilon,
        }
    }

    /// Normalises `[B, T, width]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        molora_kernels::layer_norm(x, self.gamma.val(), self.beta.val(), self.epsilon)
    }
}
