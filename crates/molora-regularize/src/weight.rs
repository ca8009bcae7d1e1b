//! Penalties on the weights of banks and keys.

use burn::tensor::{Tensor, activation::log_softmax};
use molora_adapters::ExpertBank;

use crate::Reduction;

/// Added to a probability inside the logarithm of the key side, as the SAMoRA code does.
const KEY_EPSILON: f64 = 1e-8;

/// Below this norm an expert's centre counts as zero: the derivative of `c / |c|` grows as
/// `1 / |c|`, and at the zero start of `B` it would drown every other gradient.
const CENTRE_FLOOR: f64 = 1e-6;

/// Orthogonality of both projections: `||A A^T - I||^2 + sum_e ||B_e^T B_e - I||^2`.
///
/// [`Reduction::Sum`] takes Frobenius sums as the paper does; [`Reduction::Mean`] takes for `A` and
/// for `B` the mean over all matrix entries (experts included) as the released code does.
///
/// At `B = 0` the value of the second part is `1 / R` (mean) and its gradient exactly 0.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// SAMoRA, arXiv:2604.19048.
pub fn orthogonality(bank: &ExpertBank, reduction: Reduction) -> Tensor<1> {
    let a_adr = bank.a_by_expert();
    let gram_a = a_adr.clone().swap_dims(1, 2).matmul(a_adr);
    let b_ero = bank.b_by_expert();
    let gram_b = b_ero.clone().matmul(b_ero.swap_dims(1, 2));
    distance_from_identity(gram_a, reduction) + distance_from_identity(gram_b, reduction)
}

/// Squared distance of each `[R, R]` matrix from the identity, `[E, R, R]` to `[1]`.
fn distance_from_identity(gram: Tensor<3>, reduction: Reduction) -> Tensor<1> {
    let identity = Tensor::<2>::eye(gram.dims()[1], &gram.device());
    let square = (gram - identity.unsqueeze()).square();
    match reduction {
        Reduction::Mean => square.mean(),
        Reduction::Sum => square.sum(),
    }
}

/// Key matching: `KL(Q_e || P_e)` between each expert's centre and its key, over experts.
///
/// `Q_e = softmax(b_e / |b_e|)` with `b_e` the mean of the rows of `B_e`, and
/// `P_e = softmax(k_e / |k_e|)`, both over the R coordinates; gradients go to both sides. The mean
/// over experts (the released code) or their sum. A centre with a norm below 1e-6 counts
/// as zero (`Q` uniform) and gets no gradient.
///
/// # Shapes
/// - `keys`: `[E, R]`
/// - returns `[1]`
///
/// # Panics
/// If the keys' width is not the bank's rank.
///
/// # Source
/// SAMoRA, arXiv:2604.19048.
pub fn key_matching(keys: Tensor<2>, bank: &ExpertBank, reduction: Reduction) -> Tensor<1> {
    let experts = bank.num_experts();
    assert_eq!(
        keys.dims(),
        [experts, bank.rank()],
        "keys live in the rank space of the bank"
    );
    let centres = bank
        .b_by_expert()
        .mean_dim(2)
        .reshape([experts, bank.rank()]);
    let log_q = log_softmax(unit_or_zero(centres), 1);
    let log_p = (log_softmax(unit_or_zero(keys), 1).exp() + KEY_EPSILON).log();
    let divergence = (log_q.clone().exp() * (log_q - log_p)).sum();
    match reduction {
        Reduction::Mean => divergence.div_scalar(experts as f64),
        Reduction::Sum => divergence,
    }
}

/// Rows divided by their norm; rows with a norm below [`CENTRE_FLOOR`] become constant zeros.
fn unit_or_zero(rows: Tensor<2>) -> Tensor<2> {
    let square = rows.clone().square().sum_dim(1);
    let is_zero = square
        .clone()
        .detach()
        .lower_elem(CENTRE_FLOOR * CENTRE_FLOOR);
    let norm = square.mask_fill(is_zero.clone(), 1.0).sqrt();
    (rows.clone() / norm).mask_fill(is_zero.expand(rows.dims()), 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Param;
    use burn::tensor::Device;
    use molora_adapters::{BankConfig, Sharing, SiteDims};
    use molora_kernels::random::Seed;
    use molora_testkit::{FORWARD, GRADIENT, assert_close};

    const KEYS: [[f32; 2]; 3] = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]];

    /// The bank of the SAMoRA notes' worked example: R 2, D 4, O 3, E 3.
    fn bank(device: &Device) -> ExpertBank {
        let config = BankConfig {
            sharing: Sharing::SharedA,
            num_experts: 3,
            rank: 2,
            ..BankConfig::default()
        };
        let mut bank = config.init(
            SiteDims {
                d_input: 4,
                d_output: 3,
            },
            Seed::new(0),
            device,
        );
        bank.a = Param::from_data([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 1.0]], device);
        bank.b = Param::from_data(
            [
                [1.0, 0.0, 1.0],
                [0.0, 1.0, 1.0],
                [0.0, 1.0, -1.0],
                [1.0, 0.0, 1.0],
                [2.0, 0.0, 1.0],
                [0.0, -1.0, 0.0],
            ],
            device,
        );
        bank
    }

    #[test]
    fn values_of_the_worked_example() {
        let device = molora_testkit::device();
        let bank = bank(&device);
        assert_close(
            orthogonality(&bank, Reduction::Mean),
            [7.75 + 2.0],
            FORWARD,
            "mean",
        );
        assert_close(
            orthogonality(&bank, Reduction::Sum),
            [31.0 + 24.0],
            FORWARD,
            "sum",
        );
        let matching = key_matching(Tensor::from_data(KEYS, &device), &bank, Reduction::Mean);
        assert_close(matching, [0.095397], FORWARD, "match");
    }

    #[test]
    fn start_values_at_zero_b() {
        let device = molora_testkit::autodiff_device();
        let mut bank = bank(&device);
        bank.b = Param::from_tensor(Tensor::zeros([6, 3], &device));
        let keys = Tensor::<2>::from_data(KEYS, &device).require_grad();
        let matching = key_matching(keys.clone(), &bank, Reduction::Mean);
        assert_close(matching.clone(), [0.080076], FORWARD, "match");
        let gradients = matching.backward();
        let to_b = bank
            .b
            .val()
            .grad(&gradients)
            .map(|gradient| gradient.abs().max());
        assert_eq!(
            to_b.map_or(0.0, |largest| largest.into_scalar::<f32>()),
            0.0
        );
        assert!(
            keys.grad(&gradients)
                .expect("tracked")
                .abs()
                .max()
                .into_scalar::<f32>()
                > 1e-3
        );
    }

    #[test]
    fn gradients_of_orthogonality_are_analytic() {
        let device = molora_testkit::autodiff_device();
        let bank = bank(&device);
        let gradients = orthogonality(&bank, Reduction::Mean).backward();
        let to_a = bank.a.val().grad(&gradients).expect("tracked").transpose();
        let expected = [[5.0, 1.0, 11.0, -4.0], [1.0, 2.0, 4.0, 1.0]];
        assert_close(to_a, expected, GRADIENT, "d orth / dA");
        let third = 1.0 / 3.0;
        let to_b = bank.b.val().grad(&gradients).expect("tracked");
        let expected = [
            [third, third, 2.0 * third],
            [third, third, 2.0 * third],
            [-third, third, -2.0 * third],
            [third, -third, 2.0 * third],
            [8.0 * third, 0.0, 4.0 * third],
            [0.0, 0.0, 0.0],
        ];
        assert_close(to_b, expected, GRADIENT, "d orth / dB");
    }

    #[test]
    fn gradients_of_key_matching_are_analytic() {
        let device = molora_testkit::autodiff_device();
        let bank = bank(&device);
        let keys = Tensor::<2>::from_data(KEYS, &device).require_grad();
        let gradients = key_matching(keys.clone(), &bank, Reduction::Mean).backward();
        let expected = [[0.0, -0.077020], [0.0, 0.0], [-0.065966, 0.065966]];
        assert_close(
            keys.grad(&gradients).expect("tracked"),
            expected,
            GRADIENT,
            "d match / dk",
        );
        let (first, third) = ([-0.029463, 0.029463], [-0.004578, -0.013734]);
        let expected = [
            [first[0]; 3],
            [first[1]; 3],
            [0.0; 3],
            [0.0; 3],
            [third[0]; 3],
            [third[1]; 3],
        ];
        assert_close(
            bank.b.val().grad(&gradients).expect("tracked"),
            expected,
            GRADIENT,
            "d match / dB",
        );
    }
}
