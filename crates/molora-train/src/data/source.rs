//! Where tasks lie: a folder of task folders, one task folder, or one file.

use std::path::{Path, PathBuf};

use super::error::DataError;
use super::format::{Format, FormatError};
use super::kind::Split;
use super::meta::test_names;

/// Whether a path is one task: a file, or a folder with a `task.json` or a training split.
pub(super) fn is_task(path: &Path) -> bool {
    path.is_file()
        || path.join("task.json").is_file()
        || split_files(path, Split::Train).is_ok_and(|files| !files.is_empty())
        // Two training splits: reading it says so.
        || matches!(split_files(path, Split::Train), Err(DataError::Format(_)))
}

/// The name of the task at a path: the folder's, or the file's without its ending.
///
/// # Errors
/// If the path is not there or has no name.
pub(super) fn task_name(path: &Path) -> Result<String, DataError> {
    let unreadable = |source| DataError::Read {
        path: path.into(),
        source,
    };
    let full = path.canonicalize().map_err(unreadable)?;
    let name = match path.is_file() {
        true => path.file_stem(),
        false => full.file_name(),
    };
    match name {
        Some(name) => Ok(name.to_string_lossy().into_owned()),
        None => Err(unreadable(std::io::ErrorKind::InvalidFilename.into())),
    }
}

/// Names of a split's files, the first of them that is there is taken.
fn names(split: Split) -> &'static [&'static str] {
    match split {
        Split::Train => &["train"],
        Split::Validation => &["validation", "valid", "val", "dev"],
        Split::Test => &["test"],
    }
}

/// Words that files of splits begin with, ours and others'.
const WORDS: [&str; 13] = [
    "train",
    "training",
    "validation",
    "validate",
    "valid",
    "val",
    "dev",
    "test",
    "testing",
    "eval",
    "evaluation",
    "holdout",
    "heldout",
];

/// The files of a split, sorted: `train.csv`, or the parts `train-00000-of-00002.parquet` and so
/// on. None if there is no such file.
///
/// # Errors
/// Several files that are not parts of one, missing parts, or a folder that cannot be read.
pub(super) fn split_files(dir: &Path, split: Split) -> Result<Vec<PathBuf>, DataError> {
    for name in names(split) {
        let files = files_named(dir, split, name)?;
        if !files.is_empty() {
            return Ok(files);
        }
    }
    Ok(Vec::new())
}

/// The files of one of several test splits, as [`split_files`].
///
/// # Errors
/// As [`split_files`].
pub(super) fn test_files(dir: &Path, name: &str) -> Result<Vec<PathBuf>, DataError> {
    files_named(dir, Split::Test, &format!("test_{name}"))
}

/// Names files in a warning that look like a split and belong to none that is read; `tests` are the names of
/// several test splits, if there are some.
///
/// # Errors
/// As [`split_files`].
pub(super) fn warn_of_other_files(dir: &Path, tests: &[String]) -> Result<(), DataError> {
    let mut read = Vec::new();
    for name in tests {
        read.extend(test_files(dir, name)?);
    }
    let others = other_files(dir)?;
    for path in others.iter().filter(|path| !read.contains(path)) {
        tracing::warn!(
            "{}: looks like a split and is not read: those are train, validation (or valid, val, dev) \
             and test, each in one file or in parts",
            path.display()
        );
    }
    Ok(())
}

fn other_files(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut read = Vec::new();
    for split in [Split::Train, Split::Validation, Split::Test] {
        read.extend(split_files(dir, split)?);
    }
    let is_split = |path: &PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let stem = stem.to_ascii_lowercase();
        let is_word = |word: &str| {
            let rest = stem.strip_prefix(word);
            rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_alphabetic()))
        };
        WORDS.iter().any(|word| is_word(word)) && !read.contains(path)
    };
    let mut others = data_files(dir)?;
    others.retain(is_split);
    others.sort();
    Ok(others)
}

/// The files of a folder that are of a known format.
fn data_files(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let unreadable = |source| DataError::Read {
        path: dir.into(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if Format::of(&path).is_ok() {
            files.push(path);
        }
    }
    Ok(files)
}

/// The files of a split by one of its names.
fn files_named(dir: &Path, split: Split, name: &str) -> Result<Vec<PathBuf>, DataError> {
    let mut whole = Vec::new();
    let mut parts = Vec::new();
    for path in data_files(dir)? {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let Some(rest) = stem.strip_prefix(name) else {
            continue;
        };
        match (rest, part_count(rest)) {
            ("", _) => whole.push(path),
            (_, Some(count)) => parts.push((count, path)),
            _ => {}
        }
    }
    parts.sort();
    whole.sort();
    choose(dir, split, whole, parts)
}

fn choose(
    dir: &Path,
    split: Split,
    whole: Vec<PathBuf>,
    parts: Vec<(usize, PathBuf)>,
) -> Result<Vec<PathBuf>, DataError> {
    let (path, split) = (dir.to_path_buf(), split.name());
    let expected = parts.first().map_or(0, |(count, _)| *count);
    let parts_agree = parts.iter().all(|(count, _)| *count == expected);
    let parts: Vec<PathBuf> = parts.into_iter().map(|(_, path)| path).collect();
    if whole.len() > 1 || !parts_agree || !whole.is_empty() && !parts.is_empty() {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().display().to_string();
        let files = whole.iter().chain(&parts).map(name).collect();
        return Err(FormatError::TwoFiles { path, split, files }.into());
    }
    if !parts.is_empty() && parts.len() != expected {
        let found = parts.len();
        return Err(FormatError::Parts {
            path,
            split,
            found,
            expected,
        }
        .into());
    }
    Ok(if whole.is_empty() { parts } else { whole })
}

/// The number of parts that `-00000-of-00002` speaks of.
fn part_count(rest: &str) -> Option<usize> {
    let (index, count) = rest.strip_prefix('-')?.split_once("-of-")?;
    index.parse::<usize>().ok()?;
    count.parse().ok()
}

/// The files of the task at a path: itself, or `task.json` and those of all splits.
///
/// # Errors
/// As [`split_files`].
pub(crate) fn task_files(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    if path.is_file() {
        return Ok(vec![path.into()]);
    }
    let meta = path.join("task.json");
    let mut files: Vec<PathBuf> = meta.is_file().then_some(meta).into_iter().collect();
    for split in [Split::Train, Split::Validation, Split::Test] {
        files.extend(split_files(path, split)?);
    }
    for name in test_names(path)? {
        files.extend(test_files(path, &name)?);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_validation_split_has_several_names_and_others_are_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path();
        let add = |name: &str| std::fs::write(dir.join(name), "").expect("writable");
        for name in ["train.jsonl", "valid.jsonl", "task.json", "vocab.json"] {
            add(name);
        }
        let found = split_files(dir, Split::Validation).expect("one file");
        assert_eq!(found, [dir.join("valid.jsonl")]);
        assert_eq!(other_files(dir).expect("readable"), [] as [PathBuf; 0]);
        for name in [
            "validation.csv",
            "eval.jsonl",
            "test_unseen.json",
            "testament.json",
        ] {
            add(name);
        }
        let found = split_files(dir, Split::Validation).expect("one file");
        assert_eq!(found, [dir.join("validation.csv")], "the full name first");
        let others = other_files(dir).expect("readable");
        let names = ["eval.jsonl", "test_unseen.json", "valid.jsonl"];
        assert_eq!(others, names.map(|name| dir.join(name)));
    }

    #[test]
    fn parts_may_have_the_other_names_too() {
        let folder = tempfile::tempdir().expect("a folder");
        for part in 0..2 {
            let name = format!("dev-0000{part}-of-00002.parquet");
            std::fs::write(folder.path().join(name), "").expect("writable");
        }
        let found = split_files(folder.path(), Split::Validation).expect("two parts");
        assert_eq!(found.len(), 2);
    }
}
