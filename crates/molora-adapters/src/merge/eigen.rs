//! Eigenvectors of symmetric matrices, on the host in f64.
//!
//! Householder reflections make the matrix tridiagonal, QL steps with implicit shifts diagonal (Golub
//! and Van Loan, Matrix Computations, 4th edition, sections 8.3.1 and 8.3.3).

/// Steps for one eigenvalue; two or three are usual, and numbers that are not finite need a bound.
const STEPS: usize = 60;

/// The eigenvalues of a symmetric matrix of rows, largest first, and the eigenvectors as rows.
pub(super) fn symmetric(mut matrix: Vec<f64>, width: usize) -> (Vec<f64>, Vec<Vec<f64>>) {
    let reflections = tridiagonal(&mut matrix, width);
    let mut diagonal: Vec<f64> = (0..width).map(|i| matrix[i * width + i]).collect();
    let mut beside: Vec<f64> = (0..width)
        .map(|i| {
            if i + 1 < width {
                matrix[i * width + i + 1]
            } else {
                0.0
            }
        })
        .collect();
    let column = |index: usize| {
        let mut column = vec![0.0; width];
        column[index] = 1.0;
        for (start, reflection) in reflections.iter().enumerate().rev() {
            reflect(&mut column[start + 1..], reflection);
        }
        column
    };
    let mut vectors: Vec<Vec<f64>> = (0..width).map(column).collect();
    for first in 0..width {
        for _ in 0..STEPS {
            let last = block_end(&diagonal, &beside, first);
            if last == first {
                break;
            }
            step(&mut diagonal, &mut beside, &mut vectors, first, last);
        }
    }
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&one, &two| diagonal[two].total_cmp(&diagonal[one]));
    let values = order.iter().map(|&index| diagonal[index]).collect();
    let rows = order
        .iter()
        .map(|&index| std::mem::take(&mut vectors[index]));
    (values, rows.collect())
}

/// Makes a matrix tridiagonal and returns the unit vectors of the reflections, which act on the
/// entries behind the first, the second and so on.
fn tridiagonal(matrix: &mut [f64], width: usize) -> Vec<Vec<f64>> {
    let mut reflections = Vec::new();
    for start in 0..width.saturating_sub(2) {
        let first = start + 1;
        let mut v: Vec<f64> = (first..width)
            .map(|row| matrix[row * width + start])
            .collect();
        let size = dot(&v, &v).sqrt();
        v[0] += size.copysign(v[0]);
        let norm = dot(&v, &v).sqrt();
        if norm > 0.0 {
            v.iter_mut().for_each(|x| *x /= norm);
        }
        // Rows and columns from `start` on: `H M H = M - 2 v w^T - 2 w v^T`.
        let mut w: Vec<f64> = (first..width)
            .map(|row| dot(&matrix[row * width + first..(row + 1) * width], &v))
            .collect();
        let along = dot(&v, &w);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= along * v);
        for row in first..width {
            let (vr, wr) = (v[row - first], w[row - first]);
            let entries = &mut matrix[row * width + first..(row + 1) * width];
            for ((entry, v), w) in entries.iter_mut().zip(&v).zip(&w) {
                *entry -= 2.0 * (vr * w + wr * v);
            }
        }
        let beside = if norm > 0.0 {
            -size.copysign(v[0])
        } else {
            0.0
        };
        matrix[start * width + first] = beside;
        matrix[first * width + start] = beside;
        reflections.push(v);
    }
    reflections
}

/// `x - 2 v (v . x)`.
fn reflect(x: &mut [f64], v: &[f64]) {
    let along = 2.0 * dot(x, v);
    x.iter_mut().zip(v).for_each(|(x, v)| *x -= along * v);
}

/// Where the block that begins at `first` ends: at the first entry beside the diagonal that is zero.
fn block_end(diagonal: &[f64], beside: &[f64], first: usize) -> usize {
    let is_zero = |i: &usize| {
        let size = diagonal[*i].abs() + diagonal[*i + 1].abs();
        beside[*i].abs() <= f64::EPSILON * size
    };
    let last = diagonal.len() - 1;
    (first..last).find(is_zero).unwrap_or(last)
}

/// One QL step with an implicit shift on a block from `first` to `last`, and on the vectors.
fn step(
    diagonal: &mut [f64],
    beside: &mut [f64],
    vectors: &mut [Vec<f64>],
    first: usize,
    last: usize,
) {
    let shift = (diagonal[first + 1] - diagonal[first]) / (2.0 * beside[first]);
    let root = shift.hypot(1.0).copysign(shift);
    let mut g = diagonal[last] - diagonal[first] + beside[first] / (shift + root);
    let (mut sine, mut cosine, mut shifted) = (1.0, 1.0, 0.0);
    for i in (first..last).rev() {
        let (f, b) = (sine * beside[i], cosine * beside[i]);
        let length = f.hypot(g);
        beside[i + 1] = length;
        if length == 0.0 {
            diagonal[i + 1] -= shifted;
            beside[last] = 0.0;
            return;
        }
        (sine, cosine) = (f / length, g / length);
        g = diagonal[i + 1] - shifted;
        let sum = (diagonal[i] - g) * sine + 2.0 * cosine * b;
        shifted = sine * sum;
        diagonal[i + 1] = g + shifted;
        g = cosine * sum - b;
        let (below, above) = vectors.split_at_mut(i + 1);
        for (x, y) in below[i].iter_mut().zip(&mut above[0]) {
            (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
        }
    }
    diagonal[first] -= shifted;
    beside[first] = g;
    beside[last] = 0.0;
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_kernels::random::{Seed, unit};

    fn check(matrix: Vec<f64>, width: usize, name: &str) {
        let (values, vectors) = symmetric(matrix.clone(), width);
        let size = matrix.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()));
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]), "{name}");
        for (index, (value, vector)) in values.iter().zip(&vectors).enumerate() {
            for (row, x) in vector.iter().enumerate() {
                let image = dot(&matrix[row * width..(row + 1) * width], vector);
                assert!((image - value * x).abs() < 1e-12 * size, "{name} {index}");
            }
            for (other, second) in vectors.iter().enumerate() {
                let expected = f64::from(u8::from(other == index));
                assert!((dot(vector, second) - expected).abs() < 1e-12, "{name}");
            }
        }
    }

    #[test]
    fn vectors_are_stretched_by_values_and_orthonormal() {
        let mut generator = Seed::new(3).generator();
        for width in 1..12 {
            let mut matrix = vec![0.0; width * width];
            for row in 0..width {
                for column in 0..=row {
                    let value = 2.0 * unit(&mut generator) - 1.0;
                    matrix[row * width + column] = value;
                    matrix[column * width + row] = value;
                }
            }
            check(matrix.clone(), width, "full");
            check(vec![0.0; width * width], width, "zero");
            check(vec![1.0; width * width], width, "rank 1");
            let identity: Vec<f64> = (0..width * width)
                .map(|at| f64::from(u8::from(at / width == at % width)))
                .collect();
            check(identity, width, "identity");
        }
        let (values, _) = symmetric(vec![2.0, 1.0, 1.0, 2.0], 2);
        assert!((values[0] - 3.0).abs() < 1e-12 && (values[1] - 1.0).abs() < 1e-12);
        // Numbers that are not finite end too.
        symmetric(vec![f64::NAN; 16], 4);
    }
}
