//! `cargo xtask book`: checks the pages of `docs/` and builds them with mdBook.

use anyhow::{Context, Result, ensure};
use xshell::cmd;

use crate::{tidy, workspace};

/// Checks summary and links, and builds the book into `target/book`.
///
/// # Errors
/// If a check fails, mdBook is not installed, or it cannot build the book.
pub(crate) fn run() -> Result<()> {
    let shell = workspace::shell()?;
    let files = workspace::files(&shell)?;
    tidy::check_book(&shell, &files)?;
    let version = cmd!(shell, "mdbook --version")
        .quiet()
        .ignore_stderr()
        .read();
    let version = version.context("mdBook is not installed: cargo install mdbook --locked")?;
    cmd!(shell, "mdbook build docs").run()?;
    let page = "target/book/index.html";
    ensure!(shell.path_exists(page), "{version} has not written {page}");
    println!("{version}: {page}");
    Ok(())
}
