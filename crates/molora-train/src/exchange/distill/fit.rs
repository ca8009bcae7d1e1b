//! The LoRA of one site from moments.
//!
//! With inputs `X` `[N, D]` and deltas `Y = Z Q^T` `[N, O]`, least squares without a bound on the
//! rank gives
//!
//! ```text
//! W = (X^T X + lambda I)^-1 X^T Z
//! ```
//!
//! and of all matrices of rank R the best is `W P P^T`, where the columns of `P` are the first R
//! eigenvectors of `S = W^T X^T Z`: the truncated singular value decomposition of the fitted values.
//! (Izenman, Reduced-rank regression for the multivariate linear model, Journal of Multivariate
//! Analysis 5, 1975, eq. 2.4 with the identity as weight; the ridge is rows `sqrt(lambda) I` more of
//! `X` with zeros in `Z`.) So `A = W P` and `B = P^T Q^T`.

use burn::tensor::{Device, Tensor, TensorData};

use super::moments::Moments;
use super::solve::{Cholesky, dot};

/// `lambda` by the mean square of an input.
const RIDGE: f64 = 1e-6;

/// Far more than any matrix needs.
const SWEEPS: usize = 1000;

/// The LoRA of one site.
#[derive(Debug)]
pub(super) struct Fit {
    /// The columns of `A`, R of D numbers.
    a: Vec<Vec<f64>>,
    /// The columns of `P`, R of K numbers.
    p: Vec<Vec<f64>>,
    /// `Q^T`, `[K, O]`.
    span: Tensor<2>,
}

/// Moments on the host.
struct Host {
    d_input: usize,
    /// Rows of `X^T X`.
    xx: Vec<f64>,
    /// Columns of `X^T Z`.
    xz: Vec<Vec<f64>>,
}

impl Host {
    fn new(moments: &Moments) -> Self {
        let [d_input, kept] = moments.xz.dims();
        let columns: Vec<f64> = host(moments.xz.clone().transpose());
        Self {
            d_input,
            xx: host(moments.xx.clone()),
            xz: (0..kept)
                .map(|k| columns[k * d_input..(k + 1) * d_input].to_vec())
                .collect(),
        }
    }

    /// `X^T X + lambda I`; with inputs of zero alone, the identity.
    fn with_ridge(&self, ridge: f64) -> Vec<f64> {
        let width = self.d_input;
        let trace: f64 = (0..width).map(|index| self.xx[index * width + index]).sum();
        let lambda = match trace > 0.0 {
            true => ridge * trace / width as f64,
            false => 1.0,
        };
        let mut matrix = self.xx.clone();
        for index in 0..width {
            matrix[index * width + index] += lambda;
        }
        matrix
    }
}

/// Fits a LoRA of at most `rank`, or of the rank that the deltas can have.
pub(super) fn fit(moments: &Moments, rank: usize) -> Fit {
    let host = Host::new(moments);
    let mut ridge = RIDGE;
    // Rounding of f32 sums can exceed a small ridge.
    let factor = loop {
        match Cholesky::new(host.with_ridge(ridge), host.d_input) {
            Some(factor) => break factor,
            None => ridge *= 10.0,
        }
    };
    let solved = |column: &Vec<f64>| {
        let mut column = column.clone();
        factor.solve(&mut column);
        column
    };
    let w: Vec<Vec<f64>> = host.xz.iter().map(solved).collect();
    let p = first_eigenvectors(&w, &host.xz, rank, &moments.span.device());
    let column = |p: &Vec<f64>| {
        let mut sum = vec![0.0; host.d_input];
        for (weight, column) in p.iter().zip(&w) {
            for (sum, value) in sum.iter_mut().zip(column) {
                *sum += weight * value;
            }
        }
        sum
    };
    Fit {
        a: p.iter().map(column).collect(),
        p,
        span: moments.span.clone().transpose(),
    }
}

/// The first eigenvectors of `S = W^T X^T Z`, as many as `rank` or as there are.
fn first_eigenvectors(
    w: &[Vec<f64>],
    xz: &[Vec<f64>],
    rank: usize,
    device: &Device,
) -> Vec<Vec<f64>> {
    let kept = w.len();
    let products = w.iter().flat_map(|w| xz.iter().map(|z| dot(w, z)));
    let products: Vec<f64> = products.collect();
    let largest = products.iter().fold(0.0f64, |most, v| most.max(v.abs()));
    let scale = if largest > 0.0 { largest } else { 1.0 };
    // Symmetric but for rounding; f32 holds it only when its numbers are near 1.
    let entry = |index: usize| {
        let mirrored = index % kept * kept + index / kept;
        ((products[index] + products[mirrored]) / (2.0 * scale)) as f32
    };
    let matrix: Vec<f32> = (0..kept * kept).map(entry).collect();
    let matrix = Tensor::<2>::from_data(TensorData::new(matrix, [kept, kept]), device);
    let (u, _, _) = burn::linalg::svd::<2, 1>(matrix, SWEEPS);
    let columns = host(u.transpose());
    let vectors = columns.chunks(kept).take(rank).map(<[f64]>::to_vec);
    vectors.collect()
}

impl Fit {
    /// `A` `[D, R]` and `B` `[R, O]`.
    pub(super) fn factors(&self, device: &Device) -> [Tensor<2>; 2] {
        let matrix = |rows: &[Vec<f64>]| {
            let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
            let values: Vec<f32> = rows.iter().flatten().map(|&value| value as f32).collect();
            Tensor::<2>::from_data(TensorData::new(values, shape), device)
        };
        let leaf = |tensor: Tensor<2>| Tensor::from_data(tensor.into_data(), device);
        let b = matrix(&self.p).matmul(self.span.clone());
        [leaf(matrix(&self.a).transpose()), leaf(b)]
    }
}

/// `sqrt(sum |y - x A B|^2 / sum |y|^2)`; 0 where nothing is added.
///
/// With `M = A P^T` the sum is `sum |z|^2 - 2 <M, X^T Z> + <M, X^T X M>`.
pub(super) fn error(fit: &Fit, moments: &Moments) -> f64 {
    if moments.zz <= 0.0 {
        return 0.0;
    }
    let host = Host::new(moments);
    let mut rest = moments.zz;
    for (k, xz) in host.xz.iter().enumerate() {
        let mut column = vec![0.0; host.d_input];
        for (a, p) in fit.a.iter().zip(&fit.p) {
            for (sum, value) in column.iter_mut().zip(a) {
                *sum += p[k] * value;
            }
        }
        let rows = host.xx.chunks(host.d_input);
        let square = rows
            .zip(&column)
            .map(|(row, value)| value * dot(row, &column));
        rest += square.sum::<f64>() - 2.0 * dot(&column, xz);
    }
    (rest / moments.zz).max(0.0).sqrt()
}

fn host(tensor: Tensor<2>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_kernels::random::{Seed, normal};
    use molora_testkit::assert_close;

    fn random(shape: [usize; 2], seed: u64) -> Tensor<2> {
        normal(shape, 1.0, Seed::new(seed), &molora_testkit::device())
    }

    /// Moments of inputs `[N, D]` and deltas `[N, O]` in the span of `[K, O]`.
    fn moments(x: &Tensor<2>, y: &Tensor<2>, b: Tensor<2>) -> Moments {
        let (span, _) = molora_adapters::qr(b.transpose());
        let z = y.clone().matmul(span.clone());
        let xt = x.clone().transpose();
        Moments {
            span,
            xx: xt.clone().matmul(x.clone()),
            xz: xt.matmul(z.clone()),
            zz: z.square().sum().into_scalar::<f64>(),
        }
    }

    fn residual(fit: &Fit, x: &Tensor<2>, y: &Tensor<2>) -> f64 {
        let [a, b] = fit.factors(&x.device());
        let square = |t: Tensor<2>| t.square().sum().into_scalar::<f64>();
        let rest = y.clone() - x.clone().matmul(a).matmul(b);
        (square(rest) / square(y.clone())).sqrt()
    }

    #[test]
    fn a_delta_of_that_rank_is_found_again() {
        let (x, a, b) = (random([40, 6], 1), random([6, 2], 2), random([2, 5], 3));
        let y = x.clone().matmul(a.clone()).matmul(b.clone());
        let moments = moments(&x, &y, b.clone());
        let fit = fit(&moments, 4);
        let [found_a, found_b] = fit.factors(&x.device());
        assert_eq!(found_a.dims(), [6, 2], "the deltas have rank 2");
        assert_close(found_a.matmul(found_b), a.matmul(b), 1e-4, "delta");
        assert!(error(&fit, &moments) < 2e-3);
    }

    /// The error is what the files' factors give, and no other LoRA of the rank gives less: neither
    /// the truncated weights of least squares nor small changes of the fit.
    #[test]
    fn no_other_lora_fits_better() {
        let (mut x, b) = (random([60, 6], 1), random([4, 5], 2));
        // Inputs of unequal sizes tell a fit of outputs from one of weights.
        let sizes = Tensor::<1>::from_data([3.0, 2.0, 1.0, 0.5, 0.2, 0.1], &x.device());
        x = x * sizes.unsqueeze();
        let gates = random([60, 1], 3).abs();
        let y = x.clone().matmul(random([6, 4], 4)).matmul(b.clone()) * gates;
        let moments = moments(&x, &y, b);
        for rank in 1..4 {
            let found = fit(&moments, rank);
            let least = residual(&found, &x, &y);
            assert!(
                (least - error(&found, &moments)).abs() < 1e-4,
                "rank {rank}"
            );
            let [a, b] = fit(&moments, 4).factors(&x.device());
            let whole = molora_adapters::LowRank { a, b, scale: 1.0 };
            let cut = molora_adapters::truncated(&whole, rank);
            let rest = y.clone() - x.clone().matmul(cut.a).matmul(cut.b);
            let share = rest.square().sum() / y.clone().square().sum();
            assert!(least < share.sqrt().into_scalar::<f64>(), "rank {rank}");
            for seed in 0..8 {
                let mut moved = fit(&moments, rank);
                let shift = host(random([rank, 6], 10 + seed));
                for (a, shift) in moved.a.iter_mut().zip(shift.chunks(6)) {
                    a.iter_mut().zip(shift).for_each(|(a, s)| *a += 0.01 * s);
                }
                assert!(residual(&moved, &x, &y) > least, "rank {rank}");
            }
        }
    }

    #[test]
    fn nothing_added_is_fitted_by_nothing() {
        let (x, b) = (random([10, 3], 1), random([2, 4], 2));
        let moments = moments(&x, &Tensor::zeros([10, 4], &x.device()), b);
        let fit = fit(&moments, 1);
        assert_eq!(error(&fit, &moments), 0.0);
        let [a, b] = fit.factors(&x.device());
        assert_close(a.matmul(b), [[0.0; 4]; 3], 1e-12, "delta");
    }
}
