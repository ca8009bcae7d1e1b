//! Task vectors under coefficients and masks that are learned.

use burn::tensor::{Tensor, activation::sigmoid};

/// `theta_0 + sum_i lambda_i tau_i` with a gradient for the coefficients (AdaMerging, Yang et al.,
/// arXiv:2310.02575, eq. 2 and 3).
///
/// # Shapes
/// - `base`: `[D, O]`
/// - `deltas`: one `[D, O]` for each of K tasks
/// - `coefficients`: `[K]`
///
/// # Panics
/// If shapes differ or there is no delta.
pub fn with_coefficients(
    base: Tensor<2>,
    deltas: &[Tensor<2>],
    coefficients: Tensor<1>,
) -> Tensor<2> {
    let (dims, count) = (base.dims(), deltas.len());
    let rows = deltas
        .iter()
        .map(|delta| delta.clone().reshape([1, dims[0] * dims[1]]));
    let rows = Tensor::cat(rows.collect(), 0);
    let sum = coefficients.reshape([1, count]).matmul(rows);
    base + sum.reshape(dims)
}

/// The Concrete mask of a parameter, rescaled so that its mean is 1 (Tang et al., arXiv:2312.06173,
/// eq. 6 and section 4.2):
///
/// ```text
/// m = sigmoid((log u - log(1 - u) + logits) / temperature),    m / mean(m)
/// ```
///
/// The gradient flows through the mean too.
///
/// # Shapes
/// - `logits` and `noise` `u`, uniform between 0 and 1: `[D, O]`
pub fn concrete_mask(logits: Tensor<2>, noise: Tensor<2>, temperature: f64) -> Tensor<2> {
    let noise = noise.clone().log() - noise.neg().add_scalar(1.0).log();
    let mask = sigmoid((logits + noise).div_scalar(temperature));
    let mean = mask.clone().mean().reshape([1, 1]);
    mask / mean
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close, device};

    #[test]
    fn coefficients_are_those_of_task_arithmetic() {
        let device = device();
        let matrix = |row: [f32; 2]| Tensor::<2>::from_data([row], &device);
        let merged = with_coefficients(
            matrix([1.0, 2.0]),
            &[matrix([1.0, 0.0]), matrix([0.0, 4.0])],
            Tensor::from_data([0.5, -0.25], &device),
        );
        assert_close(merged, [[1.5, 1.0]], FORWARD, "merged");
    }

    #[test]
    fn a_mask_has_mean_one_and_equal_logits_give_ones() {
        let device = device();
        let half = Tensor::<2>::full([3, 4], 0.5, &device);
        let ones = concrete_mask(half.zeros_like(), half.clone(), 0.5);
        assert_close(ones, Tensor::<2>::ones([3, 4], &device), FORWARD, "ones");
        let logits = Tensor::<2>::from_data([[2.0, -1.0, 0.5, 0.0]], &device);
        let mask = concrete_mask(logits, half.narrow(0, 0, 1), 0.5);
        assert_close(mask.mean(), [1.0], FORWARD, "mean");
    }
}
