//! A subspace that all experts share and small coefficients of their own. MALoRA, Wang et al.,
//! arXiv:2410.22782.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use molora_kernels::random::{Seed, uniform};
use molora_parts::{Axis, Count, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DownDims, DownNumbers, Lower};
use crate::AdapterError;
use crate::svd::Svd;

/// `A = S P` with a shared `S` `[D, d]` and coefficients `P` `[d, R]` of each slice.
///
/// The start follows the paper's idea, a subspace by singular values under which the product has the
/// variance of an ordinary `A`: `S` and `P` are the best factors of rank d of an `A` drawn as usual,
/// `S` with orthonormal columns, and `P` makes up for the mass that was cut off. Where d is larger than
/// the rank of that `A`, the columns of `S` that are left start at zero and their rows of `P` are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FactoredConfig {
    /// Width d of the subspace.
    pub subspace: usize,
}

impl Default for FactoredConfig {
    fn default() -> Self {
        Self { subspace: 16 }
    }
}

impl DownNumbers for FactoredConfig {
    type Down = FactoredDown;

    fn init(
        &self,
        dims: DownDims,
        drawn: Tensor<2>,
        seed: Seed,
        device: &Device,
    ) -> (Tensor<2>, FactoredDown) {
        let (inputs, width, code) = (dims.d_input, self.subspace, dims.code());
        let kept: Vec<usize> = (0..width.min(inputs.min(code))).collect();
        let svd = Svd::at(&drawn, &kept);
        let mass: f64 = svd.values.iter().map(|s| s * s).sum();
        let whole = drawn.powi_scalar(2).sum().into_scalar::<f32>();
        let lost = f64::from(whole) / mass.max(f64::MIN_POSITIVE);
        let (mut s, mut p) = (vec![0.0; inputs * width], vec![0.0; width * code]);
        for (at, value) in svd.values.iter().enumerate() {
            for (row, x) in svd.left[at].iter().enumerate() {
                s[row * width + at] = *x as f32;
            }
            for (column, x) in svd.right[at].iter().enumerate() {
                p[at * code + column] = (x * value * lost.sqrt()) as f32;
            }
        }
        let s = Tensor::from_data(TensorData::new(s, [inputs, width]), device);
        let p: Tensor<2> = Tensor::from_data(TensorData::new(p, [width, code]), device);
        // Coordinates that the drawn A does not fill: with zeros on both sides they would never learn.
        let idle = width - kept.len();
        let p = match idle {
            0 => p,
            _ => {
                let drawn = uniform([idle, code], 1.0 / (width as f64).sqrt(), seed, device);
                p.slice_assign([kept.len()..width, 0..code], drawn)
            }
        };
        let down = FactoredDown {
            coefficients: Param::from_tensor(p),
            rank: dims.rank,
        };
        (s, down)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn validate(&self) -> Result<(), AdapterError> {
        match self.subspace {
            0 => Err(AdapterError::Zero { field: "subspace" }),
            _ => Ok(()),
        }
    }

    fn validate_for(&self, d_input: usize) -> Result<(), AdapterError> {
        match self.subspace > d_input {
            true => Err(AdapterError::RankTooLarge {
                rank: self.subspace,
                limit: d_input,
            }),
            false => Ok(()),
        }
    }
}

/// Coefficients of each slice in the shared subspace.
#[derive(Module, Debug)]
pub struct FactoredDown {
    /// Coefficients of all slices side by side, `[d, S*R]`.
    pub coefficients: Param<Tensor<2>>,
    rank: usize,
}

impl Lower for FactoredDown {
    fn apply(&self, product: Tensor<3>) -> Tensor<3> {
        molora_kernels::linear(product, self.coefficients.val(), None)
    }

    fn shared_width(&self) -> Option<usize> {
        Some(self.coefficients.dims()[0])
    }

    fn resized(&self, slices: Count) -> Self {
        let shape = [self.coefficients.dims()[0], slices.size * self.rank];
        let zeros = Tensor::zeros(shape, &self.coefficients.device());
        Self {
            coefficients: Param::from_tensor(zeros),
            rank: self.rank,
        }
    }

    fn tensors(&mut self, slices: Axis) -> Vec<PartTensor<'_>> {
        let [width, code] = self.coefficients.dims();
        let rows = [Axis::Unit.of(width)];
        let columns = [slices.of(code / self.rank), Axis::Rank.of(self.rank)];
        let (name, kind) = ("experts.coefficients", ParameterKind::Adapters);
        let tensor = PartTensor::matrix(name, kind, &mut self.coefficients, &rows, &columns);
        // In mathematical layout: P [S, R, d].
        vec![tensor.stored(&[1, 2, 0])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BankConfig, SiteDims};

    #[test]
    fn a_product_has_the_variance_of_an_ordinary_start() {
        let config = BankConfig {
            num_experts: 4,
            rank: 4,
            down: FactoredConfig { subspace: 6 }.into(),
            ..BankConfig::default()
        };
        let dims = SiteDims {
            d_input: 48,
            d_output: 8,
        };
        let device = molora_testkit::device();
        let bank = config.init(dims, Seed::new(3), &device);
        assert_eq!(bank.a.dims(), [48, 6]);
        let plain = BankConfig {
            down: super::super::DenseConfig.into(),
            ..config
        };
        let mass =
            |bank: crate::ExpertBank| -> f32 { bank.a_matrix().powi_scalar(2).sum().into_scalar() };
        let (found, expected) = (mass(bank), mass(plain.init(dims, Seed::new(3), &device)));
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
    }

    #[test]
    fn a_subspace_wider_than_the_codes_has_no_dead_coordinates() {
        let config = BankConfig {
            rank: 2,
            down: FactoredConfig { subspace: 5 }.into(),
            ..BankConfig::default()
        };
        let dims = SiteDims {
            d_input: 8,
            d_output: 4,
        };
        let bank = config.init(dims, Seed::new(3), &molora_testkit::device());
        let crate::down::Down::Factored(down) = bank.down else {
            panic!("another down-projection");
        };
        let least: f32 = down.coefficients.val().abs().min().into_scalar();
        assert!(least > 0.0);
    }
}
