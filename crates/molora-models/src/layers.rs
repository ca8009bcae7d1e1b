//! Layers that models have in common.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use serde::Deserialize;

/// The non-linearity of a feed-forward part, by Hugging Face's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Exact GELU, by the error function.
    Gelu,
    /// GELU by its tanh approximation.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
    /// Rectified linear unit.
    Relu,
    /// `x * sigmoid(x)`.
    #[serde(alias = "swish")]
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Applies it to every element.
    pub(crate) fn apply(self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Gelu => molora_kernels::gelu(x),
            Self::GeluTanh => molora_kernels::gelu_tanh(x),
            Self::Relu => activation::relu(x),
            Self::Silu => activation::silu(x),
            Self::Tanh => activation::tanh(x),
        }
    }
}

/// Layer normalisation over the last axis: `(x - mean) / sqrt(var + epsilon) * gamma + beta`.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Frozen scale, `[width]`.
    pub gamma: Param<Tensor<1>>,
    /// Frozen shift, `[width]`; zeros where the layer has none.
    pub beta: Param<Tensor<1>>,
    /// Whether files hold the shift.
    pub(crate) has_shift: bool,
    epsilon: f64,
}

impl LayerNorm {
    /// A frozen layer.
    pub fn new(gamma: Tensor<1>, beta: Tensor<1>, epsilon: f64) -> Self {
        Self {
            gamma: frozen(gamma),
            beta: frozen(beta),
            has_shift: true,
            epsilon,
        }
    }

    /// A frozen layer without a shift.
    pub fn without_shift(gamma: Tensor<1>, epsilon: f64) -> Self {
        Self {
            has_shift: false,
            ..Self::new(gamma.clone(), gamma.zeros_like(), epsilon)
        }
    }

    /// Normalises `[B, T, width]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        molora_kernels::layer_norm(x, self.gamma.val(), self.beta.val(), self.epsilon)
    }
}

/// Root-mean-square normalisation over the last axis: `x / sqrt(mean(x^2) + epsilon) * weight`, or by
/// `1 + weight` (Gemma, arXiv:2403.08295).
///
/// # Source
/// Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv:1910.07467, eq. 4.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Frozen scale, `[width]`.
    pub weight: Param<Tensor<1>>,
    epsilon: f64,
    adds_one: bool,
}

impl RmsNorm {
    /// A frozen layer.
    pub fn new(weight: Tensor<1>, epsilon: f64) -> Self {
        Self {
            weight: frozen(weight),
            epsilon,
            adds_one: false,
        }
    }

    /// The same layer with a scale of `1 + weight`.
    #[must_use]
    pub fn with_one(mut self) -> Self {
        self.adds_one = true;
        self
    }

    /// Width of what it normalises.
    pub fn width(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Normalises `[..., width]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let weight = match self.adds_one {
            true => self.weight.val().add_scalar(1.0),
            false => self.weight.val(),
        };
        molora_kernels::rms_norm(x, weight, self.epsilon)
    }
}

/// Either normalisation.
#[derive(Module, Debug)]
pub(crate) enum Norm {
    /// With mean, scale and shift.
    Layer(LayerNorm),
    /// With scale alone.
    Rms(RmsNorm),
}

impl Norm {
    /// Normalises `[B, T, width]`.
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

/// A parameter that no stage trains.
pub(crate) fn frozen<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_tensor(tensor).set_require_grad(false)
}
