//! Orthonormal columns.

use burn::tensor::{Tensor, TensorData};

/// Computes `x = q r` with orthonormal columns of `q`, as many as `x` has independent ones and at
/// least one.
///
/// On the host as burn's singular values are, in f64 by Gram-Schmidt done twice (Giraud et al.,
/// doi:10.1007/s00211-005-0615-4): burn 0.22.1's own is wrong on WGPU with fusion.
///
/// # Shapes
/// - `x`: `[N, M]`
/// - returns `[N, K]` and `[K, M]`
pub fn qr(x: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let ([rows, cols], device) = (x.dims(), x.device());
    let values: Vec<f64> = x.into_data().iter::<f64>().collect();
    let (mut q, mut r) = (Vec::<Vec<f64>>::new(), Vec::<Vec<f64>>::new());
    for col in 0..cols {
        let column: Vec<f64> = (0..rows).map(|row| values[row * cols + col]).collect();
        let mut rest = column.clone();
        for _ in 0..2 {
            for (direction, coefficients) in q.iter().zip(&mut r) {
                let along = dot(direction, &rest);
                coefficients[col] += along;
                subtract(&mut rest, along, direction);
            }
        }
        let (norm, whole) = (dot(&rest, &rest).sqrt(), dot(&column, &column).sqrt());
        let is_last_chance = q.is_empty() && col + 1 == cols;
        if norm > DEPENDENT * whole || is_last_chance {
            q.push(
                rest.iter()
                    .map(|x| x / norm.max(f64::MIN_POSITIVE))
                    .collect(),
            );
            r.push(
                (0..cols)
                    .map(|at| if at == col { norm } else { 0.0 })
                    .collect(),
            );
        }
    }
    let matrix = |rows: Vec<Vec<f64>>, width: usize| {
        let shape = [rows.len(), width];
        let values: Vec<f32> = rows.into_iter().flatten().map(|x| x as f32).collect();
        Tensor::<2>::from_data(TensorData::new(values, shape), &device)
    };
    (matrix(q, rows).transpose(), matrix(r, cols))
}

/// Share of a column's length below which what is left of it is rounding.
const DEPENDENT: f64 = 1e-10;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn subtract(target: &mut [f64], factor: f64, row: &[f64]) {
    for (target, x) in target.iter_mut().zip(row) {
        *target -= factor * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_kernels::random::{Seed, normal};
    use molora_testkit::{assert_close, device};

    fn check(x: Tensor<2>, columns: usize) {
        let (q, r) = qr(x.clone());
        assert_eq!(q.dims()[1], columns);
        assert_close(q.clone().matmul(r), x, 1e-6, "product");
        let identity = Tensor::<2>::eye(columns, &q.device());
        assert_close(q.clone().transpose().matmul(q), identity, 1e-6, "columns");
    }

    #[test]
    fn the_product_is_the_matrix_and_columns_are_orthonormal() {
        let random = |shape| -> Tensor<2> { normal(shape, 1.0, Seed::new(1), &device()) };
        check(random([9, 4]), 4);
        check(random([3, 5]), 3);
        let narrow = random([6, 2]);
        check(Tensor::cat(vec![narrow.clone(), narrow], 1), 2);
    }

    #[test]
    fn nothing_but_zeros_has_one_column() {
        let (q, r) = qr(Tensor::zeros([4, 2], &device()));
        assert_eq!((q.dims(), r.dims()), ([4, 1], [1, 2]));
        assert_close(q.matmul(r), [[0.0; 2]; 4], 0.0, "product");
    }
}
