//! Least squares on the host, in f64: moments of activations are too uneven for f32.

/// A symmetric positive definite matrix as its Cholesky factor: `G = L L^T`.
pub(super) struct Cholesky {
    /// The rows of `L` up to the diagonal, one after the other in rows of full width.
    lower: Vec<f64>,
    width: usize,
}

impl Cholesky {
    /// Factors a matrix that is given row by row; none if it is not positive definite.
    pub(super) fn new(mut matrix: Vec<f64>, width: usize) -> Option<Self> {
        for row in 0..width {
            for column in 0..=row {
                let (upper, lower) = matrix.split_at(row * width);
                let left = &lower[..column];
                let right = match column == row {
                    true => left,
                    false => &upper[column * width..column * width + column],
                };
                let rest = lower[column] - dot(left, right);
                matrix[row * width + column] = match column == row {
                    true if rest > 0.0 => rest.sqrt(),
                    true => return None,
                    false => rest / upper[column * width + column],
                };
            }
        }
        Some(Self {
            lower: matrix,
            width,
        })
    }

    /// Replaces `c` by the solution `w` of `G w = c`.
    pub(super) fn solve(&self, c: &mut [f64]) {
        let width = self.width;
        let row = |index: usize| &self.lower[index * width..index * width + index + 1];
        for index in 0..width {
            let rest = c[index] - dot(&row(index)[..index], &c[..index]);
            c[index] = rest / row(index)[index];
        }
        for index in (0..width).rev() {
            c[index] /= row(index)[index];
            let (before, value) = (row(index), c[index]);
            for (other, factor) in c[..index].iter_mut().zip(before) {
                *other -= factor * value;
            }
        }
    }
}

pub(super) fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_solution_solves() {
        let matrix = vec![4.0, 2.0, 0.6, 2.0, 5.0, 1.5, 0.6, 1.5, 3.8];
        let factor = Cholesky::new(matrix.clone(), 3).expect("positive definite");
        let mut solution = [1.0, -2.0, 0.5];
        factor.solve(&mut solution);
        for (row, expected) in matrix.chunks(3).zip([1.0, -2.0, 0.5]) {
            assert!((dot(row, &solution) - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn a_matrix_without_inverse_is_refused() {
        assert!(Cholesky::new(vec![1.0, 1.0, 1.0, 1.0], 2).is_none());
        assert!(Cholesky::new(vec![0.0], 1).is_none());
    }
}
