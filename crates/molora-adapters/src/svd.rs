//! Singular values in f64.

use burn::tensor::Tensor;

/// A singular value decomposition, largest values first: the matrix is
/// `sum_i values[i] left[i] right[i]^T`. Signs are free. A value of 0 may have vectors of zeros.
pub(crate) struct Svd {
    /// Left vectors, as long as the matrix has rows.
    pub(crate) left: Vec<Vec<f64>>,
    /// Singular values, as many as the smaller side.
    pub(crate) values: Vec<f64>,
    /// Right vectors, as long as the matrix has columns.
    pub(crate) right: Vec<Vec<f64>>,
}

/// Cosine of two columns below which they count as orthogonal.
const ORTHOGONAL: f64 = 1e-14;

/// Far more than any matrix needs.
const SWEEPS: usize = 60;

impl Svd {
    /// Decomposes a matrix on the host by one-sided Jacobi rotations (Hestenes, doi:10.1137/0106005):
    /// columns are turned in pairs until all are orthogonal. Slow for wide matrices and exact to the
    /// last bits, small singular values too.
    pub(crate) fn of(matrix: &Tensor<2>) -> Self {
        let [rows, columns] = matrix.dims();
        let values: Vec<f64> = matrix.clone().into_data().iter::<f64>().collect();
        let column = |at: usize| (0..rows).map(|row| values[row * columns + at]).collect();
        let row = |at: usize| values[at * columns..][..columns].to_vec();
        match columns <= rows {
            true => Self::of_columns((0..columns).map(column).collect()),
            false => {
                let turned = Self::of_columns((0..rows).map(row).collect());
                Self {
                    left: turned.right,
                    right: turned.left,
                    values: turned.values,
                }
            }
        }
    }

    fn of_columns(mut columns: Vec<Vec<f64>>) -> Self {
        let count = columns.len();
        let one = |at| (0..count).map(|i| f64::from(u8::from(i == at))).collect();
        let mut turns: Vec<Vec<f64>> = (0..count).map(one).collect();
        for _ in 0..SWEEPS {
            let mut is_done = true;
            for second in 1..count {
                for first in 0..second {
                    if let Some(turn) = rotation(&columns[first], &columns[second]) {
                        rotate(&mut columns, first, second, turn);
                        rotate(&mut turns, first, second, turn);
                        is_done = false;
                    }
                }
            }
            if is_done {
                break;
            }
        }
        let norms: Vec<f64> = columns.iter().map(|c| dot(c, c).sqrt()).collect();
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]));
        let unit = |at: &usize| {
            let norm = norms[*at].max(f64::MIN_POSITIVE);
            columns[*at].iter().map(|x| x / norm).collect()
        };
        Self {
            left: order.iter().map(unit).collect(),
            values: order.iter().map(|&at| norms[at]).collect(),
            right: order.iter().map(|&at| turns[at].clone()).collect(),
        }
    }
}

/// Cosine and sine of the turn that makes two columns orthogonal; none if they are.
fn rotation(first: &[f64], second: &[f64]) -> Option<(f64, f64)> {
    let (a, b, c) = (dot(first, first), dot(second, second), dot(first, second));
    if c == 0.0 || c.abs() <= ORTHOGONAL * (a * b).sqrt() {
        return None;
    }
    let zeta = (b - a) / (2.0 * c);
    let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
    Some((cosine, cosine * tangent))
}

fn rotate(columns: &mut [Vec<f64>], first: usize, second: usize, (cosine, sine): (f64, f64)) {
    let (head, tail) = columns.split_at_mut(second);
    for (x, y) in head[first].iter_mut().zip(&mut tail[0]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
}

/// In eight sums, which a processor adds at once.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..8 {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_kernels::random::{Seed, uniform};

    fn check(matrix: &Tensor<2>) {
        let [rows, columns] = matrix.dims();
        let svd = Svd::of(matrix);
        assert_eq!(svd.values.len(), rows.min(columns));
        assert!(svd.values.is_sorted_by(|a, b| a >= b));
        let values: Vec<f64> = matrix.clone().into_data().iter::<f64>().collect();
        for (place, value) in values.iter().enumerate() {
            let (row, column) = (place / columns, place % columns);
            let terms = svd.values.iter().enumerate();
            let sum: f64 = terms
                .map(|(i, s)| s * svd.left[i][row] * svd.right[i][column])
                .sum();
            assert!((sum - value).abs() < 1e-12, "{sum} {value}");
        }
        for vectors in [&svd.left, &svd.right] {
            for (i, one) in vectors
                .iter()
                .enumerate()
                .filter(|(i, _)| svd.values[*i] > 1e-9)
            {
                for (j, other) in vectors
                    .iter()
                    .enumerate()
                    .filter(|(j, _)| svd.values[*j] > 1e-9)
                {
                    let expected = f64::from(u8::from(i == j));
                    assert!((dot(one, other) - expected).abs() < 1e-12, "{i} {j}");
                }
            }
        }
    }

    #[test]
    fn the_parts_make_the_matrix_again() {
        let device = molora_testkit::device();
        let random = |shape| -> Tensor<2> { uniform(shape, 1.0, Seed::new(4), &device) };
        check(&random([9, 5]));
        check(&random([5, 19]));
        let narrow = random([7, 2]);
        check(&Tensor::cat(vec![narrow.clone(), narrow], 1));
        check(&Tensor::zeros([3, 2], &device));
    }

    #[test]
    fn values_of_a_diagonal_are_its_entries() {
        let device = molora_testkit::device();
        let matrix = Tensor::<2>::from_data([[0.0, 2.0], [-3.0, 0.0]], &device);
        let svd = Svd::of(&matrix);
        assert!((svd.values[0] - 3.0).abs() < 1e-15 && (svd.values[1] - 2.0).abs() < 1e-15);
    }
}
