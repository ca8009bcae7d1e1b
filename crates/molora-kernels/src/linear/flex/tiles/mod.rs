//! Products of many rows with a matrix, in tiles of AVX-512 registers: f32, or bf16 in pairs.
//!
//! Of the matrix, panels of [`COLUMNS`] columns of the product are laid out as the instructions read
//! them, which costs little beside the product of many rows and makes `x * W` as fast as `x * W^T`.
//! Each number of the product is summed in one order, whatever is done by which thread.
#![allow(unsafe_code)]

mod kernel;
mod panel;
mod single;
#[cfg(test)]
mod tests;

use std::ops::Range;

use rayon::prelude::*;

pub(super) use self::kernel::{Kind, REGISTERS, ROWS, Start, Target, dot, read, write};
pub(super) use self::panel::{COLUMNS, LANES, Panel, fill_square};
pub(super) use self::single::product;

/// Words of the inner axis that are summed at once: their panel takes a part of the second-level cache.
const BLOCK: usize = 384;
/// Rows of `x` that a task takes at least: it lays out its panels itself.
const TASK_ROWS: usize = 32 * ROWS;

/// Rows of `x` in words: a number of f32, or two of bf16.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a> {
    pub(super) words: &'a [u32],
    /// Words from one row to the next.
    pub(super) stride: usize,
    /// Words of a row that count.
    pub(super) inner: usize,
}

/// `x * W + bias`, `rows` of `cols`.
///
/// `lay_out(panel, room, words, columns)` writes a part of `W` into a panel, where `words` are those
/// of the inner axis; `room` makes what it needs for that, once for a thread.
///
/// # Safety
/// The processor must have the instructions of `kind`.
pub(super) unsafe fn multiply<R>(
    kind: &Kind,
    x: Words<'_>,
    [rows, cols]: [usize; 2],
    bias: Option<&[f32]>,
    room: impl Fn() -> R + Sync,
    lay_out: impl Fn(&mut Panel, &mut R, Range<usize>, Range<usize>) + Sync,
) -> Vec<f32> {
    let panels = cols.div_ceil(COLUMNS);
    // Some for each thread, so that one that comes late does less.
    let wanted = (3 * rayon::current_num_threads()).div_ceil(panels);
    let task_rows = rows.div_ceil(wanted).next_multiple_of(ROWS).max(TASK_ROWS);
    let parts = rows.div_ceil(task_rows);
    let run = |(panel, room): &mut (Panel, R), target, task: usize| {
        let (column, row) = (task / parts * COLUMNS, task % parts * task_rows);
        let rows = row..rows.min(row + task_rows);
        let columns = column..cols.min(column + COLUMNS);
        for first in (0..x.inner).step_by(BLOCK) {
            let words = first..x.inner.min(first + BLOCK);
            lay_out(panel, room, words.clone(), columns.clone());
            let start = match first {
                0 => Start::Bias(padded(bias, column)),
                _ => Start::Add,
            };
            // SAFETY: as promised by the caller; each task has rows and columns of its own.
            unsafe { kind.add_panel(x, panel, words, &start, rows.clone(), column, target) };
        }
    };
    let room = || (Panel::new(BLOCK), room());
    let all = |target| match panels * parts {
        1 => run(&mut room(), target, 0),
        tasks => (0..tasks)
            .into_par_iter()
            .for_each_init(room, |room, task| run(room, target, task)),
    };
    // SAFETY: the tasks have all rows and columns, and the first block of each writes its own.
    unsafe { Target::filled(rows, cols, all) }
}

/// The bias of a panel's columns; 0 where there is none.
pub(super) fn padded(bias: Option<&[f32]>, column: usize) -> [f32; COLUMNS] {
    let mut padded = [0.0; COLUMNS];
    if let Some(bias) = bias {
        let bias = &bias[column..];
        let count = bias.len().min(COLUMNS);
        padded[..count].copy_from_slice(&bias[..count]);
    }
    padded
}
