//! Ranks of MPI whose messages are slow, as between machines that are far from each other.
//!
//! ```console
//! $ cargo build --release -p molora --features mpi --example ranks
//! $ mpirun -n 2 target/release/examples/ranks measure 20 0.3,3,48
//! $ mpirun -n 2 target/release/examples/ranks train 20 ASKED MODEL DATA OUT
//! ```
//!
//! The first number is a delay in milliseconds, which every exchange takes longer. `measure` exchanges what a step does,
//! for adapters of so many megabytes; `train` does what the run in the folder ASKED did, once more. `cargo xtask mpi` calls
//! both.

// A program talks to its user; the lint is meant for libraries.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use molora_train::collective::{Collective, Delayed, Mpi};
use molora_train::run::{Request, train_on};
use molora_train::store::read_config;

/// Steps that are measured, after one that is not.
const STEPS: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mpi = Mpi::start(|error| eprintln!("error: {error}"))?;
    let slow = |delay: &str| -> Result<_, Box<dyn Error>> {
        Ok(Delayed::new(&mpi, Duration::from_millis(delay.parse()?)))
    };
    match words[..] {
        ["measure", delay, sizes] => measure(&slow(delay)?, sizes),
        ["train", delay, asked, model, data, out] => {
            let config = read_config(Path::new(asked))?;
            let names = config.tasks.into_iter().map(|task| task.name);
            let request = Request {
                tasks: Some(names.collect()),
                seed: config.seed,
                ..Request::new(config.recipe, model, data, Path::new(out))
            };
            train_on(
                &request,
                &slow(delay)?,
                &AtomicBool::new(false),
                &mut |_| {},
            )?;
            Ok(())
        }
        _ => Err("expected `measure DELAY SIZES` or `train DELAY ASKED MODEL DATA OUT`".into()),
    }
}

/// Bytes and seconds of the exchanges of a step: gradients in slices, their sums, and whether anybody asks to stop.
fn measure(ranks: &dyn Collective, sizes: &str) -> Result<(), Box<dyn Error>> {
    let count = ranks.world_size();
    for size in sizes.split(',') {
        let megabytes: f64 = size.parse()?;
        let slice = (megabytes * 1e6) as usize / count;
        let mut begun = Instant::now();
        for step in 0..=STEPS {
            if step == 1 {
                begun = Instant::now();
            }
            ranks.exchange(vec![vec![1; slice]; count])?;
            ranks.gather(vec![1; slice])?;
            ranks.gather(vec![0; 2])?;
        }
        if ranks.rank() == 0 {
            let seconds = begun.elapsed().as_secs_f64() / STEPS as f64;
            let sent = 2.0 * (count - 1) as f64 * slice as f64 / 1e6;
            println!(
                "{megabytes} MB on {count} ranks: each sends {sent:.2} MB in {:.1} ms a step",
                1e3 * seconds
            );
        }
    }
    Ok(())
}
