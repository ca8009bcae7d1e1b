//! What all cores read from memory: the bound of decoding, which reads every weight for every token.

use std::hint::black_box;

use anyhow::Result;
use rayon::prelude::*;

use crate::World;
use crate::clock::{Measured, time};

/// Numbers that are read: many times what any cache holds.
const NUMBERS: usize = 128 * 1024 * 1024;
/// Numbers of a task.
const TASK: usize = 1024 * 1024;
const CASE: &str = "read";

pub(crate) fn cases() -> Vec<String> {
    vec![CASE.into()]
}

pub(crate) fn run(case: &str, world: &World) -> Option<Result<Measured>> {
    (case == CASE).then(|| measure(world))
}

fn measure(world: &World) -> Result<Measured> {
    // Written, so that each page is one of its own.
    let numbers: Vec<u32> = (0..NUMBERS as u32).into_par_iter().collect();
    let measured = time(world.effort, &world.device, || {
        let tasks = black_box(&numbers).par_chunks(TASK);
        black_box(tasks.map(any).reduce(|| 0, |left, right| left | right));
        Ok(())
    })?;
    Ok(Measured {
        bytes: Some(size_of_val(numbers.as_slice()) as f64),
        ..measured
    })
}

/// The bits that any number has, in parts that do not wait for each other.
fn any(numbers: &[u32]) -> u32 {
    let mut parts = [0; 64];
    for numbers in numbers.as_chunks::<64>().0 {
        for (part, number) in parts.iter_mut().zip(numbers) {
            *part |= number;
        }
    }
    parts.iter().fold(0, |left, right| left | right)
}
