//! Products of rows that are rounded to bytes, those of a few and of many, against their definition in f64.

use burn::tensor::bf16;
use proptest::prelude::*;

use super::super::whole;
use super::*;
use crate::linear::format::{decode, encode_row};
use crate::testing::values;

type Product = fn(Processor, &[f32], Blocks<'_>, Option<&[f32]>) -> Vec<f32>;

/// Both of them.
const PRODUCTS: [Product; 2] = [product, whole::product];

/// A matrix of blocks.
struct Matrix {
    codes: Vec<u8>,
    scales: Vec<bf16>,
    bits: usize,
    dims: [usize; 2],
}

impl Matrix {
    fn new(dims: [usize; 2], bits: usize, seed: u64) -> Self {
        let [rows, inner] = dims;
        let blocks = inner.div_ceil(BLOCK);
        let mut codes = vec![0; rows * blocks * block_bytes(bits)];
        let mut scales = vec![bf16::ZERO; rows * blocks];
        for (row, numbers) in values(rows * inner, seed).chunks(inner).enumerate() {
            let codes = &mut codes[row * blocks * block_bytes(bits)..];
            encode_row(numbers, bits, codes, &mut scales[row * blocks..]);
        }
        Self {
            codes,
            scales,
            bits,
            dims,
        }
    }

    fn blocks(&self) -> Blocks<'_> {
        Blocks {
            codes: &self.codes,
            scales: &self.scales,
            bits: self.bits,
            dims: self.dims,
        }
    }
}

/// `x` rounded as the product rounds it, by the definition.
fn rounded(x: &[f32], inner: usize) -> Vec<f64> {
    let round = |block: &[f32]| -> Vec<f64> {
        let largest = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let code = |x: &f32| match largest {
            0.0 => 0.0,
            _ => f64::from((x * (127.0 / largest)).round_ties_even()),
        };
        let scale = f64::from(largest / 127.0);
        block.iter().map(|x| code(x) * scale).collect()
    };
    x.chunks(inner)
        .flat_map(|row| row.chunks(BLOCK).flat_map(round).collect::<Vec<_>>())
        .collect()
}

fn check([rows, inner, outputs]: [usize; 3], bits: usize, has_bias: bool, x: &[f32], seed: u64) {
    let Some(processor) = Processor::detect() else {
        return;
    };
    let matrix = Matrix::new([outputs, inner], bits, seed ^ 1);
    let bias = values(outputs, seed ^ 2);
    let bias = has_bias.then_some(bias.as_slice());
    let found = PRODUCTS.map(|product| product(processor, x, matrix.blocks(), bias));
    assert!(found.iter().all(|found| found.len() == rows * outputs));
    let per_row = inner.div_ceil(BLOCK);
    let numbers = |o: usize| -> Vec<f64> {
        let blocks = o * per_row..(o + 1) * per_row;
        let decoded = blocks.flat_map(|block| {
            let codes = &matrix.codes[block * block_bytes(bits)..][..block_bytes(bits)];
            // The numbers before they are rounded to bf16.
            let scale = matrix.scales[block].to_f64();
            let exact = decode(codes, bf16::ONE);
            exact.map(|number| number.to_f64() * scale)
        });
        decoded.take(inner).collect()
    };
    let x = rounded(x, inner);
    for o in 0..outputs {
        let numbers = numbers(o);
        for (row, x) in x.chunks(inner).enumerate() {
            let terms = x.iter().zip(&numbers).map(|(x, w)| x * w);
            let size = terms.clone().map(f64::abs).sum::<f64>().max(1.0);
            let expected = terms.sum::<f64>() + bias.map_or(0.0, |bias| bias[o].into());
            for found in &found {
                let error = (f64::from(found[row * outputs + o]) - expected).abs();
                assert!(
                    error < 2e-6 * size,
                    "[{rows}, {inner}] x {outputs}, {bits} bits: {error}"
                );
            }
        }
    }
}

#[test]
fn every_number_of_rows_and_every_tail() {
    for rows in 1..=20 {
        for (inner, outputs) in [(1, 1), (31, 65), (33, 17), (64, 64), (96, 9), (129, 33)] {
            for bits in [8, 4] {
                let x = values(rows * inner, rows as u64);
                check([rows, inner, outputs], bits, rows % 2 == 0, &x, rows as u64);
            }
        }
    }
}

#[test]
fn sums_of_more_blocks_than_a_panel_has() {
    for bits in [8, 4] {
        for (rows, inner) in [(7, 12 * BLOCK), (13, 13 * BLOCK + 5), (40, 1536)] {
            let x = values(rows * inner, 3);
            check([rows, inner, 70], bits, true, &x, 9);
        }
    }
}

#[test]
fn extremes_are_exact() {
    for bits in [8, 4] {
        // All at the ends of their ranges, and blocks of zeros.
        let x: Vec<f32> = (0..2 * 200)
            .map(|i| match i / BLOCK % 3 {
                0 => 1e30,
                1 => -1e30,
                _ => 0.0,
            })
            .collect();
        check([2, 200, 20], bits, true, &x, 3);
        let small: Vec<f32> = x.iter().map(|x| x * 1e-38).collect();
        check([2, 200, 20], bits, true, &small, 3);
    }
}

#[test]
fn numbers_that_are_none_stay_so() {
    let Some(processor) = Processor::detect() else {
        return;
    };
    let matrix = Matrix::new([3, 64], 4, 1);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![1.0; 128];
        x[40] = bad;
        for product in PRODUCTS {
            let out = product(processor, &x, matrix.blocks(), None);
            assert!(out[..3].iter().all(|value| !value.is_finite()), "{out:?}");
            assert!(out[3..].iter().all(|value| value.is_finite()), "{out:?}");
        }
    }
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let Some(processor) = Processor::detect() else {
        return;
    };
    let matrix = Matrix::new([2000, 200], 4, 1);
    for (product, rows) in PRODUCTS.into_iter().zip([3, 500]) {
        let x = values(rows * 200, 2);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.expect("threads can be started");
            let compute = || product(processor, &x, matrix.blocks(), None);
            let asleep = pool.install(compute);
            assert_eq!(
                asleep,
                pool.install(|| crate::flex::team::together(compute))
            );
            asleep
        };
        assert_eq!(run(1), run(3));
        assert_eq!(run(1), run(8));
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let Some(processor) = Processor::detect() else {
        return;
    };
    for bits in [8, 4] {
        let matrix = Matrix::new([50, 300], bits, 1);
        let x = values(11 * 300, 2);
        for product in PRODUCTS {
            let all = product(processor, &x, matrix.blocks(), None);
            for (row, x) in x.chunks(300).enumerate() {
                let alone = product(processor, x, matrix.blocks(), None);
                assert_eq!(alone, all[row * 50..][..50], "{bits} bits, row {row}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shape(
        rows in 1usize..20, inner in 1usize..300, outputs in 1usize..200, is_small: bool,
        has_bias: bool, seed: u64,
    ) {
        let x = values(rows * inner, seed);
        check([rows, inner, outputs], if is_small { 4 } else { 8 }, has_bias, &x, seed);
    }
}
