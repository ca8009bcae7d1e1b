//! Folders as values: what is in them, what of it may differ between two runs, and what a kill left.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Beginnings of the names of what is there only while a command writes.
const TEMPORARY: [&str; 5] = [".molora-", ".growing-", ".removing-", ".swap", ".lock"];
/// Files that are read by people, or have digests of such, and so have times in them: that they are there is compared.
const FOR_PEOPLE: [&str; 5] = [
    "report.html",
    "compare.md",
    "compare.html",
    "optimizer.bpk",
    "manifest.json",
];

/// What is below a folder, by its path: the content of files, nothing for folders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<String, Option<Vec<u8>>>);

impl Tree {
    /// All below a folder, byte by byte.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.add(folder, "")?;
        Ok(tree)
    }

    /// All below a folder without what differs from run to run: times, and where the folder is.
    pub(crate) fn read_result(folder: &Path) -> Result<Self> {
        let mut tree = Self::read(folder)?;
        let root = folder.to_str().context("a path of UTF-8")?.to_owned();
        for (path, content) in &mut tree.0 {
            if let Some(bytes) = content {
                *bytes = without_times(path, bytes, &root);
            }
        }
        Ok(tree)
    }

    fn add(&mut self, folder: &Path, below: &str) -> Result<()> {
        let entries = std::fs::read_dir(folder);
        for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = match below {
                "" => name,
                _ => format!("{below}/{name}"),
            };
            let is_folder = entry.file_type()?.is_dir();
            let content = match is_folder {
                true => None,
                false => Some(std::fs::read(entry.path())?),
            };
            self.0.insert(path.clone(), content);
            if is_folder {
                self.add(&entry.path(), &path)?;
            }
        }
        Ok(())
    }

    /// The part below a folder, without what a writer leaves behind.
    pub(crate) fn recovered(&self, folder: &str) -> Self {
        let begin = format!("{folder}/");
        let kept = self.0.iter().filter_map(|(path, content)| {
            let path = path.strip_prefix(&begin)?;
            // A run is finished before its checkpoints go.
            let is_kept = !is_temporary(path) && !path.starts_with("checkpoints");
            is_kept.then(|| (path.to_owned(), content.clone()))
        });
        Self(kept.collect())
    }

    /// The same without what a writer leaves behind.
    pub(super) fn without_leftovers(&self) -> Self {
        let kept = self.0.iter().filter(|(path, _)| !is_temporary(path));
        Self(
            kept.map(|(path, content)| (path.clone(), content.clone()))
                .collect(),
        )
    }

    /// Forgets a folder in which nothing is.
    pub(super) fn forget_empty(&mut self, folder: &str) {
        let begin = format!("{folder}/");
        if !self.0.keys().any(|path| path.starts_with(&begin)) {
            self.0.remove(folder);
        }
    }

    /// The paths of all files and folders.
    pub(super) fn paths(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    pub(super) fn content(&self, path: &str) -> Option<&Vec<u8>> {
        self.0.get(path)?.as_ref()
    }

    /// Where this differs from what is expected, in words; nothing if it does not.
    pub(crate) fn difference(&self, expected: &Self) -> Option<String> {
        let missing = expected.0.keys().filter(|path| !self.has(path));
        let missing = missing.map(|path| format!("{path} is missing"));
        let more = self.0.keys().filter(|path| !expected.has(path));
        let more = more.map(|path| format!("{path} is too much"));
        let differs = |(path, content): &(&String, &Option<Vec<u8>>)| {
            expected.0.get(*path).is_some_and(|other| other != *content)
        };
        let other = self.0.iter().filter(differs);
        let other = other.map(|(path, _)| format!("{path} differs"));
        let all: Vec<String> = missing.chain(more).chain(other).collect();
        let rest = all.len().saturating_sub(4);
        let shown = all.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
        match (all.len(), rest) {
            (0, _) => None,
            (_, 0) => Some(shown),
            _ => Some(format!("{shown} and {rest} more")),
        }
    }
}

fn is_temporary(path: &str) -> bool {
    let begins = |part: &str| TEMPORARY.iter().any(|begin| part.starts_with(begin));
    path.split('/').any(begins)
}

/// A file's content with its times taken out, and the folder's own path.
fn without_times(path: &str, bytes: &[u8], root: &str) -> Vec<u8> {
    let name = path.rsplit('/').next().unwrap_or_default();
    if FOR_PEOPLE.contains(&name) {
        return Vec::new();
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return bytes.to_owned();
    };
    let text = text.replace(&format!("{root}/"), "");
    let is_lines = name.ends_with(".jsonl");
    if !is_lines && !name.ends_with(".json") {
        return text.into_bytes();
    }
    // A line that is not whole stays as it is, so that it differs.
    let plain = |text: &str| match serde_json::from_str::<Value>(text) {
        Ok(mut value) => {
            forget_times(&mut value);
            value.to_string()
        }
        Err(_) => text.to_owned(),
    };
    match is_lines {
        true => text
            .split_inclusive('\n')
            .map(|line| match line.strip_suffix('\n') {
                Some(whole) => plain(whole) + "\n",
                None => line.to_owned(),
            })
            .collect::<String>()
            .into_bytes(),
        false => plain(&text).into_bytes(),
    }
}

fn forget_times(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // The optimizer's file has its entries in another order each time.
            let differs = ["second", "memory", "optimizer_sha256"];
            map.retain(|key, _| !differs.iter().any(|part| key.contains(part)));
            map.values_mut().for_each(forget_times);
        }
        Value::Array(list) => list.iter_mut().for_each(forget_times),
        _ => {}
    }
}

/// Copies a folder with all in it to a place where nothing is.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &to)?,
            false => drop(std::fs::copy(entry.path(), to)?),
        }
    }
    Ok(())
}

/// Makes a place a copy of a folder, whatever was there.
pub(crate) fn replace(from: &Path, to: &Path) -> Result<()> {
    remove(to)?;
    copy(from, to)
}

/// Removes a folder, which need not be there.
pub(super) fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
