//! `molora completions`, `molora man` and `molora schema`: what shells, `man` and editors know of the program.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, print_raw, say};

/// Options of `molora completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "molora", &mut text);
        print_raw(&String::from_utf8(text)?)
    }
}

/// Options of `molora schema`.
#[derive(Debug, Args)]
pub(super) struct SchemaArgs {
    /// The schema of suites' files instead, as `molora reproduce` reads them
    #[arg(long)]
    suite: bool,
}

impl SchemaArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let schema = match self.suite {
            true => molora_train::suite::schema(),
            false => molora_train::recipe::schema(),
        };
        print_raw(&format!("{schema:#}\n"))
    }
}

/// Options of `molora man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Folder to write: molora.1 and a page for each command
    #[arg(value_name = "DIR")]
    out: PathBuf,
}

impl ManArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let name = self.out.display();
        std::fs::create_dir_all(&self.out).with_context(|| name.to_string())?;
        clap_mangen::generate_to(Cli::command(), &self.out).with_context(|| name.to_string())?;
        say(&format!("pages: {name}"));
        Ok(())
    }
}
