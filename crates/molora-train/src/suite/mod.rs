//! Suites: the data, prompts, decoding and numbers of published tables, and their reproduction.
//!
//! A suite is a file that describes itself, [`Suite`]; those of the field's papers lie in `suite/suites` and are
//! listed by [`names`]. Nothing of the papers' data is bundled: [`prepare`] makes tasks of files that the user
//! has, under their usual names, and [`reproduce`] trains recipes on them by
//! [`compare`](crate::compare::compare) and puts the paper's numbers beside ours.
//!
//! | file in a reproduction's folder | content |
//! |---|---|
//! | `reproduce.toml` | the request: suite, limit, tasks, and the files' hashes |
//! | `tasks/`, `held-out/` | the suite's records as tasks of molora |
//! | `comparison/` | what [`crate::compare`] writes |
//! | `scores/<recipe>-seed<k>.json` | scores on tasks that no run was trained on |
//! | `reproduce.json`, `reproduce.md` | the result: [`Reproduction`] |

mod error;
mod format;
mod prepare;
mod read;
mod reproduce;
mod settings;
mod table;

pub use error::SuiteError;
pub use format::{PaperRow, Published, Source, Suite, SuiteTask, When, schema};
pub use prepare::{Prepared, prepare};
pub use reproduce::{Reproduction, Request, TABLE, reproduce};
pub use table::{rows_of, tables};

/// The bundled suites by name.
const SUITES: [(&str, &str); 7] = [
    ("commonsense", include_str!("suites/commonsense.toml")),
    ("glue", include_str!("suites/glue.toml")),
    ("mosld-qa", include_str!("suites/mosld-qa.toml")),
    ("hydralora", include_str!("suites/hydralora.toml")),
    ("t0-held-in", include_str!("suites/t0-held-in.toml")),
    ("t0-held-out", include_str!("suites/t0-held-out.toml")),
    ("flan", include_str!("suites/flan.toml")),
];

/// Names of the bundled suites.
pub fn names() -> Vec<&'static str> {
    SUITES.map(|(name, _)| name).into()
}

/// A bundled suite.
///
/// # Errors
/// [`SuiteError::Unknown`] with the names that there are.
pub fn find(name: &str) -> Result<Suite, SuiteError> {
    let found = SUITES.into_iter().find(|(own, _)| *own == name);
    match found {
        Some((name, text)) => Suite::from_toml(text, name),
        None => Err(SuiteError::Unknown {
            name: name.into(),
            known: names().join(", "),
        }),
    }
}

/// The text of a bundled suite's file, to be changed and given back by its path.
pub fn source(name: &str) -> Option<&'static str> {
    let found = SUITES.into_iter().find(|(own, _)| *own == name);
    found.map(|(_, text)| text)
}

#[cfg(test)]
mod tests;
