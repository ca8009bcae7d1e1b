//! Singular values in f64.

mod tridiagonal;

use burn::tensor::Tensor;

/// A singular value decomposition, or some triples of it, largest values first: the matrix is
/// `sum_i values[i] left[i] right[i]^T`. Signs are free. A value of 0 may have vectors of zeros.
pub(crate) struct Svd {
    /// Left vectors, as long as the matrix has rows.
    pub(crate) left: Vec<Vec<f64>>,
    /// Singular values: all, as many as the smaller side, or those that were asked for.
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

    /// The triples at `places` of all, counted from the largest value on: by eigenvectors of the product of
    /// the matrix with itself, in far less time than [`of`](Self::of) takes for a wide one. Values below
    /// about 1e-8 of the largest are rounding.
    ///
    /// # Panics
    /// If a place is not below the smaller side.
    pub(crate) fn at(matrix: &Tensor<2>, places: &[usize]) -> Self {
        let [rows, columns] = matrix.dims();
        let values: Vec<f64> = matrix.clone().into_data().iter::<f64>().collect();
        let is_tall = columns <= rows;
        let column = |at: usize| (0..rows).map(|row| values[row * columns + at]).collect();
        let row = |at: usize| values[at * columns..][..columns].to_vec();
        let vectors: Vec<Vec<f64>> = match is_tall {
            true => (0..columns).map(column).collect(),
            false => (0..rows).map(row).collect(),
        };
        assert!(
            places.iter().all(|&place| place < vectors.len()),
            "{places:?}"
        );
        let products = vectors
            .iter()
            .map(|one| vectors.iter().map(|other| dot(one, other)).collect());
        let near = tridiagonal::eigenvectors(products.collect(), places);
        let mut far = Vec::new();
        let mut sizes = Vec::new();
        for vector in &near {
            let mut sum = vec![0.0; vectors[0].len()];
            for (part, factor) in vectors.iter().zip(vector) {
                sum.iter_mut()
                    .zip(part)
                    .for_each(|(sum, x)| *sum += factor * x);
            }
            let norm = dot(&sum, &sum).sqrt();
            let length = norm.max(f64::MIN_POSITIVE);
            sum.iter_mut().for_each(|x| *x /= length);
            far.push(sum);
            sizes.push(norm);
        }
        let (left, right) = match is_tall {
            true => (far, near),
            false => (near, far),
        };
        Self {
            left,
            values: sizes,
            right,
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
    fn some_triples_are_those_of_all() {
        let device = molora_testkit::device();
        for (shape, places) in [
            ([9, 5], vec![0, 1, 2, 3, 4]),
            ([5, 19], vec![0, 2, 3]),
            ([40, 33], vec![0, 8, 9, 31, 32]),
            ([1, 4], vec![0]),
            ([3, 2], vec![1]),
        ] {
            let matrix: Tensor<2> = uniform(shape, 1.0, Seed::new(9), &device);
            let (all, some) = (Svd::of(&matrix), Svd::at(&matrix, &places));
            for (number, &place) in places.iter().enumerate() {
                let value = some.values[number];
                assert!(
                    (value - all.values[place]).abs() < 1e-11,
                    "{shape:?} {place}"
                );
                // Both signs turn together.
                let signs = [(&some.left, &all.left), (&some.right, &all.right)]
                    .map(|(some, all)| dot(&some[number], &all[place]));
                let same = (signs[0] * signs[1] - 1.0).abs();
                assert!(same < 1e-9, "{shape:?} {place}: {signs:?}");
            }
        }
    }

    /// Equal values share their vectors in any way, but those are orthonormal.
    #[test]
    fn equal_values_have_orthonormal_vectors() {
        let device = molora_testkit::device();
        for matrix in [
            Tensor::<2>::eye(6, &device),
            Tensor::<2>::zeros([6, 7], &device),
        ] {
            let some = Svd::at(&matrix, &[0, 1, 4]);
            let vectors = match matrix.dims()[1] {
                6 => &some.right,
                _ => &some.left,
            };
            for (i, one) in vectors.iter().enumerate() {
                for (j, other) in vectors.iter().enumerate() {
                    let expected = f64::from(u8::from(i == j));
                    assert!((dot(one, other) - expected).abs() < 1e-12, "{i} {j}");
                }
            }
        }
    }

    #[test]
    fn values_of_a_diagonal_are_its_entries() {
        let device = molora_testkit::device();
        let matrix = Tensor::<2>::from_data([[0.0, 2.0], [-3.0, 0.0]], &device);
        let svd = Svd::of(&matrix);
        assert!((svd.values[0] - 3.0).abs() < 1e-15 && (svd.values[1] - 2.0).abs() < 1e-15);
    }
}
