//! Cosines between the outputs of experts.

use burn::tensor::Tensor;
use molora_adapters::ExpertBank;

use crate::Reduction;

/// Smallest product of two squared norms that is divided by: outputs of zero have no direction.
const NORM_FLOOR: f64 = 1e-24;

/// Squared cosines between the outputs of different experts, `sum_{i<j} cos^2(B_i A_i x, B_j A_j x)`:
/// the mean over real tokens, or their sum. An output of zero has cosine 0 and no gradient.
///
/// # Shapes
/// - `x`: `[B, T, D]`
/// - `mask`: `[B, T]`, 1 for real tokens
/// - returns `[1]`
pub fn output_cosine(
    bank: &ExpertBank,
    x: Tensor<3>,
    mask: Tensor<2>,
    reduction: Reduction,
) -> Tensor<1> {
    let [batch, tokens, _] = x.dims();
    let (experts, rank, rows) = (bank.num_experts(), bank.rank(), batch * tokens);
    let padding = mask.clone().equal_elem(0.0).unsqueeze_dim::<3>(2);
    let x = x.clone().mask_fill(padding.expand(x.dims()), 0.0);
    let low = bank.down(x, None).reshape([rows, bank.num_a(), rank]);
    let low_enr = low.swap_dims(0, 1).expand([experts, rows, rank]);
    let y_neo = low_enr.matmul(bank.b_by_expert()).swap_dims(0, 1);
    let square_ne1 = y_neo.clone().square().sum_dim(2);
    let norms = square_ne1.clone() * square_ne1.swap_dims(1, 2);
    let gram = y_neo.clone().matmul(y_neo.swap_dims(1, 2));
    let cosines = gram.square() / norms.clamp_min(NORM_FLOOR);
    let total = off_diagonal(cosines).sum().div_scalar(2.0);
    match reduction {
        Reduction::Mean => total / mask.sum().clamp_min(1.0),
        Reduction::Sum => total,
    }
}

/// Matrices `[N, E, E]` with zeros on their diagonals.
pub(crate) fn off_diagonal(matrices: Tensor<3>) -> Tensor<3> {
    let identity = Tensor::<2>::eye(matrices.dims()[1], &matrices.device());
    let is_diagonal = identity.equal_elem(1.0).unsqueeze::<3>();
    matrices
        .clone()
        .mask_fill(is_diagonal.expand(matrices.dims()), 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{across_experts, l2};
    use burn::module::Param;
    use molora_adapters::{BankConfig, SiteDims};
    use molora_kernels::random::Seed;
    use molora_testkit::{FORWARD, assert_close, autodiff_device, device};

    /// Two experts of rank 1 for D = O = 2.
    fn bank(a: [[f32; 2]; 2], b: [[f32; 2]; 2], device: &burn::tensor::Device) -> ExpertBank {
        let config = BankConfig {
            num_experts: 2,
            rank: 1,
            ..BankConfig::default()
        };
        let dims = SiteDims {
            d_input: 2,
            d_output: 2,
        };
        let mut bank = config.init(dims, Seed::new(0), device);
        bank.a = Param::from_data(a, device);
        bank.b = Param::from_data(b, device);
        bank
    }

    #[test]
    fn values_that_can_be_checked_by_hand() {
        let device = device();
        // Columns of A: (1, 0) and (3, 4); rows of B: (2, 0) and (1, 1).
        let bank = bank([[1.0, 3.0], [0.0, 4.0]], [[2.0, 0.0], [1.0, 1.0]], &device);
        assert_close(
            across_experts(&bank, Reduction::Sum),
            [3.0],
            FORWARD,
            "across",
        );
        assert_close(l2(&bank, Reduction::Sum), [32.0], FORWARD, "squares");
        assert_close(l2(&bank, Reduction::Mean), [4.0], FORWARD, "mean square");
        // The second token is padding full of junk.
        let x = Tensor::from_data([[[1.0, 1.0], [f32::NAN, 9.0]]], &device);
        let mask = Tensor::from_data([[1.0, 0.0]], &device);
        for reduction in [Reduction::Mean, Reduction::Sum] {
            let found = output_cosine(&bank, x.clone(), mask.clone(), reduction);
            assert_close(found, [0.5], FORWARD, "half a right angle");
        }
    }

    #[test]
    fn at_the_zero_start_outputs_have_no_direction_and_no_gradient() {
        let device = autodiff_device();
        let bank = bank([[1.0, 3.0], [0.0, 4.0]], [[0.0; 2]; 2], &device);
        let x = Tensor::ones([1, 1, 2], &device);
        let loss = output_cosine(&bank, x, Tensor::ones([1, 1], &device), Reduction::Mean);
        assert_close(loss.clone(), [0.0], 0.0, "value");
        let gradient = bank.b.val().grad(&loss.backward()).expect("tracked");
        assert_close(gradient, [[0.0; 2]; 2], 0.0, "gradient");
    }
}
