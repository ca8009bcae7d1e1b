//! `cargo xtask mpi`: runs on real processes, by Open MPI and by MPICH.
//!
//! Each of the two builds a program of its own, which is bound to that MPI. What one process computes is what 2 and 4
//! compute, to the byte; ranks are killed, stopped and asked to end at steps that are drawn, and the run goes on with other
//! numbers of ranks; two network namespaces with addresses of their own are two machines. Needs Linux and the packages of
//! [`IMPLEMENTATIONS`]; namespaces need root as well.

mod cases;
mod hosts;
mod process;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use xshell::{Shell, cmd};

use crate::torture::{Draw, tree};
use crate::workspace;
use process::Launcher;

/// What `cargo xtask mpi` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Mpi {
    /// The MPI [default: those that are installed]
    #[arg(long, value_enum)]
    implementation: Option<Name>,
    /// How often a rank is killed at a step that is drawn
    #[arg(long, value_name = "N", default_value_t = 10)]
    kills: usize,
    /// Where the drawn numbers begin
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    #[value(name = "openmpi")]
    OpenMpi,
    #[value(name = "mpich")]
    Mpich,
}

/// Each with the compiler and the launcher that Debian's packages have, and the packages.
const IMPLEMENTATIONS: [(Name, &str, &str, &str); 2] = [
    (
        Name::OpenMpi,
        "mpicc.openmpi",
        "mpirun.openmpi",
        "libopenmpi-dev openmpi-bin libclang-dev",
    ),
    (
        Name::Mpich,
        "mpicc.mpich",
        "mpirun.mpich",
        "libmpich-dev mpich libclang-dev",
    ),
];

/// A case: what has to hold, and how that is tried.
type Case = (&'static str, fn(&mut Place<'_>) -> Result<String>);

const CASES: [Case; 10] = [
    ("the same run on 1, 2 and 4 ranks", cases::same_runs),
    ("the same run with delays of 1 and 20 ms", cases::delays),
    ("the same scores", cases::same_scores),
    ("the same comparison", cases::same_comparison),
    ("misuse is refused in one line", cases::misuse),
    ("a signal to one rank stops all", cases::signal),
    ("a rank is killed", cases::kills),
    ("a rank hangs", cases::hang),
    ("two machines", hosts::same_run),
    ("a rank of another machine is killed", hosts::kill),
];

/// Where the cases of an MPI are tried.
struct Place<'a> {
    launcher: &'a Launcher,
    /// Model and data, as they are copied for each try.
    plain: &'a Path,
    /// What is tried lies below.
    folder: &'a Path,
    draw: Draw,
    kills: usize,
}

impl Place<'_> {
    /// A folder of its own for a try, with model and data.
    fn world(&self, name: &str) -> Result<PathBuf> {
        let world = self.folder.join(name).join("world");
        tree::replace(self.plain, &world)?;
        Ok(world)
    }
}

pub(crate) fn run(options: &Mpi) -> Result<()> {
    let shell = workspace::shell()?;
    let folder = shell.current_dir().join("target/mpi");
    shell.remove_path(&folder)?;
    let plain = folder.join("plain");
    let fixtures = shell
        .current_dir()
        .join("crates/molora/tests/fixtures/format-0");
    for name in ["model", "data"] {
        tree::copy(&fixtures.join(name), &plain.join(name))?;
    }
    let (mut tried, mut failed) = (0, 0);
    for (name, compiler, launcher, packages) in IMPLEMENTATIONS {
        if options.implementation.is_some_and(|asked| asked != name) {
            continue;
        }
        let is_there = cmd!(shell, "{compiler} --version").quiet().ignore_stdout();
        if is_there.ignore_stderr().run().is_err() {
            println!("{launcher}: skipped (Debian has it in {packages})");
            continue;
        }
        let place = folder.join(launcher);
        let program = program(&shell, compiler, &place)?;
        let launcher = Launcher::new(name == Name::OpenMpi, launcher, program);
        let mut place = Place {
            launcher: &launcher,
            plain: &plain,
            folder: &place,
            draw: Draw(options.seed),
            kills: options.kills,
        };
        for (case, try_it) in CASES
            .iter()
            .filter(|(case, _)| case.contains(&options.only))
        {
            let begun = Instant::now();
            let (outcome, text) = match try_it(&mut place) {
                Ok(text) => ("ok", text),
                Err(error) => ("FAILED", format!("{error:#}")),
            };
            let seconds = begun.elapsed().as_secs();
            println!("{}: {case}: {outcome} ({text}; {seconds} s)", launcher.name);
            tried += 1;
            failed += usize::from(outcome != "ok");
        }
    }
    match (tried, failed) {
        (0, _) => bail!("nothing was tried: no MPI is installed, or no case has that name"),
        (_, 0) => Ok(()),
        _ => bail!(
            "{failed} of {tried} cases failed; their folders are below {}",
            folder.display()
        ),
    }
}

/// Builds the program, and the example that delays messages, for an MPI, and copies them to a folder.
fn program(shell: &Shell, compiler: &str, folder: &Path) -> Result<PathBuf> {
    shell.create_dir(folder)?;
    // Its build does not see that the compiler is another one.
    cmd!(shell, "cargo clean --quiet --release --package mpi-sys").run()?;
    cmd!(
        shell,
        "cargo build --release --package molora --features mpi"
    )
    .env("MPICC", compiler)
    .run()?;
    cmd!(
        shell,
        "cargo build --release --package molora --features mpi --example ranks"
    )
    .env("MPICC", compiler)
    .run()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let release = shell.current_dir().join(target).join("release");
    for (from, to) in [("molora", "molora"), ("examples/ranks", "ranks")] {
        std::fs::copy(release.join(from), folder.join(to))
            .with_context(|| format!("{from} was not built"))?;
    }
    Ok(folder.join("molora"))
}
