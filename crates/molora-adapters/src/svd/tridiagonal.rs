//! Some eigenvectors of a symmetric matrix, by its tridiagonal form: far less work than all of them.
//!
//! Householder's reduction, eigenvalues by bisection and eigenvectors by inverse iteration (Golub and Van
//! Loan, Matrix Computations, sections 8.3.1, 8.4.1 and 8.2.2).

use molora_kernels::random::{Seed, unit};

use super::dot;

/// The eigenvectors at `places` of a symmetric matrix given by its rows, where eigenvalues are counted from
/// the largest on; orthonormal.
pub(super) fn eigenvectors(mut rows: Vec<Vec<f64>>, places: &[usize]) -> Vec<Vec<f64>> {
    let size = rows.len();
    let reflectors = reduce(&mut rows);
    let form = Tridiagonal {
        diagonal: (0..size).map(|at| rows[at][at]).collect(),
        beside: (1..size).map(|at| rows[at][at - 1]).collect(),
    };
    let mut found: Vec<Vec<f64>> = Vec::new();
    for (number, &place) in places.iter().enumerate() {
        let value = form.eigenvalue(place);
        let vector = form.eigenvector(value, number, &found);
        found.push(vector);
    }
    for vector in &mut found {
        for (first, reflector) in reflectors.iter().enumerate().rev() {
            reflect(&mut vector[first + 1..], reflector);
        }
    }
    found
}

/// `x - 2 v (v^T x)` for a unit vector v, or one of zeros.
fn reflect(x: &mut [f64], v: &[f64]) {
    let along = 2.0 * dot(v, x);
    for (x, v) in x.iter_mut().zip(v) {
        *x -= along * v;
    }
}

/// Turns a symmetric matrix into a tridiagonal one of the same eigenvalues; the unit vectors of the
/// reflections, of which number k acts on the coordinates from k + 1 on.
fn reduce(rows: &mut [Vec<f64>]) -> Vec<Vec<f64>> {
    let size = rows.len();
    let mut reflectors = Vec::new();
    for first in 0..size.saturating_sub(2) {
        let below = first + 1;
        let mut v: Vec<f64> = rows[below..].iter().map(|row| row[first]).collect();
        let norm = dot(&v, &v).sqrt();
        let end = if v[0] > 0.0 { -norm } else { norm };
        v[0] -= end;
        let length = dot(&v, &v).sqrt();
        if length > 0.0 {
            v.iter_mut().for_each(|x| *x /= length);
        }
        rows[below][first] = end;
        // With p = 2 M v and q = p - (v^T p) v, the reflected matrix is M - v q^T - q v^T.
        let p: Vec<f64> = rows[below..]
            .iter()
            .map(|row| 2.0 * dot(&row[below..], &v))
            .collect();
        let along = dot(&v, &p);
        let q: Vec<f64> = p.iter().zip(&v).map(|(p, v)| p - along * v).collect();
        for (row, (&v_row, &q_row)) in rows[below..].iter_mut().zip(v.iter().zip(&q)) {
            for (x, (v, q)) in row[below..].iter_mut().zip(v.iter().zip(&q)) {
                *x -= v_row * q + q_row * v;
            }
        }
        reflectors.push(v);
    }
    reflectors
}

/// A symmetric tridiagonal matrix.
struct Tridiagonal {
    diagonal: Vec<f64>,
    /// What is beside the diagonal, one entry fewer.
    beside: Vec<f64>,
}

/// Halvings of the interval that has an eigenvalue: as many as there are bits, and some more.
const HALVINGS: usize = 70;

/// What is divided by at least: the square of its inverse is finite.
const SMALLEST: f64 = 1e-150;

/// Steps of inverse iteration; two are enough for nearly all vectors.
const STEPS: usize = 4;

impl Tridiagonal {
    /// The largest sum of sizes in a row, which no eigenvalue exceeds.
    fn bound(&self) -> f64 {
        let size = self.diagonal.len();
        let row = |at: usize| {
            let left = at
                .checked_sub(1)
                .map_or(0.0, |left| self.beside[left].abs());
            let right = self.beside.get(at).map_or(0.0, |right| right.abs());
            self.diagonal[at].abs() + left + right
        };
        (0..size).map(row).fold(0.0, f64::max)
    }

    /// Number of eigenvalues above `x`, by Sturm's sequence.
    fn above(&self, x: f64) -> usize {
        let mut count = 0;
        let mut quotient = 1.0_f64;
        for (at, diagonal) in self.diagonal.iter().enumerate() {
            let square = at
                .checked_sub(1)
                .map_or(0.0, |left| self.beside[left].powi(2));
            let divisor = match quotient.abs() < f64::MIN_POSITIVE {
                true => f64::EPSILON * (1.0 + x.abs()),
                false => quotient,
            };
            quotient = diagonal - x - square / divisor;
            count += usize::from(quotient > 0.0);
        }
        count
    }

    fn eigenvalue(&self, place: usize) -> f64 {
        let bound = self.bound();
        let (mut low, mut high) = (-bound, bound);
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            match self.above(middle) > place {
                true => low = middle,
                false => high = middle,
            }
        }
        0.5 * (low + high)
    }

    /// The unit eigenvector of a value that is orthogonal to those which were found before.
    fn eigenvector(&self, value: f64, number: usize, found: &[Vec<f64>]) -> Vec<f64> {
        let mut draws = Seed::new(0).index(number as u64).generator();
        let size = self.diagonal.len();
        let mut x: Vec<f64> = (0..size).map(|_| unit(&mut draws) - 0.5).collect();
        // The matrix less an exact eigenvalue cannot be divided by.
        let shift = value + self.bound() * f64::EPSILON;
        for _ in 0..STEPS {
            x = self.solved(shift, x);
            for _ in 0..2 {
                for other in found {
                    let along = dot(&x, other);
                    x.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
                }
            }
            let norm = dot(&x, &x).sqrt().max(f64::MIN_POSITIVE);
            x.iter_mut().for_each(|x| *x /= norm);
        }
        x
    }

    /// Solves `(T - shift) x = b` by elimination with exchanged rows where that is safer.
    fn solved(&self, shift: f64, mut b: Vec<f64>) -> Vec<f64> {
        let size = b.len();
        let tiny = (self.bound() * f64::EPSILON).max(SMALLEST);
        // Rows of the upper triangle: the diagonal and two beside it.
        let mut rows: Vec<[f64; 3]> = Vec::with_capacity(size);
        let beside = |at: usize| self.beside.get(at).copied().unwrap_or(0.0);
        let mut row = [self.diagonal[0] - shift, beside(0), 0.0];
        for at in 0..size - 1 {
            let mut next = [
                self.beside[at],
                self.diagonal[at + 1] - shift,
                beside(at + 1),
            ];
            if next[0].abs() > row[0].abs() {
                std::mem::swap(&mut row, &mut next);
                b.swap(at, at + 1);
            }
            if row[0].abs() < tiny {
                row[0] = tiny;
            }
            let factor = next[0] / row[0];
            b[at + 1] -= factor * b[at];
            rows.push(row);
            row = [next[1] - factor * row[1], next[2] - factor * row[2], 0.0];
        }
        if row[0].abs() < tiny {
            row[0] = tiny;
        }
        rows.push(row);
        for at in (0..size).rev() {
            let [own, next, after] = rows[at];
            let later = |by: usize| b.get(at + by).copied().unwrap_or(0.0);
            b[at] = (b[at] - next * later(1) - after * later(2)) / own;
        }
        b
    }
}
