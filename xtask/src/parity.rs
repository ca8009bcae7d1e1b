//! `cargo xtask parity`: transformers, PEFT and llama.cpp read the files that molora writes, and molora those
//! of PEFT.
//!
//! `parity/make.py` lets PEFT write adapters of its own methods with what it computes. Tests of
//! molora-models read them, and tests of molora-models and molora write adapters and models with what
//! molora computes; `parity/check.py` loads those in Python. Both compare at 1e-4 of the largest value, and runs that
//! were exported for transformers with Python of our own at 1e-5. `MOLORA_PARITY_MODEL` names a larger decoder to do
//! that with too.

use std::path::{Path, PathBuf};

use anyhow::Result;
use xshell::{Shell, cmd};

use crate::workspace;

/// What the check imports, as pip installs it.
const PACKAGES: [&str; 5] = [
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "llama-cpp-python",
];

/// Names a Python that has the packages already.
const PYTHON: &str = "MOLORA_PYTHON";

pub(crate) fn run() -> Result<()> {
    let shell = workspace::shell()?;
    let work = shell.current_dir().join("target/parity");
    let python = python(&shell, &work.join("venv"))?;
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

/// The interpreter that the user names, or one with the packages in a virtual environment, which is
/// made once.
fn python(shell: &Shell, venv: &Path) -> Result<PathBuf> {
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
        cmd!(shell, "{python} -m pip install --quiet {PACKAGES...}").run()?;
        shell.write_file(&ready, "")?;
    }
    Ok(python)
}
