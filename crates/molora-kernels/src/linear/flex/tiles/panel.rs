//! A part of the matrix laid out for the tiles.

use std::arch::x86_64::*;
use std::ops::Range;

use burn::tensor::bf16;

use crate::flex::matrix::Matrix;
use crate::linear::flex::half::Half;

/// Columns of the product in a panel: four registers of sums.
pub(crate) const COLUMNS: usize = 64;
/// Pairs of bf16, or numbers of f32, in a register.
pub(crate) const LANES: usize = 16;

/// Rows of the matrix from the one that is laid out to the one that is asked for.
const AHEAD: usize = 16;

/// Words of the inner axis, for each those of [`COLUMNS`] columns of the product: numbers of f32, or
/// pairs of bf16.
#[derive(Debug)]
pub(crate) struct Panel(Vec<u32>);

impl Panel {
    /// Room for `inner` words of each column.
    pub(super) fn new(inner: usize) -> Self {
        // The transposed form writes whole squares.
        Self(vec![0; inner.next_multiple_of(LANES) * COLUMNS])
    }

    /// Lays out some rows and columns of a matrix in f32.
    ///
    /// # Safety
    /// The processor must have AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn fill_single(
        &mut self,
        matrix: Matrix<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
    ) {
        assert!(columns.len() <= COLUMNS && rows.len() * COLUMNS <= self.0.len());
        if matrix.adjacent().is_some() {
            self.fill_rows(matrix, rows, columns);
        } else {
            self.fill_columns(matrix.transposed(), rows, columns);
        }
    }

    /// Rows as they lie.
    #[target_feature(enable = "avx512f")]
    fn fill_rows(&mut self, matrix: Matrix<'_>, rows: Range<usize>, columns: Range<usize>) {
        let count = columns.len();
        let first = matrix.data().as_ptr().wrapping_add(columns.start);
        for (row, target) in rows.zip(self.0.chunks_exact_mut(COLUMNS)) {
            let ahead = first.wrapping_add((row + AHEAD) * matrix.row_stride());
            for line in (0..COLUMNS).step_by(LANES) {
                prefetch(ahead.wrapping_add(line));
            }
            let row = &matrix.row(row)[columns.clone()];
            for (part, target) in target.chunks_exact_mut(LANES).enumerate() {
                store(target, load_single(&row[count.min(part * LANES)..]));
            }
        }
    }

    /// Squares of numbers change places: rows of `columns_of` are columns of the product.
    #[target_feature(enable = "avx512f")]
    fn fill_columns(&mut self, columns_of: Matrix<'_>, rows: Range<usize>, columns: Range<usize>) {
        let squares = self.0.chunks_exact_mut(COLUMNS * LANES);
        for (start, target) in rows.clone().step_by(LANES).zip(squares) {
            let column = |column: usize| match column < columns.len() {
                true => {
                    let column = &columns_of.row(columns.start + column)[start..rows.end];
                    prefetch(column.as_ptr().wrapping_add(2 * LANES));
                    load_single(column)
                }
                false => _mm512_setzero_si512(),
            };
            fill_square(target, column);
        }
    }

    pub(crate) fn words(&self) -> &[u32] {
        &self.0
    }

    /// Lays out a part of a matrix in bf16, or of its transpose, with zeros behind the last numbers.
    ///
    /// # Safety
    /// The processor must have AVX-512F and BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(crate) unsafe fn fill_half(&mut self, part: Half<'_>, is_transposed: bool) {
        let (inner, columns) = match is_transposed {
            true => (part.cols, part.rows),
            false => (part.rows, part.cols),
        };
        assert!(columns <= COLUMNS);
        assert!(inner.div_ceil(2).next_multiple_of(LANES) * COLUMNS <= self.0.len());
        if is_transposed {
            self.fill_transposed(part);
        } else {
            self.fill_plain(part);
        }
    }

    /// Two rows of the matrix become one row of pairs.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn fill_plain(&mut self, part: Half<'_>) {
        let row = |row: usize| match row < part.rows {
            true => part.row(row),
            false => &[],
        };
        let targets = self.0.chunks_exact_mut(COLUMNS);
        for (even, target) in (0..part.rows).step_by(2).zip(targets) {
            let (even, odd) = (row(even), row(even + 1));
            for half in 0..2 {
                let skipped = (half * 2 * LANES).min(part.cols);
                let even = load(&even[skipped..]);
                let odd = load(odd.get(skipped..).unwrap_or(&[]));
                let [low, high] = interleaved(even, odd);
                store(&mut target[half * 2 * LANES..], low);
                store(&mut target[half * 2 * LANES + LANES..], high);
            }
        }
    }

    /// Squares of words change places: rows of the matrix are columns of the product.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn fill_transposed(&mut self, part: Half<'_>) {
        let squares = self.0.chunks_exact_mut(COLUMNS * LANES);
        for (start, target) in (0..part.cols).step_by(2 * LANES).zip(squares) {
            let row = |row: usize| match row < part.rows {
                true => load(&part.row(row)[start..]),
                false => _mm512_setzero_si512(),
            };
            fill_square(target, row);
        }
    }
}

/// Writes [`LANES`] words of each column, which `column` reads.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn fill_square(target: &mut [u32], column: impl Fn(usize) -> __m512i) {
    for first in (0..COLUMNS).step_by(LANES) {
        let mut square = [_mm512_setzero_si512(); LANES];
        for (lane, words) in square.iter_mut().enumerate() {
            *words = column(first + lane);
        }
        for (word, words) in transposed(square).into_iter().enumerate() {
            store(&mut target[word * COLUMNS + first..], words);
        }
    }
}

/// Asks for a line of memory, which reads nothing.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(line: *const f32) {
    _mm_prefetch::<_MM_HINT_T0>(line.cast());
}

/// The first numbers of a row, zeros behind its end.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_single(row: &[f32]) -> __m512i {
    let mask = ((1u32 << row.len().min(LANES)) - 1) as u16;
    // SAFETY: the mask covers the numbers of the row alone.
    _mm512_castps_si512(unsafe { _mm512_maskz_loadu_ps(mask, row.as_ptr()) })
}

/// The first numbers of a row, zeros behind its end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(row: &[bf16]) -> __m512i {
    let count = row.len().min(2 * LANES);
    let mask = ((1u64 << count) - 1) as u32;
    // SAFETY: the mask covers the numbers of the row alone.
    unsafe { _mm512_maskz_loadu_epi16(mask, row.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(target: &mut [u32], words: __m512i) {
    assert!(target.len() >= LANES);
    // SAFETY: as asserted.
    unsafe { _mm512_storeu_si512(target.as_mut_ptr().cast(), words) }
}

/// Pairs of a number of each row, in the order of the columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleaved(even: __m512i, odd: __m512i) -> [__m512i; 2] {
    const LOW: [i16; 2 * LANES] = alternating(0);
    const HIGH: [i16; 2 * LANES] = alternating(LANES as i16);
    // SAFETY: both have 64 bytes.
    let (low, high) = unsafe {
        (
            _mm512_loadu_si512(LOW.as_ptr().cast()),
            _mm512_loadu_si512(HIGH.as_ptr().cast()),
        )
    };
    [
        _mm512_permutex2var_epi16(even, low, odd),
        _mm512_permutex2var_epi16(even, high, odd),
    ]
}

/// Columns from `first` on of one register and another in turn.
const fn alternating(first: i16) -> [i16; 2 * LANES] {
    let mut index = [0; 2 * LANES];
    let mut i = 0;
    while i < 2 * LANES {
        index[i] = first + i as i16 / 2 + if i % 2 == 0 { 0 } else { 32 };
        i += 1;
    }
    index
}

/// Word `i` of row `j` becomes word `j` of row `i`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut out = rows;
    // Within each quarter of a register, squares of four words.
    for four in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| rows[4 * four + row]);
        let (ab, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        out[4 * four] = _mm512_unpacklo_epi64(ab, cd);
        out[4 * four + 1] = _mm512_unpackhi_epi64(ab, cd);
        out[4 * four + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        out[4 * four + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    // Then the quarters.
    let rows = out;
    for word in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|four| rows[4 * four + word]);
        let (ab, ab_high) = (
            _mm512_shuffle_i32x4::<0x44>(a, b),
            _mm512_shuffle_i32x4::<0xee>(a, b),
        );
        let (cd, cd_high) = (
            _mm512_shuffle_i32x4::<0x44>(c, d),
            _mm512_shuffle_i32x4::<0xee>(c, d),
        );
        out[word] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        out[4 + word] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        out[8 + word] = _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high);
        out[12 + word] = _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high);
    }
    out
}
