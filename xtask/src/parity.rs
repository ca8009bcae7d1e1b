//! `cargo xtask parity`: transformers, PEFT and llama.cpp read the files that molora writes, and molora those
//! of PEFT; clients of OpenAI's interface talk to `molora serve`.
//!
//! `parity/make.py` lets PEFT write adapters of its own methods with what it computes. Tests of
//! molora-models read them, and tests of molora-models and molora write adapters and models with what
//! molora computes; `parity/check.py` loads those in Python. Both compare at 1e-4 of the largest value, and runs that
//! were exported for transformers with Python of our own at 1e-5. `MOLORA_PARITY_MODEL` names a larger decoder to do
//! that with too. What is served is for [`serve`].

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use xshell::{Shell, cmd};

use crate::workspace;

mod serve;

/// What `cargo xtask parity` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Parity {
    /// What is compared.
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
    /// The program that serves [default: molora, built for release]
    #[arg(long)]
    program: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Files, against transformers, PEFT and llama.cpp.
    Files,
    /// Answers of `molora serve`, against openai, lm-eval, async-openai and curl.
    Serve,
    /// All of these.
    All,
}

/// What the check of files imports, as pip installs it.
const PACKAGES: [&str; 5] = [
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "llama-cpp-python",
];

/// Names a Python that has the packages already.
const PYTHON: &str = "MOLORA_PYTHON";

pub(crate) fn run(options: &Parity) -> Result<()> {
    let shell = workspace::shell()?;
    let work = shell.current_dir().join("target/parity");
    if options.what != What::Serve {
        files(&shell, &work)?;
    }
    match options.what {
        What::Files => Ok(()),
        What::Serve | What::All => serve::run(&shell, &work, options.program.as_deref()),
    }
}

fn files(shell: &Shell, work: &Path) -> Result<()> {
    let python = interpreter(shell, &work.join("venv"), &PACKAGES)?;
    let cases = work.join("cases");
    let made = work.join("peft");
    shell.remove_path(&cases)?;
    shell.remove_path(&made)?;
    cmd!(shell, "{python} xtask/parity/make.py {made}").run()?;
    cmd!(
        shell,
        "cargo test --release -p molora-models -p molora --test suite parity::"
    )
    .env("MOLORA_PARITY", &cases)
    .env("MOLORA_PARITY_PEFT", &made)
    .run()?;
    cmd!(shell, "{python} xtask/parity/check.py {cases}").run()?;
    Ok(())
}

/// The interpreter that the user names, or one with packages in a virtual environment, which is made once.
fn interpreter(shell: &Shell, venv: &Path, packages: &[&str]) -> Result<PathBuf> {
    if let Some(python) = std::env::var_os(PYTHON) {
        return Ok(python.into());
    }
    let python = match cfg!(windows) {
        true => venv.join("Scripts/python.exe"),
        false => venv.join("bin/python"),
    };
    let ready = venv.join("ready");
    if !shell.path_exists(&ready) {
        cmd!(shell, "python3 -m venv {venv}").run()?;
        cmd!(shell, "{python} -m pip install --quiet {packages...}").run()?;
        shell.write_file(&ready, "")?;
    }
    Ok(python)
}
