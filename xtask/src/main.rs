//! Checks and chores of the workspace, run as `cargo xtask <command>`.
//!
//! Each command is a module of its own; none is a library that another crate could depend on.

// A program talks to its user; the lint is meant for libraries.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod book;
mod ci;
mod embed;
mod mpi;
mod parity;
mod served;
mod tidy;
mod torture;
mod weights;
mod workspace;

/// Checks and chores of the molora workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Golden tests and a short training on ndarray and wgpu, and whether CUDA compiles.
    Backends,
    /// Measures steps, operations and decoding on this machine, also against PyTorch.
    Bench(bench::Bench),
    /// Checks the pages of docs/ and builds them with mdBook into target/book.
    Book,
    /// Everything a change has to pass: format, tidy, clippy, tests, documents; cheapest first.
    Ci,
    /// Packs the starter tasks of datasets/ into the program.
    Embed,
    /// Formats every file, those behind the lists of axes too, which `cargo fmt` does not see.
    Fmt,
    /// Runs on real processes of Open MPI and MPICH: equal, killed, stopped, on two network namespaces.
    Mpi(mpi::Mpi),
    /// Let transformers and PEFT read the files that molora writes, and clients ask its server (needs Python).
    Parity(parity::Parity),
    /// The project's own rules: dependency arrows, line budgets, documents, plain text.
    Tidy,
    /// Writes a decoder of random weights in the shape of a large one, in sharded files.
    Weights(weights::Weights),
    /// Kills, errors of the disk, pairs of commands, a hub that lies and requests that are none.
    Torture(torture::Torture),
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Backends => ci::run_backends(),
        Command::Bench(bench) => bench::run(bench),
        Command::Book => book::run(),
        Command::Ci => ci::run(),
        Command::Embed => embed::run(),
        Command::Fmt => ci::format(&workspace::shell()?),
        Command::Mpi(mpi) => mpi::run(mpi),
        Command::Parity(parity) => parity::run(parity),
        Command::Tidy => tidy::run(),
        Command::Weights(weights) => weights::run(weights),
        Command::Torture(torture) => torture::run(torture),
    }
}
