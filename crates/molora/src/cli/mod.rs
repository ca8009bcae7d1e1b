//! The command line of `molora`.

mod assemble;
mod batch;
mod chat;
mod choice;
mod combine;
mod compare;
mod describe;
mod distill;
mod download;
mod eval;
mod export;
mod generate;
mod grow;
mod import;
mod list;
mod models;
mod oracle;
mod predict;
mod progress;
mod ranks;
mod recover;
mod report;
mod reproduce;
#[cfg(feature = "serve")]
mod serve;
mod shell;
mod signals;
mod source;
pub(crate) mod terminal;
mod train;
mod validation;
mod verify;

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::Context;
use clap::{Parser, Subcommand};
use molora_train::data::text_of;

use ranks::{Voice, voice};

/// Train mixtures of LoRA experts, evaluate them, and see what they learned.
#[derive(Debug, Parser)]
#[command(name = "molora", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a recipe on several tasks at once and evaluate it on their test splits
    Train(train::TrainArgs),
    /// Train several recipes with several seeds at an equal budget and compare them
    Compare(compare::CompareArgs),
    /// Reproduce a published table: its data, prompts and decoding, with the paper's numbers beside ours
    Reproduce(reproduce::ReproduceArgs),
    /// Evaluate a finished run, an adapter or a base model
    Eval(eval::EvalArgs),
    /// Write the HTML report of a finished run, or one that compares several runs
    Report(report::ReportArgs),
    /// Generate the instruction of a task from some of its records, with a language model
    Describe(describe::DescribeArgs),
    /// Train another expert for a finished run; the experts that it has do not change
    AddExpert(grow::AddArgs),
    /// Remove an expert from a finished run
    RemoveExpert(grow::RemoveArgs),
    /// Turn PEFT adapters into a run: each becomes an expert, under a router that needs no training
    Assemble(assemble::AssembleArgs),
    /// Turn a PolyTropon, X-LoRA, Lily or Arrow model of PEFT into a run
    Import(import::ImportArgs),
    /// Export a run, or one of its experts, as a PEFT adapter
    Export(export::ExportArgs),
    /// Merge a run or an adapter into its base model, for transformers
    Merge(export::MergeArgs),
    /// Merge several experts into one adapter, or into a whole model
    Combine(combine::CombineArgs),
    /// Approximate a mixture by a single LoRA, and measure both
    Distill(distill::DistillArgs),
    /// Generate answers to prompts with a run, an adapter or a model, or chat with it
    Generate(generate::GenerateArgs),
    /// Answer HTTP requests by OpenAI's interface, with runs and models
    #[cfg(feature = "serve")]
    Serve(serve::ServeArgs),
    /// Predict the answers of unlabelled records with a finished run
    Predict(predict::PredictArgs),
    /// Find the best expert of every layer for each record, and compare it with the routers' choice
    Oracle(oracle::OracleArgs),
    /// Finish an interrupted change of a run's experts
    Recover(recover::RecoverArgs),
    /// Check that a finished run or an export is what it was, and computes what it did
    Verify(verify::VerifyArgs),
    /// List the recipes and bundled tasks, or show a recipe as TOML
    List(list::ListArgs),
    /// List the families of base models that are read, or show what is read of one's configuration
    Models(models::ModelsArgs),
    /// Print a shell completion script
    Completions(shell::CompletionsArgs),
    /// Write manual pages
    Man(shell::ManArgs),
    /// Print the JSON schema of recipe files, for editors and other tools
    Schema(shell::SchemaArgs),
}

impl Cli {
    /// Whether the command's own thread waits for others that compute: on a thread of the pool it would keep
    /// that one from them.
    pub(crate) fn waits(&self) -> bool {
        #[cfg(feature = "serve")]
        return matches!(self.command, Command::Serve(_));
        #[cfg(not(feature = "serve"))]
        false
    }

    /// Runs the command.
    ///
    /// # Errors
    /// Whatever went wrong, to be shown in one line.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Train(args) => args.run(),
            Command::Compare(args) => args.run(),
            Command::Reproduce(args) => args.run(),
            Command::Eval(args) => args.run(),
            Command::Report(args) => args.run(),
            Command::Describe(args) => args.run(),
            Command::AddExpert(args) => args.run(),
            Command::RemoveExpert(args) => args.run(),
            Command::Assemble(args) => args.run(),
            Command::Import(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Merge(args) => args.run(),
            Command::Combine(args) => args.run(),
            Command::Distill(args) => args.run(),
            Command::Generate(args) => args.run(),
            #[cfg(feature = "serve")]
            Command::Serve(args) => args.run(),
            Command::Predict(args) => args.run(),
            Command::Oracle(args) => args.run(),
            Command::Recover(args) => args.run(),
            Command::Verify(args) => args.run(),
            Command::List(args) => args.run(),
            Command::Models(args) => args.run(),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(),
            Command::Schema(args) => args.run(),
        }
    }
}

/// Standard input in error messages.
const STANDARD_INPUT: &str = "standard input";

/// All of standard input, which has to be UTF-8.
fn read_standard_input() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    Ok(text_of(&bytes, Path::new(STANDARD_INPUT))?)
}

/// A file's text.
fn read_utf8(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(text_of(&bytes, path)?)
}

/// Writes a line to standard error, unless another rank speaks. Nobody has to read it: a reader that went away and a
/// full disk end nothing.
pub(crate) fn say(text: &str) {
    if voice() == Voice::Whole {
        say_anyway(text);
    }
}

/// Writes a line to standard error on any rank.
fn say_anyway(text: &str) {
    use std::io::Write;
    drop(std::io::stderr().write_all(format!("{text}\n").as_bytes()));
}

/// Standard error that never fails, for what writes to it by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quiet;

impl std::io::Write for Quiet {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if voice() != Voice::None {
            drop(std::io::stderr().write_all(bytes));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        drop(std::io::stderr().flush());
        Ok(())
    }
}

/// Writes tables and messages to standard output.
fn print(text: &str) -> anyhow::Result<()> {
    print_raw(&terminal::lines(text))
}

/// Writes what a model wrote, or JSON, to standard output: as it is, but for a terminal.
fn print_written(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().is_terminal() {
        true => print(text),
        false => print_raw(text),
    }
}

/// Writes to standard output; a reader that went away is no error.
fn print_raw(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    if voice() != Voice::Whole {
        return Ok(());
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
