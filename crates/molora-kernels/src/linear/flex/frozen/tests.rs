//! The kernels against products of the rounded numbers in f64.

use burn::tensor::bf16;
use proptest::prelude::*;

use super::*;
use crate::testing::values;

fn rounded(len: usize, seed: u64) -> Vec<bf16> {
    values(len, seed).into_iter().map(bf16::from_f32).collect()
}

/// The product in f64, of `x` as it is or rounded to bf16, and the largest number of each sum of
/// magnitudes.
fn exact(x: &[f32], weight: Frozen<'_>, bias: Option<&[f32]>, rounds: bool) -> (Vec<f64>, f64) {
    let (inner, outer) = (weight.inner(), weight.outer());
    let mut scratch = Vec::new();
    let numbers = weight.part(0..weight.rows, 0..weight.cols, &mut scratch);
    let number = |i: usize, o: usize| match weight.is_transposed {
        true => numbers.row(o)[i].to_f64(),
        false => numbers.row(i)[o].to_f64(),
    };
    let round = |x: f32| {
        if rounds {
            bf16::from_f32(x).to_f64()
        } else {
            x.into()
        }
    };
    let mut largest: f64 = 1.0;
    let mut out = Vec::new();
    for row in x.chunks(inner) {
        for o in 0..outer {
            let terms = row
                .iter()
                .enumerate()
                .map(|(i, &x)| round(x) * number(i, o));
            let bias = bias.map_or(0.0, |bias| bias[o].into());
            largest = largest.max(terms.clone().map(f64::abs).sum());
            out.push(terms.sum::<f64>() + bias);
        }
    }
    (out, largest)
}

fn largest_error(actual: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let errors = actual.iter().zip(expected);
    errors
        .map(|(&a, &e)| (f64::from(a) - e).abs())
        .fold(0.0, f64::max)
}

fn check([rows, inner, outer]: [usize; 3], is_transposed: bool, has_bias: bool, seed: u64) {
    let x = values(rows * inner, seed);
    let numbers = rounded(inner * outer, seed ^ 1);
    let bias = values(outer, seed ^ 2);
    let bias = has_bias.then_some(bias.as_slice());
    let shape = match is_transposed {
        true => [outer, inner],
        false => [inner, outer],
    };
    let weight = Frozen::new(Numbers::Half(&numbers), shape, is_transposed);
    let what = format!("[{rows}, {inner}] x [{inner}, {outer}] {is_transposed}");

    let (expected, scale) = exact(&x, weight, bias, false);
    let error = largest_error(&plain::product(&x, weight, bias), &expected);
    assert!(error < 1e-6 * scale, "{what} widened: {error}");
    #[cfg(target_arch = "x86_64")]
    if let Some(processor) = avx512::Processor::detect() {
        let actual = processor.product(&x, weight, bias);
        let error = largest_error(&actual, &expected);
        assert!(error < 4e-3 * scale, "{what} with x in bf16: {error}");
        let (expected, scale) = exact(&x, weight, bias, true);
        let error = largest_error(&actual, &expected);
        assert!(error < 1e-6 * scale, "{what} against rounded x: {error}");
    }
}

#[test]
fn every_number_of_rows_and_every_tail() {
    for rows in 1..=20 {
        for (inner, outer) in [(1, 1), (2, 63), (31, 65), (33, 17), (64, 64), (97, 130)] {
            for is_transposed in [false, true] {
                check(
                    [rows, inner, outer],
                    is_transposed,
                    rows % 2 == 0,
                    rows as u64,
                );
            }
        }
    }
}

#[test]
fn sums_of_several_blocks() {
    for rows in [3, 50] {
        for is_transposed in [false, true] {
            check([rows, 1543, 70], is_transposed, true, 5);
            check([rows, 40, 3000], is_transposed, true, 6);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shape(
        rows in 1usize..300, inner in 1usize..200, outer in 1usize..300, is_transposed: bool,
        has_bias: bool, seed: u64,
    ) {
        check([rows, inner, outer], is_transposed, has_bias, seed);
    }
}

#[test]
fn nan_and_infinities_go_through() {
    let numbers = vec![bf16::ONE; 40 * 70];
    let weight = Frozen::new(Numbers::Half(&numbers), [40, 70], false);
    for rows in [1, 30] {
        let mut x = vec![1.0; rows * 40];
        x[3] = f32::NAN;
        let out = product(&x, weight, None);
        assert!(out[..70].iter().all(|value| value.is_nan()));
        assert!(out[70..].iter().all(|&value| value == 40.0));
        x[3] = f32::NEG_INFINITY;
        let out = product(&x, weight, None);
        assert!(out[..70].iter().all(|&value| value == f32::NEG_INFINITY));
    }
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let numbers = rounded(200 * 1000, 1);
    for (rows, is_transposed) in [(2, false), (2, true), (150, false), (150, true)] {
        let shape = if is_transposed {
            [1000, 200]
        } else {
            [200, 1000]
        };
        let weight = Frozen::new(Numbers::Half(&numbers), shape, is_transposed);
        let x = values(rows * 200, 2);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads can be started")
                .install(|| product(&x, weight, None))
        };
        assert_eq!(run(1), run(3));
        assert_eq!(run(1), run(8));
    }
}
