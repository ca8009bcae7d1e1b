//! `cargo xtask torture`: does the program keep what docs/reliability.md promises?
//!
//! Commands that write are killed, or get an error, at each operation on a file in turn; pairs of
//! commands run at the same time; a hub lies in every way that we could think of; a server gets requests
//! that are none, and many. The operations are
//! counted and disturbed by a library that is preloaded (`torture/faults.c`), the hub is a few lines
//! of HTTP on the loopback. Everything is drawn from a seed. Not a part of `ci`: it takes minutes.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use xshell::{Shell, cmd};

mod faults;
mod hub;
mod pairs;
mod process;
mod report;
mod requests;
mod scenario;
pub(crate) mod tree;
mod trial;

use process::Program;
use report::Findings;
use scenario::Stage;

use crate::workspace;

/// What `cargo xtask torture` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Torture {
    /// What is tried.
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
    /// The program that is tried [default: molora, built for release]
    #[arg(long)]
    program: Option<PathBuf>,
    /// At most so many cases of each kind of trial, drawn at random; 0 takes all.
    #[arg(long, default_value_t = 300)]
    limit: usize,
    /// Seed of all draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Cases that run at the same time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// One command alone, by the name that the table has.
    #[arg(long)]
    only: Option<String>,
    /// One case alone, as a fault prints it.
    #[arg(long)]
    case: Option<String>,
    /// Folder for everything that is written; one in memory is faster [default: target/torture]
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// SIGKILL before each operation, in the middle of writing, and again while one goes on.
    Kills,
    /// Errors of the disk: failed, full, short, interrupted, read-only, unreadable.
    Errors,
    /// Two commands at the same time.
    Pairs,
    /// A hub that lies.
    Hub,
    /// A server that is sent bodies, heads, chunks and pauses that no client sends.
    Requests,
    /// A server that is asked 10,000 times, and left by 200 clients in the middle.
    Soak,
    /// All of these.
    All,
}

pub(crate) fn run(options: &Torture) -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "torture works on Linux on x86-64 alone: faults.c knows its system calls"
    );
    let shell = workspace::shell()?;
    let folder = match &options.folder {
        Some(folder) => std::path::absolute(folder)?,
        None => shell.current_dir().join("target/torture"),
    };
    tree::remove(&folder)?;
    std::fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let program = prepare(&shell, options, &folder)?;
    let stage = Stage::build(&shell, program, &folder)?;
    let wants = |what| options.what == what || options.what == What::All;
    let mut count = 0;
    let mut told = |title: &str, findings: Findings| {
        findings.print(title);
        count += findings.faults();
    };
    if wants(What::Kills) {
        told("kills", faults::run(&stage, &faults::KILLS, options)?);
    }
    if wants(What::Errors) {
        told("errors", faults::run(&stage, &faults::ERRORS, options)?);
    }
    if wants(What::Pairs) {
        told("pairs", pairs::run_all(&stage, options)?);
    }
    if wants(What::Hub) {
        told("hub", hub::run_all(&stage, &shell.current_dir(), options)?);
    }
    if wants(What::Requests) {
        let root = shell.current_dir();
        told("requests", requests::run_all(&stage, &root, options)?);
    }
    if wants(What::Soak) {
        requests::soak(&stage, &shell.current_dir())?;
    }
    match count {
        0 => Ok(()),
        _ => bail!(
            "{count} cases with a fault; their folders are below {}",
            folder.display()
        ),
    }
}

/// Compiles the library, and the program where none is given.
fn prepare(shell: &Shell, options: &Torture, folder: &Path) -> Result<Program> {
    let library = folder.join("faults.so");
    let source = shell.current_dir().join("xtask/torture/faults.c");
    cmd!(
        shell,
        "cc -O2 -Wall -Wextra -shared -fPIC -o {library} {source}"
    )
    .run()?;
    let path = workspace::program(shell, options.program.as_deref())?;
    let cache = folder.join("cache");
    std::fs::create_dir_all(&cache)?;
    Ok(Program {
        path,
        library,
        cache,
    })
}

/// SplitMix64: the same draws for the same seed.
#[derive(Debug)]
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A whole number below a limit.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit.max(1)
    }

    /// Brings a list into another order.
    fn shuffle<T>(&mut self, list: &mut [T]) {
        for index in (1..list.len()).rev() {
            list.swap(index, self.below(index + 1));
        }
    }
}
