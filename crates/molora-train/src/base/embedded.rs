//! The starter tasks as every program has them in itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

use super::machine::cache_folder;
use super::place::NewFolder;
use crate::error::{RunProblem, TrainError};

/// The texts of all files by their paths, as JSON and gzip; `cargo xtask embed` writes it.
static TASKS: &[u8] = include_bytes!("tasks.json.gz");

/// The folder of the starter tasks: in the user's cache, where they are unpacked when they are first
/// asked for. Programs with other tasks have folders of their own there.
///
/// # Errors
/// If the cache cannot be written to, or there is none.
pub(super) fn tasks() -> Result<PathBuf, TrainError> {
    let name = super::bundled::TASKS;
    let no_cache = || TrainError::run(Path::new(name), RunProblem::NoCache);
    tasks_in(&cache_folder().ok_or_else(no_cache)?)
}

fn tasks_in(cache: &Path) -> Result<PathBuf, TrainError> {
    let digest = Sha256::digest(TASKS);
    let digest: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let place = cache.join("molora").join(format!("datasets-{digest}"));
    if !place.is_dir() {
        let new = NewFolder::for_place(&place)?;
        for (path, text) in texts() {
            let file = new.path().join(path);
            fs_err::create_dir_all(file.parent().unwrap_or(new.path()))?;
            fs_err::write(file, text)?;
        }
        new.put()?;
    }
    Ok(place.join("tasks"))
}

/// All files by their paths below `datasets`.
fn texts() -> BTreeMap<PathBuf, String> {
    let texts = serde_json::from_reader(std::io::BufReader::new(GzDecoder::new(TASKS)));
    texts.expect("a part of the program")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_repository() {
        let datasets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
        let texts = texts();
        for (path, text) in &texts {
            let found = fs_err::read_to_string(datasets.join(path)).expect("in the repository");
            assert!(
                found == *text,
                "{}: run `cargo xtask embed`",
                path.display()
            );
        }
        let tasks = fs_err::read_dir(datasets.join("tasks")).expect("the repository's tasks");
        let files = tasks.flat_map(|task| fs_err::read_dir(task.expect("an entry").path()));
        assert_eq!(
            files.flatten().count(),
            texts.len(),
            "run `cargo xtask embed`"
        );
    }

    #[test]
    fn they_are_unpacked_once() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let folder = tasks_in(cache.path()).expect("writable");
        let file = folder.join("sms_spam/task.json");
        fs_err::write(&file, "{}").expect("writable");
        assert_eq!(tasks_in(cache.path()).expect("there"), folder);
        assert_eq!(fs_err::read_to_string(&file).expect("there"), "{}");
        let left = fs_err::read_dir(cache.path().join("molora")).expect("there");
        assert_eq!(left.count(), 1, "nothing but the folder");
    }
}
