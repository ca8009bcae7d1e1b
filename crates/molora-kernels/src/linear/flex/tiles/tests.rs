//! Products in f32 against f64; those in bf16 are tested where `x` is rounded.

use proptest::prelude::*;

use super::*;
use crate::flex::matrix::Matrix;
use crate::testing::{assert_product, values};

/// Numbers between the rows of `x` and of the matrix.
const GAP: usize = 3;

/// The same numbers in rows that are `GAP` longer, filled with NaN.
fn spread(numbers: &[f32], cols: usize) -> Vec<f32> {
    let rows = numbers.chunks(cols);
    rows.flat_map(|row| row.iter().copied().chain([f32::NAN; GAP]))
        .collect()
}

fn check([rows, inner, cols]: [usize; 3], is_transposed: bool, has_bias: bool, seed: u64) {
    let x = values(rows * inner, seed);
    let numbers = values(inner * cols, seed ^ 1);
    let bias = values(cols, seed ^ 2);
    let bias = has_bias.then_some(bias.as_slice());
    let number = |i: usize, o: usize| match is_transposed {
        true => numbers[o * inner + i],
        false => numbers[i * cols + o],
    };
    let (x_spread, width) = (spread(&x, inner), if is_transposed { inner } else { cols });
    let spread = spread(&numbers, width);
    let weight = match is_transposed {
        true => Matrix::new(&spread, cols, inner, inner + GAP).transposed(),
        false => Matrix::new(&spread, inner, cols, cols + GAP),
    };
    let x_view = Matrix::new(&x_spread, rows, inner, inner + GAP);
    let Some(actual) = product(x_view, weight, bias) else {
        return; // another processor
    };
    let what = format!("[{rows}, {inner}] x [{inner}, {cols}] transposed: {is_transposed}");
    assert_product(&actual, &x, [rows, inner, cols], number, bias, &what);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_shape(
        rows in 16usize..300, inner in 1usize..100, cols in 32usize..300, is_transposed: bool,
        has_bias: bool, seed: u64,
    ) {
        check([rows, inner, cols], is_transposed, has_bias, seed);
    }
}

#[test]
fn sums_of_several_blocks() {
    for is_transposed in [false, true] {
        for inner in [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17] {
            check([20, inner, 70], is_transposed, true, 5);
        }
        check([403, 17, 2000], is_transposed, false, 6);
    }
}

#[test]
fn nan_infinities_and_denormals_go_through() {
    let [rows, inner, cols] = [30, 40, 70];
    let ones = vec![1.0; inner * cols];
    let run = |first: f32| {
        let mut x = vec![0.0; rows * inner];
        x[3] = first;
        let x = Matrix::new(&x, rows, inner, inner);
        product(x, Matrix::new(&ones, inner, cols, cols), None)
    };
    for first in [
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e-40,
        -f32::MIN_POSITIVE / 8.0,
    ] {
        let Some(out) = run(first) else { return };
        assert!(out[..cols].iter().all(|&value| value == first));
        assert!(out[cols..].iter().all(|&value| value == 0.0));
    }
    let out = run(f32::NAN).expect("as before");
    assert!(out[..cols].iter().all(|value| value.is_nan()));
    assert!(out[cols..].iter().all(|&value| value == 0.0));
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let (x, numbers) = (values(500 * 800, 1), values(800 * 200, 2));
    let x = Matrix::new(&x, 500, 800, 800);
    for is_transposed in [false, true] {
        let weight = match is_transposed {
            true => Matrix::new(&numbers, 200, 800, 800).transposed(),
            false => Matrix::new(&numbers, 800, 200, 200),
        };
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads can be started")
                .install(|| product(x, weight, None))
        };
        assert_eq!(run(1), run(3));
        assert_eq!(run(1), run(8));
    }
}
