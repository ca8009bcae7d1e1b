//! Where tasks lie: a folder of task folders, one task folder, or one file.

use std::path::{Path, PathBuf};

use super::error::DataError;
use super::format::{Format, FormatError};
use super::kind::Split;

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

/// The files of a split, sorted: `train.csv`, or the parts `train-00000-of-00002.parquet` and so
/// on. None if there is no such file.
///
/// # Errors
/// Several files that are not parts of one, missing parts, or a folder that cannot be read.
pub(super) fn split_files(dir: &Path, split: Split) -> Result<Vec<PathBuf>, DataError> {
    let unreadable = |source| DataError::Read {
        path: dir.into(),
        source,
    };
    let mut whole = Vec::new();
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let Some(rest) = stem.strip_prefix(split.name()) else {
            continue;
        };
        if Format::of(&path).is_err() {
            continue;
        }
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
