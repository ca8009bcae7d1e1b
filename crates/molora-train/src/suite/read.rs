//! Records of files that others published.

use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::{Map, Value};

use super::error::SuiteError;
use super::format::{Source, When};
use crate::data::{Row, read_published};

/// A record's values by column.
pub(super) type Columns = Map<String, Value>;

/// The records of the first source that is there, and its files.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) rows: Vec<Columns>,
    pub(super) files: Vec<PathBuf>,
    /// Whether the papers' file has another hash, and which file that is.
    pub(super) expected: Option<String>,
}

/// The first of some sources whose files are there.
pub(super) fn first<'a>(data: &Path, sources: &'a [Source]) -> Option<(&'a Source, Vec<PathBuf>)> {
    sources.iter().find_map(|source| {
        let files = matching(data, &source.file);
        (!files.is_empty()).then_some((source, files))
    })
}

/// The names that a file may have, in words.
pub(super) fn needed(sources: &[Source]) -> String {
    let names: Vec<&str> = sources.iter().map(|source| &source.file[..]).collect();
    names.join(" or ")
}

/// Reads the records of a task from a source.
///
/// # Errors
/// A file that cannot be read, a column that it lacks, or no record that belongs to the task.
pub(super) fn records(
    task: &str,
    (source, files): (&Source, Vec<PathBuf>),
) -> Result<Records, SuiteError> {
    let filter = source.when.as_ref().map(Filter::new);
    let mut rows = Vec::new();
    for file in &files {
        let header = (!source.header.is_empty()).then_some(&source.header[..]);
        for row in read_published(file, header)? {
            let belongs = match &filter {
                None => true,
                Some(filter) => filter.matches(&row)?,
            };
            if belongs {
                rows.push(renamed(row, source)?);
            }
        }
    }
    match &source.when {
        Some(when) if rows.is_empty() => Err(SuiteError::NoRecord {
            path: files[0].clone(),
            task: task.into(),
            column: when.column.clone(),
            pattern: when.pattern.clone(),
        }),
        _ => Ok(Records {
            rows,
            files,
            expected: source.sha256.clone(),
        }),
    }
}

struct Filter<'a> {
    when: &'a When,
    pattern: Regex,
    not: Option<Regex>,
}

impl<'a> Filter<'a> {
    fn new(when: &'a When) -> Self {
        let compiled = |pattern: &String| Regex::new(pattern).expect("the suite was checked");
        Self {
            when,
            pattern: compiled(&when.pattern),
            not: when.not.as_ref().map(compiled),
        }
    }

    fn matches(&self, row: &Row) -> Result<bool, SuiteError> {
        let text = value(row, &self.when.column)?;
        let text = match text {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let is_other = self.not.as_ref().is_some_and(|not| not.is_match(&text));
        Ok(self.pattern.is_match(&text) && !is_other)
    }
}

fn value<'r>(row: &'r Row, column: &str) -> Result<&'r Value, SuiteError> {
    row.columns.get(column).ok_or_else(|| {
        let found: Vec<&str> = row.columns.keys().map(|key| &key[..]).collect();
        SuiteError::NoColumn {
            place: row.place.to_string(),
            column: column.into(),
            found: found.join(", "),
        }
    })
}

/// A row's columns by the names that molora knows, numbers as numbers.
fn renamed(row: Row, source: &Source) -> Result<Columns, SuiteError> {
    let mut columns = match source.columns.is_empty() {
        true => row.columns,
        false => {
            let pair = |(ours, theirs): (&String, &String)| {
                Ok((ours.clone(), value(&row, theirs)?.clone()))
            };
            let pairs = source.columns.iter().map(pair);
            pairs.collect::<Result<Columns, SuiteError>>()?
        }
    };
    let label = match columns.get("label") {
        Some(Value::String(label)) if row.is_text => label.trim().parse::<i64>().ok(),
        Some(Value::Bool(label)) => Some((*label).into()),
        _ => None,
    };
    if let Some(label) = label {
        columns.insert("label".into(), label.into());
    }
    Ok(columns)
}

/// The files below a folder that a name with `*` in its parts stands for, sorted.
fn matching(data: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = vec![data.to_path_buf()];
    for part in name.split('/') {
        let inside = |folder: &PathBuf| -> Vec<PathBuf> {
            if !part.contains('*') {
                let path = folder.join(part);
                return if path.exists() {
                    vec![path]
                } else {
                    Vec::new()
                };
            }
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let paths = entries.map(|entry| entry.path());
            let fits = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                stands_for(part, &name)
            };
            paths.filter(fits).collect()
        };
        found = found.iter().flat_map(inside).collect();
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
}

/// Whether a name is one that a pattern with `*` stands for.
fn stands_for(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(before) = last.replace(part) {
            match rest.find(before) {
                Some(place) => rest = &rest[place + before.len()..],
                None => return false,
            }
        }
    }
    match last {
        None => rest.is_empty(),
        Some(end) => rest.ends_with(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_part_of_a_name() {
        for (pattern, name, expected) in [
            ("train.json", "train.json", true),
            ("train.json", "train.jsonl", false),
            ("train-*.parquet", "train-00000-of-00001.parquet", true),
            ("super_glue_rte_*", "super_glue_rte_does_it_follow", true),
            ("*_of_*.x", "1_of_2.x", true),
            ("*_of_*.x", "1_of.x", false),
            ("a*b*a", "aba", true),
            ("a*b*ba", "aba", false),
        ] {
            assert_eq!(stands_for(pattern, name), expected, "{pattern} {name}");
        }
    }
}
