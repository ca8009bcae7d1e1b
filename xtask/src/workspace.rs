//! Where the workspace is and which files belong to it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

/// A shell whose folder is the root of the workspace.
pub(crate) fn shell() -> Result<Shell> {
    // Cargo tells at run time: where this was compiled may be another clone with the same target folder.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`")?;
    let package = PathBuf::from(package);
    let root = package
        .parent()
        .context("the folder of xtask has no parent")?
        .to_owned();
    let shell = Shell::new()?;
    shell.change_dir(root);
    Ok(shell)
}

/// The program that is given, or molora, built for release.
pub(crate) fn program(shell: &Shell, given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return path
            .canonicalize()
            .with_context(|| format!("no program {}", path.display()));
    }
    cmd!(shell, "cargo build --release --package molora").run()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    Ok(shell.current_dir().join(target).join("release/molora"))
}

/// Paths, relative to the root, of all files that are committed or could be: git's own list.
pub(crate) fn files(shell: &Shell) -> Result<Vec<String>> {
    let listed = cmd!(
        shell,
        "git ls-files -z --cached --others --exclude-standard"
    )
    .quiet()
    .read()
    .context("cannot list the files of the workspace with git")?;
    let exists = |path: &&str| !path.is_empty() && shell.path_exists(path);
    Ok(listed
        .split('\0')
        .filter(exists)
        .map(str::to_owned)
        .collect())
}
