//! The `molora` program.

mod cli;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use molora_kernels::allocator::{Allocator, keep_freed_memory};
use molora_train::TrainError;
use molora_train::base::is_opening_device;
use molora_train::compare::CompareError;
use molora_train::data::is_contained;
use molora_train::hub::HubError;
use molora_train::suite::SuiteError;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::debug_fn;

use cli::{Cli, Quiet, say, terminal};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    keep_freed_memory();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Quiet)
        .with_ansi(std::io::stderr().is_terminal() && !has_no_color())
        .fmt_fields(debug_fn(|writer, field, value| {
            let value = terminal::line(&format!("{value:?}"));
            match field.name() {
                "message" => write!(writer, "{value}"),
                name => write!(writer, " {name}={value}"),
            }
        }))
        .init();
    quiet_while_panics_become_errors();
    let cli = Cli::parse();
    let result = match cli.waits() {
        true => cli.run(),
        // On a thread of the pool, so that a parallel operation needs no other thread to be woken for it.
        false => rayon::scope(|_| cli.run()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The shell's code for a program that Ctrl-C has ended; SIGTERM, which does the same, has it too.
        Err(error) if is_interruption(&error) => {
            say(&terminal::line(&error.to_string()));
            ExitCode::from(130)
        }
        Err(error) => {
            say(&format!("error: {}", terminal::line(&one_line(&error))));
            ExitCode::FAILURE
        }
    }
}

/// Whether the user wants no colours (<https://no-color.org>).
fn has_no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// A backend that is not there panics, and so do readers of some broken files: both become an error of
/// one line.
fn quiet_while_panics_become_errors() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_opening_device() && !is_contained() {
            hook(panic);
        }
    }));
}

fn is_interruption(error: &anyhow::Error) -> bool {
    let is_stop = |error: &TrainError| {
        matches!(
            error,
            TrainError::Interrupted { .. }
                | TrainError::GrowthInterrupted { .. }
                | TrainError::Stopped
                | TrainError::Hub(HubError::Stopped { .. })
        )
    };
    let of_comparison = |error: &CompareError| match error {
        CompareError::Interrupted { .. } => true,
        CompareError::Train(error) => is_stop(error),
        _ => false,
    };
    match (error.downcast_ref(), error.downcast_ref()) {
        (Some(SuiteError::Compare(error)), _) => of_comparison(error),
        (Some(SuiteError::Train(error)), _) => is_stop(error),
        (_, Some(error)) => of_comparison(error),
        _ => error.downcast_ref().is_some_and(is_stop),
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
