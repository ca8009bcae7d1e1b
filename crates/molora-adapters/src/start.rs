//! Where the training of a bank starts.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use molora_kernels::random::{Seed, normal, uniform};
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::svd::Svd;
use crate::{AdapterError, SiteDims, qr};

/// Where training starts.
///
/// Under `kaiming` and `gaussian` all `B` are zero, so that a fresh bank changes nothing. The others
/// read the frozen weight W: experts start as parts of it, and what they start as is taken out of the
/// layer again, `x W - c s sum_e x A0_e B0_e + delta(x)`, so that on average nothing changes. The frozen
/// weight stays as it is; the [`Residual`] keeps `A0` and `B0`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// `A` from U(-1/sqrt(D), 1/sqrt(D)): PyTorch's `kaiming_uniform(a = sqrt 5)`, which PEFT and the
    /// reference codes of HydraLoRA and SAMoRA use.
    #[default]
    Kaiming,
    /// `A` from N(0, 1/R^2): PEFT's `init_lora_weights="gaussian"`.
    Gaussian,
    /// One expert from the largest singular triples of W. PiSSA, Meng et al., arXiv:2404.02948.
    Pissa,
    /// One expert from the QR decomposition of W, as PEFT's `init_lora_weights="olora"`. OLoRA,
    /// Buyukakyuz, arXiv:2406.01775.
    Olora,
    /// Each expert from its own segment of the singular values of W. GOAT, Fan et al., arXiv:2502.16894.
    Segments(SegmentStart),
}

/// Numbers of [`Start::Segments`]: of n singular triples in descending order, expert e gets the
/// first R of those from `e (n div E)` on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SegmentStart {
    /// By what singular values are divided, so that experts start small: rho.
    pub shrink: f64,
    /// Whether experts get the last R triples of their segments.
    pub last: bool,
    /// Whether all of what experts start as is taken out (c = 1), and not its mean (c = 1 / E).
    pub full_residual: bool,
}

impl Default for SegmentStart {
    fn default() -> Self {
        Self {
            shrink: 10.0,
            last: false,
            full_residual: false,
        }
    }
}

/// What experts started as and the layer has to lose, `- c s x A0 B0`.
#[derive(Module, Debug)]
pub struct Residual {
    /// First matrices of all experts side by side, `[D, K]`.
    pub a: Param<Tensor<2>>,
    /// Second ones, one below the other, `[K, O]`.
    pub b: Param<Tensor<2>>,
    /// Factor c s.
    pub(crate) factor: f64,
}

impl Residual {
    /// What is to be added to the layer's output for `[B, T, D]`.
    pub(crate) fn delta(&self, x: Tensor<3>) -> Tensor<3> {
        let code = molora_kernels::linear(x, self.a.val(), None).mul_scalar(-self.factor);
        molora_kernels::linear(code, self.b.val(), None)
    }

    /// Every tensor.
    pub(crate) fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let kind = ParameterKind::Frozen;
        let ([d_input, rank], [_, d_output]) = (self.a.dims(), self.b.dims());
        // Not by expert: what was taken out of the layer stays, whoever joins or leaves.
        let ranks = [Axis::Unit.of(rank)];
        let (input, output) = ([Axis::Input.of(d_input)], [Axis::Output.of(d_output)]);
        let a = PartTensor::matrix("start.lora_A", kind, &mut self.a, &input, &ranks);
        let b = PartTensor::matrix("start.lora_B", kind, &mut self.b, &ranks, &output);
        vec![a.stored(&[1, 0]), b.stored(&[1, 0])]
    }
}

/// What a start has to know of a bank.
pub(crate) struct StartDims {
    pub(crate) site: SiteDims,
    /// Codes side by side.
    pub(crate) slices: usize,
    pub(crate) experts: usize,
    pub(crate) rank: usize,
    /// Factor s.
    pub(crate) factor: f64,
    /// Whether all values are read from a file afterwards.
    pub(crate) is_blank: bool,
}

/// `A` `[D, S*R]`, and where it is not zero `B` `[E*R, O]` with what the layer loses.
pub(crate) struct Started {
    pub(crate) a: Tensor<2>,
    pub(crate) b: Option<(Tensor<2>, Residual)>,
}

impl Start {
    /// Whether experts start as parts of the frozen weight, which has to be known then.
    pub fn reads_weight(self) -> bool {
        matches!(self, Self::Pissa | Self::Olora | Self::Segments(_))
    }

    /// Which share of what experts start as is taken out: c.
    fn residual_share(self, experts: usize) -> f64 {
        match self {
            Self::Segments(segments) if !segments.full_residual => 1.0 / experts as f64,
            _ => 1.0,
        }
    }

    /// Checks the numbers, and that there are as many experts as the start is for.
    ///
    /// # Errors
    /// [`AdapterError::NotPositive`] or [`AdapterError::Combine`].
    pub(crate) fn validate(self, num_experts: usize) -> Result<(), AdapterError> {
        let shrink = match self {
            Self::Segments(segments) => segments.shrink,
            _ => 1.0,
        };
        if !(shrink.is_finite() && shrink > 0.0) {
            return Err(AdapterError::NotPositive {
                field: "start.segments.shrink",
                value: shrink,
            });
        }
        let is_of_one = matches!(self, Self::Pissa | Self::Olora);
        match is_of_one && num_experts > 1 {
            true => Err(AdapterError::Combine {
                name: "a start with pissa or olora",
                needs: "one expert: several start with segments",
            }),
            false => Ok(()),
        }
    }

    /// The first values of a bank; `weight` is the frozen one, `[D, O]`.
    ///
    /// # Panics
    /// If the start reads the weight and there is none.
    pub(crate) fn draw(
        self,
        dims: &StartDims,
        weight: Option<&Tensor<2>>,
        seed: Seed,
        device: &Device,
    ) -> Started {
        let shape = [dims.site.d_input, dims.slices * dims.rank];
        if dims.is_blank && self.reads_weight() {
            let b = Tensor::zeros([dims.experts * dims.rank, dims.site.d_output], device);
            let factor = self.residual_share(dims.experts) * dims.factor;
            return started(Tensor::zeros(shape, device), b, factor);
        }
        let weight = || weight.expect("a start that reads the weight is given it");
        let drawn = |a| Started { a, b: None };
        let one = SegmentStart {
            shrink: 1.0,
            ..SegmentStart::default()
        };
        match self {
            Self::Kaiming => {
                let bound = 1.0 / (dims.site.d_input as f64).sqrt();
                drawn(uniform(shape, bound, seed.child("a"), device))
            }
            Self::Gaussian => drawn(normal(
                shape,
                1.0 / dims.rank as f64,
                seed.child("a"),
                device,
            )),
            Self::Pissa => segments(one, dims, weight(), device),
            Self::Segments(numbers) => segments(numbers, dims, weight(), device),
            Self::Olora => olora(dims, weight()),
        }
    }
}

fn segments(
    numbers: SegmentStart,
    dims: &StartDims,
    weight: &Tensor<2>,
    device: &Device,
) -> Started {
    let SiteDims { d_input, d_output } = dims.site;
    let (experts, rank) = (dims.experts, dims.rank);
    let segment = d_input.min(d_output) / experts;
    let (width, skipped) = (
        experts * rank,
        if numbers.last { segment - rank } else { 0 },
    );
    let place = |column: usize| column / rank * segment + skipped + column % rank;
    let svd = Svd::at(weight, &(0..width).map(place).collect::<Vec<_>>());
    let (mut a, mut b) = (vec![0.0; d_input * width], vec![0.0; width * d_output]);
    for column in 0..width {
        let size = (svd.values[column] / (dims.factor * numbers.shrink)).sqrt();
        for (row, x) in svd.left[column].iter().enumerate() {
            a[row * width + column] = (x * size) as f32;
        }
        for (output, x) in svd.right[column].iter().enumerate() {
            b[column * d_output + output] = (x * size) as f32;
        }
    }
    let a = Tensor::from_data(TensorData::new(a, [d_input, width]), device);
    let b = Tensor::from_data(TensorData::new(b, [width, d_output]), device);
    let share = Start::Segments(numbers).residual_share(experts);
    started(a, b, share * dims.factor)
}

/// With W^T = Q R in the layout of PyTorch, `B` are the first columns of Q and `A` the first rows of R.
fn olora(dims: &StartDims, weight: &Tensor<2>) -> Started {
    let SiteDims { d_input, d_output } = dims.site;
    let (rank, device) = (dims.rank, weight.device());
    let (q, _) = qr(weight.clone().narrow(0, 0, rank).transpose());
    // Fewer columns than asked for where the first rows depend on each other.
    let missing = rank - q.dims()[1];
    let a = weight.clone().matmul(q.clone());
    let (mut a, mut b) = (vec![a], vec![q.transpose()]);
    if missing > 0 {
        a.push(Tensor::zeros([d_input, missing], &device));
        b.push(Tensor::zeros([missing, d_output], &device));
    }
    started(Tensor::cat(a, 1), Tensor::cat(b, 0), dims.factor)
}

fn started(a: Tensor<2>, b: Tensor<2>, factor: f64) -> Started {
    let frozen = |tensor: &Tensor<2>| Param::from_tensor(tensor.clone()).set_require_grad(false);
    let residual = Residual {
        a: frozen(&a),
        b: frozen(&b),
        factor,
    };
    Started {
        a,
        b: Some((b, residual)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BankConfig, ExpertBank, Scaling, Site};
    use molora_testkit::assert_close;

    const DIMS: SiteDims = SiteDims {
        d_input: 6,
        d_output: 8,
    };

    fn weight() -> Tensor<2> {
        uniform([6, 8], 1.0, Seed::new(7), &molora_testkit::device())
    }

    fn bank(start: Start, num_experts: usize, rank: usize) -> ExpertBank {
        let config = BankConfig {
            num_experts,
            rank,
            start,
            scaling: Scaling::AlphaOverRank(3.0),
            ..BankConfig::default()
        };
        config.validate().expect("valid");
        let weight = weight();
        let site = Site {
            dims: DIMS,
            tasks: 0,
            weight: Some(&weight),
        };
        config.init_at(site, Seed::new(1), &weight.device())
    }

    fn assert_unchanged(bank: &ExpertBank, weights: Tensor<1>) {
        let changed = weight() + bank.weight_delta(weights);
        assert_close(changed, weight(), 1e-6, "the layer's weight");
    }

    /// The part of W that the expert starts as is the best of its rank, and the layer is unchanged.
    #[test]
    fn pissa_starts_as_the_largest_part_of_the_weight() {
        let bank = bank(Start::Pissa, 1, 2);
        let part = bank.a.val().matmul(bank.b.val()).mul_scalar(bank.factor());
        let svd = Svd::of(&(weight() - part));
        let whole = Svd::of(&weight());
        for (left, all) in svd.values.iter().zip(&whole.values[2..]) {
            assert!((left - all).abs() < 1e-5, "{left} {all}");
        }
        let device = weight().device();
        assert_unchanged(&bank, Tensor::ones([1], &device));
    }

    #[test]
    fn olora_starts_with_orthonormal_rows_of_b() {
        let bank = bank(Start::Olora, 1, 3);
        let b = bank.b.val();
        let device = b.device();
        assert_close(
            b.clone().matmul(b.clone().transpose()),
            Tensor::<2>::eye(3, &device),
            1e-5,
            "rows of B",
        );
        // The first three rows of W lie in their span.
        let rows = weight().narrow(0, 0, 3);
        let again = bank.a.val().narrow(0, 0, 3).matmul(b);
        assert_close(again, rows, 1e-5, "rows of W");
        assert_unchanged(&bank, Tensor::ones([1], &device));
    }

    #[test]
    fn equal_weights_of_segments_change_nothing() {
        for last in [false, true] {
            let numbers = SegmentStart {
                last,
                ..SegmentStart::default()
            };
            let bank = bank(Start::Segments(numbers), 3, 2);
            let thirds = Tensor::full([3], 1.0 / 3.0, &weight().device());
            assert_unchanged(&bank, thirds);
            let first = Tensor::from_data([1.0, 0.0, 0.0], &weight().device());
            let size: f32 = bank.weight_delta(first).abs().max().into_scalar();
            assert!(size > 1e-3, "one expert alone changes the layer");
        }
    }

    #[test]
    fn what_one_expert_was_taken_from_stays_out() {
        let whole = bank(Start::Segments(SegmentStart::default()), 3, 2);
        let device = weight().device();
        let second = Tensor::from_data([0.0, 1.0, 0.0], &device);
        let alone = whole.expert(1).weight_delta(Tensor::ones([1], &device));
        assert_close(alone, whole.weight_delta(second), 1e-6, "delta");
    }
}
