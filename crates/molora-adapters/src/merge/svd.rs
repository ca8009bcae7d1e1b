//! Truncated singular value decompositions.

use burn::tensor::{Tensor, TensorData};

use super::LowRank;
use super::eigen::symmetric;
use crate::qr;

/// The nearest delta of a rank: `a` gets orthonormal columns, `b` the singular values. Filled up with
/// zeros where the rank is larger than that of the given one.
///
/// With `a = Q1 R1` and `b^T = Q2 R2` only the small `R1 R2^T` is decomposed.
pub fn truncated(delta: &LowRank, rank: usize) -> LowRank {
    // burn has no singular values with gradients, and nobody asks for them here.
    if delta.a.is_autodiff() {
        let plain = LowRank {
            a: delta.a.clone().inner(),
            b: delta.b.clone().inner(),
            scale: delta.scale,
        };
        let LowRank { a, b, scale } = truncated(&plain, rank);
        return LowRank {
            a: Tensor::from_inner(a),
            b: Tensor::from_inner(b),
            scale,
        };
    }
    let ((a, size_a), (b, size_b)) = (tamed(&delta.a), tamed(&delta.b));
    let (q1, r1) = qr(a);
    let (q2, r2) = qr(b.transpose());
    let core = r1.matmul(r2.transpose()).mul_scalar(delta.scale);
    let (u, s, vt) = burn::linalg::svd::<2, 1>(core, SWEEPS);
    let s = s.mul_scalar(size_a * size_b);
    let kept = rank.min(s.dims()[0]);
    let s = s.narrow(0, 0, kept).reshape([kept, 1]);
    let a = q1.matmul(u.narrow(1, 0, kept));
    let b = (vt.narrow(0, 0, kept) * s).matmul(q2.transpose());
    let ([d_input, _], [_, d_output], device) = (a.dims(), b.dims(), a.device());
    let (mut a, mut b) = (vec![a], vec![b]);
    if kept < rank {
        a.push(Tensor::zeros([d_input, rank - kept], &device));
        b.push(Tensor::zeros([rank - kept, d_output], &device));
    }
    LowRank {
        a: Tensor::cat(a, 1),
        b: Tensor::cat(b, 0),
        scale: 1.0,
    }
}

/// A matrix whose product with another such one is finite, and the size that was taken out of it: 1
/// unless its numbers are far larger than any that were trained. burn's singular values panic on
/// infinities.
fn tamed(matrix: &Tensor<2>) -> (Tensor<2>, f64) {
    const LARGE: f32 = 1e12;
    let largest: f32 = matrix.clone().abs().max().into_scalar();
    match largest > LARGE && largest.is_finite() {
        true => (matrix.clone().div_scalar(largest), f64::from(largest)),
        false => (matrix.clone(), 1.0),
    }
}

/// Far more than any matrix needs.
const SWEEPS: usize = 1000;

/// The nearest matrix of a rank to a matrix `[D, O]` (Eckart and Young, 1936), as factors: `a` gets
/// orthonormal columns, `b` the singular values. Filled up with zeros where the rank is larger than
/// the smaller width.
///
/// By the eigenvectors of the smaller of `M M^T` and `M^T M`, in f64.
pub fn truncated_matrix(matrix: &Tensor<2>, rank: usize) -> LowRank {
    let ([d_input, d_output], device) = (matrix.dims(), matrix.device());
    let is_tall = d_output <= d_input;
    let (rows, squares, vectors) = decomposed(matrix);
    let (length, width) = (d_input.max(d_output), d_input.min(d_output));
    let kept = rank.min(width);
    // Images of the vectors by length, and the vectors times the length.
    let (mut images, mut scaled) = (vec![0.0; rank * length], vec![0.0; rank * width]);
    for index in 0..kept {
        let size = squares[index].max(0.0).sqrt();
        if size == 0.0 {
            break;
        }
        let image = &mut images[index * length..(index + 1) * length];
        for (at, x) in image.iter_mut().enumerate() {
            let row = &rows[at * width..(at + 1) * width];
            *x = (super::eigen::dot(row, &vectors[index]) / size) as f32;
        }
        let own = &mut scaled[index * width..(index + 1) * width];
        for (x, v) in own.iter_mut().zip(&vectors[index]) {
            *x = (size * v) as f32;
        }
    }
    let tensor = |values: Vec<f32>, width: usize| {
        Tensor::<2>::from_data(TensorData::new(values, [rank, width]), &device)
    };
    let (images, scaled) = (tensor(images, length), tensor(scaled, width));
    // The columns of `a` are orthonormal: where the matrix is wide, the vectors are those columns.
    let (a, b) = match is_tall {
        true => (images.transpose(), scaled),
        false => {
            let sizes = scaled.clone().powi_scalar(2).sum_dim(1).sqrt();
            let safe = sizes.clone() + sizes.clone().equal_elem(0.0).float();
            ((scaled / safe).transpose(), images * sizes)
        }
    };
    LowRank { a, b, scale: 1.0 }
}

/// The singular values of a matrix, largest first, as many as its smaller width.
pub fn singular_values(matrix: &Tensor<2>) -> Vec<f64> {
    let (_, squares, _) = decomposed(matrix);
    squares
        .into_iter()
        .map(|square| square.max(0.0).sqrt())
        .collect()
}

/// The rows of a tall matrix, or of the transpose of a wide one, with the eigenvalues and
/// eigenvectors of the product of its transpose with itself.
fn decomposed(matrix: &Tensor<2>) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
    let matrix = match matrix.is_autodiff() {
        true => matrix.clone().inner(),
        false => matrix.clone(),
    };
    let tall = match matrix.dims() {
        [d_input, d_output] if d_output > d_input => matrix.transpose(),
        _ => matrix,
    };
    let [_, width] = tall.dims();
    let rows: Vec<f64> = tall.into_data().iter::<f64>().collect();
    let mut gram = vec![0.0; width * width];
    for row in rows.chunks(width) {
        for (at, x) in row.iter().enumerate().filter(|(_, x)| **x != 0.0) {
            let sums = &mut gram[at * width..(at + 1) * width];
            sums.iter_mut().zip(row).for_each(|(sum, y)| *sum += x * y);
        }
    }
    let (squares, vectors) = symmetric(gram, width);
    (rows, squares, vectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_kernels::random::{Seed, uniform};
    use molora_testkit::{FORWARD, assert_close, device};

    #[test]
    fn a_matrix_is_cut_as_its_factors_are() {
        let device = device();
        for dims in [[7, 4], [4, 7], [5, 5]] {
            let matrix: Tensor<2> = uniform(dims, 1.0, Seed::new(4), &device);
            let eye = Tensor::eye(dims[1], &device);
            let factors = LowRank {
                a: matrix.clone(),
                b: eye,
                scale: 1.0,
            };
            for rank in [1, 3, 5, 8] {
                let found = truncated_matrix(&matrix, rank);
                assert_eq!(
                    (found.a.dims(), found.b.dims()),
                    ([dims[0], rank], [rank, dims[1]])
                );
                let expected = truncated(&factors, rank).delta();
                let what = format!("{dims:?} at {rank}");
                assert_close(found.delta(), expected, FORWARD, &what);
                let kept = rank.min(dims[0]).min(dims[1]);
                let a = found.a.narrow(1, 0, kept);
                let products = a.clone().transpose().matmul(a);
                assert_close(products, Tensor::<2>::eye(kept, &device), FORWARD, &what);
            }
            let squares: f64 = singular_values(&matrix).iter().map(|s| s * s).sum();
            let sum = matrix.powi_scalar(2).sum();
            assert_close([squares as f32], sum.into_data(), FORWARD, "squares");
        }
        let zero = truncated_matrix(&Tensor::zeros([3, 2], &device), 2);
        assert_close(
            zero.delta(),
            Tensor::<2>::zeros([3, 2], &device),
            0.0,
            "zero",
        );
    }
}
