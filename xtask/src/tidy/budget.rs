//! Line budgets: files and functions that one can read in one go.

use super::Finding;
use super::source::{Source, is_test_file};

/// More lines than this outside tests are worth a look.
const FILE_WARN: usize = 300;
/// More lines than this, with tests, are too many.
const FILE_MAX: usize = 500;
/// Longer functions are worth a look.
const FUNCTION_WARN: usize = 60;
/// Longer functions are too long.
const FUNCTION_MAX: usize = 100;
/// A comment that allows a long file; a reason has to follow.
const ALLOW: &str = "// tidy-allow: long-file";

/// Checks the lengths of a file and of its functions.
pub(super) fn check(file: &str, text: &str, source: &Source) -> Vec<Finding> {
    let mut findings: Vec<Finding> = source
        .functions
        .iter()
        .filter_map(|function| {
            let message = format!("function `{}` has {} lines", function.name, function.length);
            over(
                file,
                function.line,
                function.length,
                (FUNCTION_WARN, FUNCTION_MAX),
                message,
            )
        })
        .collect();
    findings.extend(check_file(file, text, source));
    findings
}

fn check_file(file: &str, text: &str, source: &Source) -> Option<Finding> {
    if let Some((index, line)) = text
        .lines()
        .enumerate()
        .find(|(_, line)| line.starts_with(ALLOW))
    {
        let has_reason = !line[ALLOW.len()..].trim().is_empty();
        let message = format!("`{ALLOW}` needs a reason after it");
        return (!has_reason).then(|| Finding::error(file, index + 1, message));
    }
    let total = text.lines().count();
    if total > FILE_MAX {
        let message = format!(
            "file has {total} lines, at most {FILE_MAX}: split it, or say why not with `{ALLOW} <reason>`"
        );
        return Some(Finding::error(file, total, message));
    }
    let code = (1..=total).filter(|line| !source.is_test(*line)).count();
    let message = format!("file has {code} lines outside tests, aim at {FILE_WARN}");
    (code > FILE_WARN && !is_test_file(file)).then(|| Finding::warning(file, total, message))
}

fn over(
    file: &str,
    line: usize,
    length: usize,
    (warn, max): (usize, usize),
    message: String,
) -> Option<Finding> {
    match length {
        length if length > max => Some(Finding::error(
            file,
            line,
            format!("{message}, at most {max}"),
        )),
        length if length > warn => Some(Finding::warning(
            file,
            line,
            format!("{message}, aim at {warn}"),
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::Level;

    fn found(file: &str, text: &str) -> Vec<(Level, usize)> {
        let findings = check(file, text, &Source::parse(text).unwrap());
        findings
            .iter()
            .map(|finding| (finding.level, finding.line))
            .collect()
    }

    fn function(lines: usize) -> String {
        format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2))
    }

    #[test]
    fn functions_have_two_limits() {
        assert_eq!(found("a.rs", &function(60)), []);
        assert_eq!(found("a.rs", &function(61)), [(Level::Warning, 1)]);
        assert_eq!(found("a.rs", &function(100)), [(Level::Warning, 1)]);
        assert_eq!(found("a.rs", &function(101)), [(Level::Error, 1)]);
    }

    #[test]
    fn files_have_two_limits() {
        let lines = |count: usize| "const A: u8 = 0;\n".repeat(count);
        assert_eq!(found("a.rs", &lines(300)), []);
        assert_eq!(found("a.rs", &lines(301)), [(Level::Warning, 301)]);
        assert_eq!(found("a.rs", &lines(501)), [(Level::Error, 501)]);
        assert_eq!(found("crates/x/tests/a.rs", &lines(400)), []);
    }

    #[test]
    fn tests_do_not_count_towards_the_warning() {
        let tests = format!(
            "#[cfg(test)]\nmod tests {{\n{}}}\n",
            "const A: u8 = 0;\n".repeat(200)
        );
        assert_eq!(
            found("a.rs", &("const B: u8 = 0;\n".repeat(290) + &tests)),
            []
        );
    }

    #[test]
    fn a_long_file_needs_a_reason() {
        let lines = "const A: u8 = 0;\n".repeat(501);
        assert_eq!(found("a.rs", &format!("{ALLOW} a table\n{lines}")), []);
        assert_eq!(
            found("a.rs", &format!("{ALLOW}\n{lines}")),
            [(Level::Error, 1)]
        );
    }
}
