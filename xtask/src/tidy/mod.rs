//! `cargo xtask tidy`: the rules of this project that no other tool knows.
//!
//! Each submodule checks one kind of thing and gives back [`Finding`]s; nothing is changed.

use std::fmt;

use anyhow::{Context, Result, ensure};
use xshell::Shell;

use crate::workspace;

mod arrows;
mod book;
mod budget;
mod documents;
mod plain;
mod rooms;
mod source;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Worth a look; does not fail.
    Warning,
    /// Fails the check.
    Error,
}

/// One violated rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    level: Level,
    file: String,
    line: usize,
    message: String,
}

impl Finding {
    fn error(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            level: Level::Error,
            file: file.to_owned(),
            line,
            message: message.into(),
        }
    }

    fn warning(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            ..Self::error(file, line, message)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Warning => "warning",
            Level::Error => "error",
        };
        write!(f, "{}:{}: {level}: {}", self.file, self.line, self.message)
    }
}

/// Checks all rules and prints what they find.
///
/// # Errors
/// If a rule is violated, or a file cannot be read.
pub(crate) fn run() -> Result<()> {
    let shell = workspace::shell()?;
    let files = workspace::files(&shell)?;
    let mut findings = arrows::check(&shell)?;
    findings.extend(documents::check(&shell, &files)?);
    findings.extend(book::check(&shell, &files)?);
    for file in &files {
        let content = shell
            .read_binary_file(file)
            .with_context(|| format!("cannot read {file}"))?;
        findings.extend(plain::check_size(file, content.len()));
        if plain::is_text(file) {
            let text = String::from_utf8(content).with_context(|| format!("{file} is no UTF-8"))?;
            findings.extend(check_text(file, &text));
        }
    }
    report(&findings, files.len())
}

/// Checks the pages of the book alone.
///
/// # Errors
/// If a rule is violated, or a page cannot be read.
pub(crate) fn check_book(shell: &Shell, files: &[String]) -> Result<()> {
    report(&book::check(shell, files)?, files.len())
}

/// The rules for one text file.
fn check_text(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = plain::check(file, text);
    if file.ends_with(".rs") {
        match source::Source::parse(text) {
            Ok(source) => {
                findings.extend(budget::check(file, text, &source));
                findings.extend(source::check(file, text, &source));
                findings.extend(rooms::check(file, &source));
            }
            Err(error) => findings.push(Finding::error(
                file,
                error.span().start().line,
                format!("this is no Rust: {error}"),
            )),
        }
    }
    findings
}

fn report(findings: &[Finding], files: usize) -> Result<()> {
    findings.iter().for_each(|finding| println!("{finding}"));
    let errors = findings
        .iter()
        .filter(|finding| finding.level == Level::Error)
        .count();
    let warnings = findings.len() - errors;
    println!("tidy: {files} files, {errors} errors, {warnings} warnings");
    ensure!(errors == 0, "tidy found {errors} violated rules");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_file_and_line() {
        let finding = Finding::warning("src/a.rs", 7, "too long");
        assert_eq!(finding.to_string(), "src/a.rs:7: warning: too long");
    }

    #[test]
    fn only_errors_fail() {
        assert!(report(&[Finding::warning("a", 1, "w")], 1).is_ok());
        assert!(report(&[Finding::error("a", 1, "e")], 1).is_err());
    }

    #[test]
    fn a_file_that_does_not_parse_is_named_with_its_line() {
        let findings = check_text("a.rs", "fn main() {}\nfn {\n");
        assert_eq!((findings.len(), findings[0].line), (1, 2), "{findings:?}");
    }
}
