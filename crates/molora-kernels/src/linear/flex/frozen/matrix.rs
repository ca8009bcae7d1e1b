//! The frozen matrix of a product, and parts of it in bf16.

use std::ops::Range;

use burn::tensor::bf16;

use crate::flex::simd::vectorised;
use crate::linear::flex::half::Half;
use crate::linear::format::{BLOCK, block_bytes, decode};

/// The numbers of a frozen matrix, row by row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Numbers<'a> {
    /// One by one.
    Half(&'a [bf16]),
    /// Rows of blocks.
    Blocks(Blocks<'a>),
}

/// Rows of blocks, see [`crate::BlockMatrix`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks<'a> {
    pub(super) codes: &'a [u8],
    pub(super) scales: &'a [bf16],
    pub(super) bits: usize,
    /// Rows, and numbers of a row.
    pub(super) dims: [usize; 2],
}

/// A matrix on one side of a product, as it lies in memory: `rows` of `cols`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frozen<'a> {
    numbers: Numbers<'a>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Whether the product is with the transposed matrix.
    pub(super) is_transposed: bool,
}

impl<'a> Frozen<'a> {
    /// # Panics
    /// If there are not the numbers of `rows` of `cols`.
    pub(super) fn new(numbers: Numbers<'a>, [rows, cols]: [usize; 2], is_transposed: bool) -> Self {
        let fits = match numbers {
            Numbers::Half(values) => values.len() == rows * cols,
            Numbers::Blocks(of) => {
                let blocks = rows * cols.div_ceil(BLOCK);
                let has_all = of.codes.len() == blocks * block_bytes(of.bits);
                has_all && of.scales.len() == blocks && of.dims == [rows, cols]
            }
        };
        assert!(fits, "size of the frozen matrix");
        Self {
            numbers,
            rows,
            cols,
            is_transposed,
        }
    }

    /// How many numbers a sum of the product has.
    pub(super) fn inner(&self) -> usize {
        if self.is_transposed {
            self.cols
        } else {
            self.rows
        }
    }

    /// How many columns the product has.
    pub(super) fn outer(&self) -> usize {
        if self.is_transposed {
            self.rows
        } else {
            self.cols
        }
    }

    /// Some rows and columns: of the matrix itself, or decoded into `scratch`.
    pub(super) fn part<'b>(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
        scratch: &'b mut Vec<bf16>,
    ) -> Half<'b>
    where
        'a: 'b,
    {
        assert!(rows.end <= self.rows && cols.end <= self.cols);
        let (values, stride): (&[bf16], usize) = match self.numbers {
            Numbers::Half(values) => (&values[rows.start * self.cols + cols.start..], self.cols),
            Numbers::Blocks(of) => {
                scratch.resize(rows.len() * cols.len(), bf16::ZERO);
                let blocks = (of.codes, of.scales, block_bytes(of.bits));
                let targets = scratch.chunks_exact_mut(cols.len());
                let blocks_of_row = self.cols.div_ceil(BLOCK);
                for (row, target) in rows.clone().zip(targets) {
                    decode_row(blocks, row * blocks_of_row, &cols, target);
                }
                (scratch, cols.len())
            }
        };
        Half::new(values, rows.len(), cols.len(), stride)
    }
}

/// Decodes the columns `cols` of the row whose blocks start at `first`.
fn decode_row(
    (codes, scales, bytes): (&[u8], &[bf16], usize),
    first: usize,
    cols: &Range<usize>,
    target: &mut [bf16],
) {
    #[cfg(target_arch = "x86_64")]
    if cols.start.is_multiple_of(BLOCK)
        && cols.len().is_multiple_of(BLOCK)
        && let Some(processor) = super::avx512::Processor::detect()
    {
        let blocks = first + cols.start / BLOCK..first + cols.end / BLOCK;
        let codes = &codes[blocks.start * bytes..blocks.end * bytes];
        return super::decode::decode_blocks(processor, (codes, bytes), &scales[blocks], target);
    }
    vectorised(
        #[inline(always)]
        || {
            for block in cols.start / BLOCK..cols.end.div_ceil(BLOCK) {
                let codes = &codes[(first + block) * bytes..][..bytes];
                let values = decode(codes, scales[first + block]);
                // The columns that the block and the part have in common.
                let start = cols.start.max(block * BLOCK);
                let end = cols.end.min((block + 1) * BLOCK);
                let values = &values[start - block * BLOCK..end - block * BLOCK];
                target[start - cols.start..end - cols.start].copy_from_slice(values);
            }
        },
    );
}
