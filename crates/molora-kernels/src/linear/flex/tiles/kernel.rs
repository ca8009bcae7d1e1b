//! The tile of a product: some rows and the columns of a panel, with all sums in registers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::Words;
use super::panel::{COLUMNS, LANES, Panel};

/// Rows of a tile, whose sums fill 24 of the 32 registers.
pub(crate) const ROWS: usize = 6;
/// Registers of sums for each row.
pub(crate) const REGISTERS: usize = COLUMNS / LANES;

/// The product while it is made: rows of adjacent numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) first: *mut f32,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Target {
    /// A product of `rows` of `cols` numbers, all of which `run` writes.
    ///
    /// # Safety
    /// `run` must write every number.
    pub(crate) unsafe fn filled(rows: usize, cols: usize, run: impl FnOnce(Self)) -> Vec<f32> {
        let mut values = Vec::with_capacity(rows * cols);
        run(Self {
            first: values.as_mut_ptr(),
            rows,
            cols,
        });
        // SAFETY: the capacity is that, and the caller promises that all are written.
        unsafe {
            values.set_len(rows * cols);
        }
        values
    }

    /// The rows from one on.
    pub(crate) fn rows_from(self, row: usize) -> Self {
        assert!(row <= self.rows);
        Self {
            first: self.first.wrapping_add(row * self.cols),
            rows: self.rows - row,
            ..self
        }
    }

    /// Writes a column of `M` rows from `row` on.
    ///
    /// # Safety
    /// The product must have these rows and this column, and no other thread may write them.
    pub(crate) unsafe fn set_column<const M: usize>(
        self,
        row: usize,
        column: usize,
        numbers: [f32; M],
    ) {
        for (m, number) in numbers.into_iter().enumerate() {
            // SAFETY: as promised by the caller.
            unsafe { *self.first.add((row + m) * self.cols + column) = number }
        }
    }
}

// SAFETY: whoever writes through copies of a target on several threads keeps to elements of its own.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// What the sums of a tile start from.
// One for each task, on the stack: no reason to put the larger one elsewhere.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub(crate) enum Start {
    /// A number for each column.
    Bias([f32; COLUMNS]),
    /// What the target holds.
    Add,
}

/// Adds products of words of `x`, whose rows are some words apart, with a panel; the last number has
/// bits for the columns that the target has.
type Tile = unsafe fn((&[u32], usize), (&Panel, usize), &Start, *mut f32, usize, u64);

/// What words hold: the tiles of one to [`ROWS`] rows.
#[derive(Debug)]
pub(crate) struct Kind([Tile; ROWS]);

/// Numbers of f32. Needs AVX-512F.
pub(super) static SINGLE: Kind = Kind([
    single::<1>,
    single::<2>,
    single::<3>,
    single::<4>,
    single::<5>,
    single::<6>,
]);

impl Kind {
    /// Pairs of bf16. Needs AVX-512F and AVX-512-BF16.
    pub(crate) const HALF: &'static Self = &Self([
        half::<1>, half::<2>, half::<3>, half::<4>, half::<5>, half::<6>,
    ]);

    /// Adds the products of `rows` with a panel of some words, which starts at `column`.
    ///
    /// # Safety
    /// The processor must have the instructions, the target these rows and this column, and nobody
    /// else may use them.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn add_panel(
        &self,
        x: Words<'_>,
        panel: &Panel,
        words: Range<usize>,
        start: &Start,
        rows: Range<usize>,
        column: usize,
        target: Target,
    ) {
        let mask = u64::MAX >> (COLUMNS - COLUMNS.min(target.cols - column));
        for row in rows.clone().step_by(ROWS) {
            let x_rows = &x.words[row * x.stride + words.start..];
            let tile = self.0[ROWS.min(rows.end - row) - 1];
            // SAFETY: as promised by the caller.
            unsafe {
                let out = target.first.add(row * target.cols + column);
                let panel = (panel, words.len());
                tile((x_rows, x.stride), panel, start, out, target.cols, mask);
            }
        }
    }
}

/// A function must have the features of what is to be inlined into it: one for each kind.
macro_rules! tile {
    ($name:ident, $features:literal, $add:ident) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const M: usize>(
            (x, stride): (&[u32], usize),
            (panel, words): (&Panel, usize),
            start: &Start,
            out: *mut f32,
            cols: usize,
            mask: u64,
        ) {
            assert!(x.len() >= (M - 1) * stride + words);
            assert!(panel.words().len() >= words * COLUMNS);
            // SAFETY: the assertions cover the reads of `x` and the panel, the caller and the masks
            // those of `out`.
            unsafe {
                let mut sums = read::<M>(start, out, cols, mask);
                let (x, panel) = (x.as_ptr(), panel.words().as_ptr());
                for word in 0..words {
                    let w: [__m512i; REGISTERS] = std::array::from_fn(|part| {
                        _mm512_loadu_si512(panel.add(word * COLUMNS + part * LANES).cast())
                    });
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(*x.add(row * stride + word) as i32);
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = $add(*sum, x, w);
                        }
                    }
                }
                write(&sums, out, cols, mask);
            }
        }
    };
}

tile!(single, "avx512f", multiply_add);
tile!(half, "avx512f,avx512bf16", dot);

/// Adds to each sum the product of its two numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn multiply_add(sum: __m512, x: __m512i, w: __m512i) -> __m512 {
    _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sum)
}

/// Adds to each sum the products of its two pairs of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) fn dot(sum: __m512, x: __m512i, w: __m512i) -> __m512 {
    // SAFETY: both types are 64 bytes of any bits.
    let [x, w] = [x, w].map(|pairs| unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) });
    _mm512_dpbf16_ps(sum, x, w)
}

/// The sums that a tile starts from.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn read<const M: usize>(
    start: &Start,
    out: *const f32,
    cols: usize,
    mask: u64,
) -> [[__m512; REGISTERS]; M] {
    std::array::from_fn(|row| {
        std::array::from_fn(|part| match start {
            // SAFETY: a bias has `REGISTERS * LANES` numbers.
            Start::Bias(bias) => unsafe { _mm512_loadu_ps(bias.as_ptr().add(part * LANES)) },
            Start::Add => {
                let out = out.wrapping_add(row * cols + part * LANES);
                // SAFETY: the caller promises the columns that the mask covers.
                unsafe { _mm512_maskz_loadu_ps((mask >> (part * LANES)) as u16, out) }
            }
        })
    })
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn write<const M: usize>(
    sums: &[[__m512; REGISTERS]; M],
    out: *mut f32,
    cols: usize,
    mask: u64,
) {
    for (row, sums) in sums.iter().enumerate() {
        for (part, sum) in sums.iter().enumerate() {
            let out = out.wrapping_add(row * cols + part * LANES);
            // SAFETY: the caller promises the columns that the mask covers.
            unsafe { _mm512_mask_storeu_ps(out, (mask >> (part * LANES)) as u16, *sum) };
        }
    }
}
