//! What the inputs of a run were: SHA-256 of base model, tokenizer and tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RunConfig;
use super::names::is_plain;
use crate::TrainError;
use crate::base::bundled;
use crate::base::digest::sha256;
use crate::data::{task_files, task_path};

/// What of a base model's folder is read, beside the weights; other programs may add other files to it.
const FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Digests of files by their names.
type Files = BTreeMap<String, String>;

/// SHA-256 digests of what a run is made of, in hexadecimal digits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digests {
    /// The files of the base model that are read, with its tokenizer.
    pub base: Files,
    /// The files of each task.
    pub tasks: BTreeMap<String, Files>,
}

impl Digests {
    /// Of a base model's folder and the tasks of a run, which lie where its configuration says, or
    /// in `data`.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn of(
        model: &Path,
        config: &RunConfig,
        data: Option<&str>,
    ) -> Result<Self, TrainError> {
        let task = |task: &super::TaskLabels| {
            let own = task.data.as_deref().unwrap_or(&config.data);
            let data = bundled::folder(data.unwrap_or(own))?;
            Ok((task.name.clone(), Self::of_task(&data, &task.name)?))
        };
        Ok(Self {
            base: Self::of_base(model)?,
            tasks: config
                .tasks
                .iter()
                .map(task)
                .collect::<Result<_, TrainError>>()?,
        })
    }

    /// Of the files in a base model's folder.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn of_base(folder: &Path) -> Result<Files, TrainError> {
        Self::of_base_by(folder, sha256)
    }

    /// The same with another way to read a file.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn of_base_by(
        folder: &Path,
        sha256: impl Fn(&Path) -> std::io::Result<String>,
    ) -> Result<Files, TrainError> {
        let mut names: BTreeSet<String> = FILES.map(str::to_owned).into();
        match folder.join(WEIGHTS).exists() {
            true => names.extend([WEIGHTS.to_owned()]),
            false => {
                names.extend([INDEX.to_owned()]);
                names.extend(shards(&folder.join(INDEX)));
            }
        }
        names.retain(|name| folder.join(name).is_file());
        let digest = |name: String| Ok((name.clone(), sha256(&folder.join(name))?));
        names.into_iter().map(digest).collect()
    }

    /// Of the files of one task.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn of_task(data: &Path, name: &str) -> Result<Files, TrainError> {
        let digest = |path: &std::path::PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok((name.into_owned(), sha256(path)?))
        };
        let files = task_files(&task_path(data, name))?;
        files.iter().map(digest).collect()
    }

    /// What differs from these, in words.
    pub(crate) fn changed(&self, now: &Self) -> Vec<String> {
        let of_base = |name: &String| format!("{name} of the base model");
        let mut found = differing(&self.base, &now.base, of_base);
        for (task, files) in &self.tasks {
            let of_task = |name: &String| format!("{name} of task {task}");
            if let Some(now) = now.tasks.get(task) {
                found.extend(differing(files, now, of_task));
            }
        }
        found
    }
}

/// The files that are not the same, or only on one side.
fn differing(one: &Files, other: &Files, words: impl Fn(&String) -> String) -> Vec<String> {
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let differs = |name: &&&String| one.get(**name) != other.get(**name);
    names
        .iter()
        .filter(differs)
        .map(|name| words(name))
        .collect()
}

/// Names of an index's shards; what is wrong with the index is said when the model is read.
fn shards(index: &Path) -> Vec<String> {
    let text = std::fs::read(index).unwrap_or_default();
    let value: Value = serde_json::from_slice(&text).unwrap_or_default();
    let map = value["weight_map"].as_object();
    let names = map
        .into_iter()
        .flatten()
        .filter_map(|(_, file)| file.as_str());
    names
        .filter(|name| is_plain(name))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[(&str, &str)]) -> Files {
        let owned = |(name, digest): &(&str, &str)| ((*name).to_owned(), (*digest).to_owned());
        names.iter().map(owned).collect()
    }

    #[test]
    fn what_differs_is_named() {
        let then = Digests {
            base: files(&[("config.json", "1"), ("model.safetensors", "2")]),
            tasks: [("pets".to_owned(), files(&[("train.csv", "3")]))].into(),
        };
        assert!(then.changed(&then).is_empty());
        let mut now = then.clone();
        now.base = files(&[
            ("config.json", "1"),
            ("model.safetensors", "5"),
            ("tokenizer.json", "6"),
        ]);
        now.tasks = [("pets".to_owned(), files(&[("test.csv", "3")]))].into();
        let expected = [
            "model.safetensors of the base model",
            "tokenizer.json of the base model",
            "test.csv of task pets",
            "train.csv of task pets",
        ];
        assert_eq!(then.changed(&now), expected);
        // A run on some of the tasks.
        now = then.clone();
        now.tasks.clear();
        assert!(then.changed(&now).is_empty());
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("writable");
        };
        write("config.json", "{}");
        write("README.md", "");
        write("other.safetensors", "");
        write("a.safetensors", "");
        write(
            INDEX,
            r#"{"weight_map": {"x": "a.safetensors", "y": "../b.safetensors"}}"#,
        );
        let found = Digests::of_base(folder.path()).expect("readable");
        let names: Vec<&String> = found.keys().collect();
        assert_eq!(names, ["a.safetensors", "config.json", INDEX]);
    }
}
