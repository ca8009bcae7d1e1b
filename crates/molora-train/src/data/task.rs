//! Task folders: `task.json` and the three splits, read and checked.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{DataError, Place};
pub use super::kind::{Split, TaskKind};
use super::record::{Fields, Record, parse_record};
use crate::eval::metrics::Metric;

/// What `task.json` says. Keys that are not listed here are allowed and ignored.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskMeta {
    /// Key `task`: the name, which is also the folder's.
    pub name: String,
    /// Key `type`.
    pub kind: TaskKind,
    /// Key `instruction`: the prompt, the same for all records.
    pub instruction: String,
    /// Key `labels`: names by index; empty where the file says null.
    pub labels: Vec<String>,
    /// Key `group`: which of a method's groups of experts the task's own belongs to.
    pub group: Option<String>,
    /// Key `metric`, parsed: always there for classification, `None` for the other kinds.
    pub metric: Option<Metric>,
    /// Key `metric` as it stands.
    pub metric_text: String,
}

/// A task with all its records.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What `task.json` says.
    pub meta: TaskMeta,
    /// The records of `train.jsonl`.
    pub train: Vec<Record>,
    /// The records of `validation.jsonl`.
    pub validation: Vec<Record>,
    /// The records of `test.jsonl`.
    pub test: Vec<Record>,
}

impl Task {
    /// The records of one split.
    pub fn split(&self, split: Split) -> &[Record] {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
            Split::Test => &self.test,
        }
    }
}

/// Reads and checks one task folder.
///
/// # Errors
/// The first thing found wrong, with file and line; see [`DataError`].
pub fn load_task(dir: &Path) -> Result<Task, DataError> {
    let meta = load_meta(dir)?;
    let task = Task {
        train: load_split(dir, Split::Train, &meta)?,
        validation: load_split(dir, Split::Validation, &meta)?,
        test: load_split(dir, Split::Test, &meta)?,
        meta,
    };
    check_folder_name(dir, &task.meta.name)?;
    Ok(task)
}

/// Reads the tasks under `dir`: those in `names`, in that order, or all of them sorted by name.
///
/// # Errors
/// A name that is not there (with near names), a name given twice, no task at all, or what
/// [`load_task`] finds.
pub fn load_tasks(dir: &Path, names: Option<&[String]>) -> Result<Vec<Task>, DataError> {
    let available = list_tasks(dir)?;
    let chosen = names.unwrap_or(&available);
    check_selection(dir, chosen, &available)?;
    chosen
        .iter()
        .map(|name| load_task(&dir.join(name)))
        .collect()
}

/// The names of the task folders under `dir`, sorted: all sub-folders that hold a `task.json`.
///
/// # Errors
/// If `dir` cannot be read or holds no task.
pub fn list_tasks(dir: &Path) -> Result<Vec<String>, DataError> {
    let unreadable = |source| DataError::Read {
        path: dir.into(),
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if entry.path().join("task.json").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    if names.is_empty() {
        let hint = match dir.join("task.json").is_file() {
            true => " (this is a task folder itself: give the folder above it)",
            false => "",
        };
        return Err(DataError::NoTasks {
            path: dir.into(),
            hint,
        });
    }
    names.sort();
    Ok(names)
}

/// Refuses tasks of kinds that cannot be trained yet.
///
/// # Errors
/// Names every task that is no classification task, with its kind.
pub fn require_classification(tasks: &[Task]) -> Result<(), DataError> {
    let others: Vec<String> = tasks
        .iter()
        .filter(|task| task.meta.kind != TaskKind::Classification)
        .map(|task| format!("{} is {}", task.meta.name, task.meta.kind))
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(DataError::Unsupported {
        found: others.join(", "),
    })
}

fn check_selection(dir: &Path, chosen: &[String], available: &[String]) -> Result<(), DataError> {
    if chosen.is_empty() {
        return Err(DataError::Selection("no task is named".into()));
    }
    for (place, name) in chosen.iter().enumerate() {
        if !available.contains(name) {
            return Err(DataError::UnknownTask {
                path: dir.into(),
                name: name.clone(),
                near: near_names(name, available),
                available: available.to_vec(),
            });
        }
        if chosen[..place].contains(name) {
            return Err(DataError::Selection(format!(
                "task \"{name}\" is named twice"
            )));
        }
    }
    Ok(())
}

/// At most three names that look like `name`, the nearest first.
fn near_names(name: &str, available: &[String]) -> Vec<String> {
    let mut scored: Vec<(f64, &String)> = available
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored
        .into_iter()
        .take(3)
        .map(|(_, candidate)| candidate.clone())
        .collect()
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    std::fs::read(path).map_err(|source| DataError::Read {
        path: path.into(),
        source,
    })
}

fn load_meta(dir: &Path) -> Result<TaskMeta, DataError> {
    let path = dir.join("task.json");
    let text = read(&path)?;
    let place = Place {
        path: path.clone(),
        line: None,
    };
    let mut fields = Fields::parse(&text, &place)?;
    let kind = parse_kind(&mut fields)?;
    let labels = match fields.take("labels")? {
        Value::Null => Vec::new(),
        value => fields.string_list("labels", value)?,
    };
    check_labels(&path, kind, &labels)?;
    let metric_text = fields.string("metric")?;
    let metric = match kind {
        TaskKind::Classification => Some(
            Metric::parse(&metric_text, &labels)
                .map_err(|source| DataError::Metric { path, source })?,
        ),
        _ => None,
    };
    Ok(TaskMeta {
        name: fields.string("task")?,
        kind,
        instruction: fields.string("instruction")?,
        labels,
        group: match fields.map.contains_key("group") {
            true => fields.optional_string("group")?,
            false => None,
        },
        metric,
        metric_text,
    })
}

fn parse_kind(fields: &mut Fields<'_>) -> Result<TaskKind, DataError> {
    let found = fields.string("type")?;
    match TaskKind::ALL.into_iter().find(|kind| kind.name() == found) {
        Some(kind) => Ok(kind),
        None => {
            let names = TaskKind::ALL.map(TaskKind::name).join(", ");
            Err(fields.contradiction("type", found, format!("it has to be one of {names}")))
        }
    }
}

fn check_labels(path: &Path, kind: TaskKind, labels: &[String]) -> Result<(), DataError> {
    if kind == TaskKind::Classification && labels.len() < 2 {
        return Err(DataError::TooFewLabels {
            path: path.into(),
            found: labels.len(),
        });
    }
    for (second, label) in labels.iter().enumerate() {
        if let Some(first) = labels[..second].iter().position(|other| other == label) {
            let label = label.clone();
            return Err(DataError::DuplicateLabel {
                path: path.into(),
                label,
                first,
                second,
            });
        }
    }
    Ok(())
}

fn load_split(dir: &Path, split: Split, meta: &TaskMeta) -> Result<Vec<Record>, DataError> {
    let path = dir.join(format!("{split}.jsonl"));
    let text = read(&path)?;
    let text = text.trim_ascii_end();
    if text.is_empty() {
        return Err(DataError::EmptySplit { path });
    }
    text.split(|&byte| byte == b'\n')
        .enumerate()
        .map(|(index, line)| parse_line(line, meta, &path, index + 1))
        .collect()
}

fn parse_line(
    line: &[u8],
    meta: &TaskMeta,
    path: &Path,
    number: usize,
) -> Result<Record, DataError> {
    let place = Place {
        path: PathBuf::from(path),
        line: Some(number),
    };
    if line.trim_ascii().is_empty() {
        return Err(DataError::BlankLine { place });
    }
    parse_record(line, meta, &place)
}

/// The name stands in results and in adapter files, the folder's name is what users choose by: two
/// names for one task would make them disagree.
fn check_folder_name(dir: &Path, name: &str) -> Result<(), DataError> {
    let path = dir.join("task.json");
    let full = dir.canonicalize().map_err(|source| DataError::Read {
        path: dir.into(),
        source,
    })?;
    let folder = full
        .file_name()
        .map(|folder| folder.to_string_lossy().into_owned());
    match folder {
        Some(folder) if folder != name => Err(DataError::Contradiction {
            place: Place { path, line: None },
            key: "task",
            found: name.into(),
            expected: format!("the folder's name is \"{folder}\""),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
