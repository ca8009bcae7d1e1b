//! The `molora` program.

use std::process::ExitCode;

use clap::Parser;
use molora_train::TrainError;
use molora_train::cli::Cli;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref() {
            // The shell's code for a program that Ctrl-C ended.
            Some(TrainError::Interrupted { .. }) => {
                eprintln!("{error}");
                ExitCode::from(130)
            }
            _ => {
                eprintln!("error: {}", one_line(&error));
                ExitCode::FAILURE
            }
        },
    }
}

/// The error and its causes, without causes that the text before them has already told.
fn one_line(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |text, cause| match text.contains(&cause) {
            true => text,
            false if text.is_empty() => cause,
            false => format!("{text}: {cause}"),
        })
}
