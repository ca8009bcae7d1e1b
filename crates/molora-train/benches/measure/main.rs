//! Measures one named case and prints one line of JSON; `cargo xtask bench` runs it.
//!
//! A case has a process of its own, so that its peak memory is its own. Models are random and in
//! the shape of real ones: time does not depend on their values. `measure models DIR` writes them.

// A program talks to its user; the lint is meant for libraries.
#![allow(clippy::print_stdout)]

mod clock;
mod decode;
mod families;
mod kernels;
mod lm_step;
mod matmul;
mod memory;
mod methods;
mod mix;
mod model;
mod step;

use std::path::PathBuf;

use anyhow::{Context, Result};
use burn::tensor::Device;
use clap::{Args, Parser, Subcommand, ValueEnum};
use molora_kernels::allocator::{Allocator, keep_freed_memory};
use molora_train::base::DeviceSpec;
use molora_train::report::peak_memory_bytes;

use crate::clock::{Effort, Measured};

/// That of the program.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Measures one named case and prints one line of JSON.
#[derive(Debug, Parser)]
#[command(name = "measure", version)]
struct Cli {
    /// Given by `cargo bench`; nothing is measured then.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints the names of a suite's cases, one a line.
    List { suite: Suite },
    /// Writes the random models that cases read.
    Models { folder: PathBuf },
    /// Opens a device and does nothing with it.
    Probe { device: DeviceSpec },
    /// Measures a case.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    suite: Suite,
    case: String,
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// Where the random models are.
    #[arg(long)]
    models: PathBuf,
    /// A decoder in Hugging Face layout in place of the random one.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Seconds to measure for, after the warm-up; at least five samples are taken.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

/// What is measured.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Suite {
    /// f32 matmuls: the best of them is the machine's peak.
    Matmul,
    /// Reading memory: the best is the machine's peak.
    Memory,
    /// Whole training steps.
    Step,
    /// Training steps with more experts, and with longer sequences.
    Scale,
    /// A training step of every recipe, at equal parameters.
    Methods,
    /// The gated low-rank mix alone.
    Mix,
    /// Every operation of molora-kernels, fast against portable.
    Kernels,
    /// Greedy decoding with a cache.
    Decode,
    /// Steps and decoding of every family of base models at the same sizes.
    Families,
    /// Training steps of a language model, at attention and at all linear layers.
    LmStep,
}

/// What a case may use.
struct World {
    device: Device,
    models: PathBuf,
    model: Option<PathBuf>,
    effort: Effort,
}

fn main() -> Result<()> {
    keep_freed_memory();
    let cli = Cli::parse();
    match cli.command {
        None => println!("nothing measured: this is run by `cargo xtask bench`"),
        Some(Command::List { suite }) => suite.cases().iter().for_each(|case| println!("{case}")),
        Some(Command::Models { folder }) => model::write_all(&folder)?,
        Some(Command::Probe { device }) => drop(device.open()?),
        Some(Command::Run(run)) => println!("{}", run.measure()?),
    }
    Ok(())
}

impl Suite {
    fn cases(self) -> Vec<String> {
        match self {
            Self::Matmul => matmul::cases(),
            Self::Memory => memory::cases(),
            Self::Step => step::names(&step::STEP),
            Self::Scale => step::names(&step::SCALE),
            Self::Methods => methods::cases(),
            Self::Mix => mix::cases(),
            Self::Kernels => kernels::cases(),
            Self::Decode => decode::cases(),
            Self::Families => families::cases(),
            Self::LmStep => lm_step::cases(),
        }
    }

    /// The case's measurement; `None` if the suite has no such case.
    fn run(self, case: &str, world: &World) -> Option<Result<Measured>> {
        match self {
            Self::Matmul => matmul::run(case, world),
            Self::Memory => memory::run(case, world),
            Self::Step => step::run(&step::STEP, case, world),
            Self::Scale => step::run(&step::SCALE, case, world),
            Self::Methods => methods::run(case, world),
            Self::Mix => mix::run(case, world),
            Self::Kernels => kernels::run(case, world),
            Self::Decode => decode::run(case, world),
            Self::Families => families::run(case, world),
            Self::LmStep => lm_step::run(case, world),
        }
    }
}

impl Run {
    fn measure(self) -> Result<serde_json::Value> {
        let world = World {
            device: self.device.open()?,
            models: self.models,
            model: self.model,
            effort: Effort {
                seconds: self.seconds,
            },
        };
        // On a thread of the pool, as the program is.
        let measured = rayon::scope(|_| self.suite.run(&self.case, &world));
        let measured = measured.with_context(|| {
            let known = self.suite.cases().join(", ");
            format!("no case `{}`, expected one of {known}", self.case)
        })??;
        let mut line = measured.to_json();
        let suite = self.suite.to_possible_value();
        line["suite"] = suite.context("a suite without a name")?.get_name().into();
        line["case"] = self.case.into();
        line["device"] = self.device.to_string().into();
        let peak = peak_memory_bytes();
        line["peak_memory_mib"] = peak.map(|bytes| bytes as f64 / 1024.0 / 1024.0).into();
        Ok(line)
    }
}
