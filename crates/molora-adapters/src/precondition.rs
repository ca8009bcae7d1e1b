//! Riemannian preconditioning of the gradients of low-rank factors. Zhang and Pilanci,
//! arXiv:2402.02347; for mixtures of LoRA experts arXiv:2502.15828.
//!
//! ```text
//! A <- (B^T B + delta I)^-1 gA        B <- gB (A A^T + delta I)^-1        of each expert
//! ```
//!
//! A gradient step then moves the product `B A` as a step on the manifold of matrices of rank R would,
//! whatever the norms of the factors are.

use burn::tensor::Tensor;

/// The preconditioned gradient of down-projections, `(B^T B + delta I)^-1 gA`.
///
/// `delta` keeps the inverse finite: at the start `B` is zero and the gradient is divided by it.
///
/// # Shapes
/// - `up`: `[E, O, R]`
/// - `gradient`: `[E, R, D]`
/// - returns `[E, R, D]`
pub fn precondition_down(up: Tensor<3>, gradient: Tensor<3>, delta: f64) -> Tensor<3> {
    let gram = up.clone().swap_dims(1, 2).matmul(up);
    solve(damped(gram, delta), gradient)
}

/// The preconditioned gradient of up-projections, `gB (A A^T + delta I)^-1`.
///
/// # Shapes
/// - `down`: `[E, R, D]`
/// - `gradient`: `[E, O, R]`
/// - returns `[E, O, R]`
pub fn precondition_up(down: Tensor<3>, gradient: Tensor<3>, delta: f64) -> Tensor<3> {
    let gram = down.clone().matmul(down.swap_dims(1, 2));
    solve(damped(gram, delta), gradient.swap_dims(1, 2)).swap_dims(1, 2)
}

/// `M + delta I` for matrices `[E, R, R]`.
fn damped(matrices: Tensor<3>, delta: f64) -> Tensor<3> {
    let rank = matrices.dims()[1];
    let eye = Tensor::<2>::eye(rank, &matrices.device());
    matrices + eye.mul_scalar(delta).unsqueeze()
}

/// `M^-1 V` for symmetric positive definite `M` `[E, R, R]` and `V` `[E, R, N]`, by elimination
/// without pivots, which such matrices do not need. All matrices take each step together, on the
/// device.
fn solve(matrices: Tensor<3>, values: Tensor<3>) -> Tensor<3> {
    let ([count, rank, _], width) = (matrices.dims(), values.dims()[2]);
    let mut rows = Tensor::cat(vec![matrices, values], 2);
    let one = |row: usize| [0..count, row..row + 1, 0..rank + width];
    for row in 0..rank {
        let pivot = rows.clone().slice(one(row));
        let pivot = pivot.clone() / pivot.narrow(2, row, 1);
        let column = rows.clone().narrow(2, row, 1);
        rows = (rows - column * pivot.clone()).slice_assign(one(row), pivot);
    }
    rows.narrow(2, rank, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_kernels::random::{Seed, uniform};
    use molora_testkit::{GRADIENT, assert_close};

    #[test]
    fn a_solution_solves() {
        let device = molora_testkit::device();
        let up: Tensor<3> = uniform([3, 7, 4], 1.0, Seed::new(1), &device);
        let gradient: Tensor<3> = uniform([3, 4, 5], 1.0, Seed::new(2), &device);
        let found = precondition_down(up.clone(), gradient.clone(), 0.1);
        let gram = damped(up.clone().swap_dims(1, 2).matmul(up), 0.1);
        assert_close(gram.matmul(found), gradient, GRADIENT, "M X");
    }

    #[test]
    fn at_the_start_the_gradient_is_divided_by_delta() {
        let device = molora_testkit::device();
        let gradient: Tensor<3> = uniform([2, 3, 5], 1.0, Seed::new(2), &device);
        let found = precondition_down(Tensor::zeros([2, 6, 3], &device), gradient.clone(), 0.5);
        assert_close(found, gradient.mul_scalar(2.0), GRADIENT, "B is zero");
    }

    #[test]
    fn an_orthonormal_factor_changes_nothing() {
        let device = molora_testkit::device();
        let down = Tensor::<2>::eye(4, &device)
            .narrow(0, 0, 2)
            .unsqueeze::<3>();
        let gradient: Tensor<3> = uniform([1, 6, 2], 1.0, Seed::new(2), &device);
        let found = precondition_up(down, gradient.clone(), 0.0);
        assert_close(found, gradient, GRADIENT, "A A^T is the identity");
    }
}
