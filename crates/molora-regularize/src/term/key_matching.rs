//! The divergence of an expert's centre from its key. SAMoRA, arXiv:2604.19048.

use burn::tensor::{Tensor, activation::log_softmax};
use molora_adapters::ExpertBank;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`key_matching`]; needs a router with keys in rank space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct KeyMatching;

impl TermNumbers for KeyMatching {
    fn needs(&self) -> &'static [Need] {
        &[Need::RankKeys]
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        let keys = site.keys.clone();
        keys.map(|keys| key_matching(keys, site.bank, reduction))
    }
}

/// Added to a probability inside the logarithm of the key side, as the SAMoRA code does.
const KEY_EPSILON: f64 = 1e-8;

/// Below this norm an expert's centre counts as zero: the derivative of `c / |c|` grows as
/// `1 / |c|`, and at the zero start of `B` it would drown every other gradient.
const CENTRE_FLOOR: f64 = 1e-6;

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
    use crate::orthogonality;
    use crate::term::testing::{KEYS, bank};
    use burn::module::Param;
    use molora_testkit::{FORWARD, GRADIENT, assert_close};

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
