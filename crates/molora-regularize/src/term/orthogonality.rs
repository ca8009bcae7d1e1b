//! Orthogonality of both projections. SAMoRA, arXiv:2604.19048.

use burn::tensor::Tensor;
use molora_adapters::ExpertBank;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SiteView, TermNumbers};
use crate::Reduction;

/// See [`orthogonality`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Orthogonality;

impl TermNumbers for Orthogonality {
    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        Some(orthogonality(site.bank, reduction))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::term::testing::bank;
    use molora_testkit::{GRADIENT, assert_close};

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
}
