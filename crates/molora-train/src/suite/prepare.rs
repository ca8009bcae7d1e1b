//! From the papers' files to tasks of molora.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use molora_kernels::random::Seed;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::error::SuiteError;
use super::format::{Source, Suite, SuiteTask};
use super::read::{Columns, Records, first, needed, records};
use crate::base::digest::sha256;
use crate::base::place::write_atomically;
use crate::data::Split;
use crate::data::draw::shuffle;
use crate::store::is_empty;

/// File of the request in a reproduction's folder.
pub(super) const REQUEST: &str = "reproduce.toml";

/// The suite's tasks as they lie in a reproduction's folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// The reproduction's folder.
    pub folder: PathBuf,
    /// Names of the tasks that are trained on, in the suite's order.
    pub trained: Vec<String>,
    /// Names of those that are held out.
    pub held_out: Vec<String>,
    /// Number of training records.
    pub records: usize,
    /// How these records differ from the paper's, a sentence each.
    pub differs: Vec<String>,
}

impl Prepared {
    /// Folder of the tasks that are trained on.
    pub fn data(&self) -> PathBuf {
        self.folder.join("tasks")
    }

    /// Folder of the tasks that are held out.
    pub fn held_out_data(&self) -> PathBuf {
        self.folder.join("held-out")
    }
}

/// What decides which records there are: `reproduce.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    suite: String,
    /// SHA-256 of the suite.
    suite_sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<NonZeroUsize>,
    tasks: Vec<String>,
    /// SHA-256 of every file that was read, by its place below the folder of the data.
    files: BTreeMap<String, String>,
}

/// Makes tasks of the suite's files below `data`, in the folder `out`: those in `names`, or all whose files are
/// there. Of each split at most `limit` records are kept, the same ones each time.
///
/// # Errors
/// A task in `names` that lacks a file, no task with all of its files, a file that is not what the suite says, or
/// a folder that holds something else or another request.
pub fn prepare(
    suite: &Suite,
    data: &Path,
    names: Option<&[String]>,
    limit: Option<NonZeroUsize>,
    out: &Path,
) -> Result<Prepared, SuiteError> {
    check_folder(out)?;
    let (chosen, mut differs) = chosen(suite, data, names)?;
    let all: Vec<(&SuiteTask, Splits)> = chosen
        .into_iter()
        .map(|task| Ok((task, Splits::read(task, data)?)))
        .collect::<Result<_, SuiteError>>()?;
    let stored = stored(suite, data, limit, &all, &mut differs)?;
    write_or_agree(&stored, out)?;
    let mut prepared = Prepared {
        folder: out.into(),
        trained: Vec::new(),
        held_out: Vec::new(),
        records: 0,
        differs: Vec::new(),
    };
    for (task, splits) in all {
        let splits = splits.limited(&task.name, limit);
        let (parent, list) = match task.held_out {
            true => (prepared.held_out_data(), &mut prepared.held_out),
            false => (prepared.data(), &mut prepared.trained),
        };
        list.push(task.name.clone());
        prepared.records += splits.train.rows.len();
        write(task, &splits, &parent.join(&task.name))?;
    }
    if let Some(limit) = limit {
        differs.push(format!(
            "records: at most {limit} of each split, the papers' have all"
        ));
    }
    prepared.differs = differs;
    Ok(prepared)
}

/// Refuses a folder that holds something else than a reproduction.
fn check_folder(folder: &Path) -> Result<(), SuiteError> {
    let is_ours = !folder.exists() || is_empty(folder)? || folder.join(REQUEST).is_file();
    match is_ours {
        true => Ok(()),
        false => Err(SuiteError::Folder {
            path: folder.into(),
        }),
    }
}

/// The tasks whose files are there, and what is said about the others.
fn chosen<'a>(
    suite: &'a Suite,
    data: &Path,
    names: Option<&[String]>,
) -> Result<(Vec<&'a SuiteTask>, Vec<String>), SuiteError> {
    let known = || {
        let all: Vec<&str> = suite.tasks.iter().map(|task| &task.name[..]).collect();
        all.join(", ")
    };
    for name in names.unwrap_or_default() {
        if !suite.tasks.iter().any(|task| task.name == *name) {
            return Err(SuiteError::NoTask {
                task: name.clone(),
                suite: suite.name.clone(),
                known: known(),
            });
        }
    }
    let (mut chosen, mut differs) = (Vec::new(), Vec::new());
    for task in &suite.tasks {
        let is_named = names.map(|names| names.contains(&task.name));
        match (is_named, lacking(task, data)) {
            (Some(false), _) => differs.push(format!("task {} is left out, as asked", task.name)),
            (_, None) => chosen.push(task),
            (Some(true), Some(sources)) => {
                return Err(SuiteError::NoFile {
                    data: data.into(),
                    task: task.name.clone(),
                    needed: needed(sources),
                });
            }
            (None, Some(sources)) => differs.push(format!(
                "task {} is left out: there is no {}",
                task.name,
                needed(sources)
            )),
        }
    }
    if chosen.iter().all(|task| task.held_out) {
        let first = suite.tasks.iter().find(|task| !task.held_out);
        let sources = first.and_then(|task| lacking(task, data));
        return Err(SuiteError::NoFiles {
            data: data.into(),
            suite: suite.name.clone(),
            needed: needed(sources.unwrap_or_default()),
        });
    }
    Ok((chosen, differs))
}

/// The sources of a split of which no file is there.
fn lacking<'a>(task: &'a SuiteTask, data: &Path) -> Option<&'a [Source]> {
    let splits = [&task.train, &task.validation, &task.test];
    let mut splits = splits.into_iter().chain(task.tests.values());
    let found = splits.find(|sources| !sources.is_empty() && first(data, sources).is_none());
    found.map(|sources| &sources[..])
}

/// The records of a task.
struct Splits {
    train: Records,
    validation: Records,
    /// By name; one without a name is the only one.
    tests: Vec<(Option<String>, Records)>,
}

impl Splits {
    fn read(task: &SuiteTask, data: &Path) -> Result<Self, SuiteError> {
        let of = |sources: &[Source]| match first(data, sources) {
            Some(found) => records(&task.name, found),
            None => Ok(Records::default()),
        };
        let tests = match task.tests.is_empty() {
            true => vec![(None, of(&task.test)?)],
            false => {
                let named = task.tests.iter();
                let named = named.map(|(name, sources)| Ok((Some(name.clone()), of(sources)?)));
                named.collect::<Result<_, SuiteError>>()?
            }
        };
        Ok(Self {
            train: of(&task.train)?,
            validation: of(&task.validation)?,
            tests,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Records> {
        let tests = self.tests.iter().map(|(_, records)| records);
        [&self.train, &self.validation].into_iter().chain(tests)
    }

    /// At most so many records of each split, in a random order of their own.
    fn limited(mut self, task: &str, limit: Option<NonZeroUsize>) -> Self {
        let Some(limit) = limit else {
            return self;
        };
        let seed = Seed::new(0).child("suite").child(task);
        let cut = |records: &mut Records, split: &str| {
            if records.rows.len() > limit.get() {
                shuffle(&mut seed.child(split).generator(), &mut records.rows);
                records.rows.truncate(limit.get());
            }
        };
        cut(&mut self.train, Split::Train.name());
        cut(&mut self.validation, Split::Validation.name());
        for (name, records) in &mut self.tests {
            cut(records, name.as_deref().unwrap_or(Split::Test.name()));
        }
        self
    }
}

fn stored(
    suite: &Suite,
    data: &Path,
    limit: Option<NonZeroUsize>,
    all: &[(&SuiteTask, Splits)],
    differs: &mut Vec<String>,
) -> Result<Stored, SuiteError> {
    let mut files = BTreeMap::new();
    for records in all.iter().flat_map(|(_, splits)| splits.all()) {
        for path in &records.files {
            let name = path.strip_prefix(data).unwrap_or(path);
            let name = name.display().to_string();
            if files.contains_key(&name) {
                continue;
            }
            let found = sha256(path)?;
            if let Some(expected) = records.expected.as_ref().filter(|hash| **hash != found) {
                differs.push(format!(
                    "{name} is another file than the papers': its SHA-256 is {found}, not {expected}"
                ));
            }
            files.insert(name, found);
        }
    }
    let text = serde_json::to_string(suite).expect("plain data");
    Ok(Stored {
        suite: suite.name.clone(),
        suite_sha256: Sha256::digest(text.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        limit,
        tasks: all.iter().map(|(task, _)| task.name.clone()).collect(),
        files,
    })
}

/// Writes the request into its folder, or refuses a folder of another one.
fn write_or_agree(stored: &Stored, out: &Path) -> Result<(), SuiteError> {
    let path = out.join(REQUEST);
    if !path.exists() {
        fs_err::create_dir_all(out)?;
        let text = toml::to_string(stored).expect("plain data");
        return Ok(write_atomically(&path, text.as_bytes())?);
    }
    let text = fs_err::read_to_string(&path)?;
    let old: Stored = toml::from_str(&text)
        .map_err(|error| SuiteError::differs(&path, error.message().replace('\n', " ")))?;
    let difference = match old {
        _ if old.suite != stored.suite => format!("it is of suite {}", old.suite),
        _ if old.suite_sha256 != stored.suite_sha256 => "the suite has changed".into(),
        _ if old.limit != stored.limit => "it has another limit of records".into(),
        _ if old.tasks != stored.tasks => format!("its tasks are {}", old.tasks.join(", ")),
        _ => match changed(&old.files, &stored.files) {
            Some(name) => format!("the file {name} has changed"),
            None => return Ok(()),
        },
    };
    Err(SuiteError::differs(&path, difference))
}

fn changed<'a>(
    old: &'a BTreeMap<String, String>,
    new: &'a BTreeMap<String, String>,
) -> Option<&'a String> {
    let differs = |name: &&String| old.get(*name) != new.get(*name);
    old.keys().chain(new.keys()).find(differs)
}

/// Writes a task's folder.
fn write(task: &SuiteTask, splits: &Splits, folder: &Path) -> Result<(), SuiteError> {
    fs_err::create_dir_all(folder)?;
    put(&folder.join("task.json"), &format!("{:#}\n", meta(task)))?;
    for (name, records) in splits.tests.iter().filter(|(_, of)| !of.rows.is_empty()) {
        let file = match name {
            Some(name) => format!("test_{name}.jsonl"),
            None => "test.jsonl".into(),
        };
        put(&folder.join(file), &lines(&records.rows))?;
    }
    if task.held_out {
        // A task has to have all splits; no run is trained on one that is held out.
        let rows: Vec<Columns> = splits
            .tests
            .iter()
            .flat_map(|(_, of)| of.rows.clone())
            .collect();
        put(&folder.join("train.jsonl"), &lines(&rows))?;
        return put(&folder.join("validation.jsonl"), &lines(&rows));
    }
    put(&folder.join("train.jsonl"), &lines(&splits.train.rows))?;
    match splits.validation.rows.is_empty() {
        true => Ok(()),
        false => put(
            &folder.join("validation.jsonl"),
            &lines(&splits.validation.rows),
        ),
    }
}

/// Writes a file, unless it is there as it is to be: runs have the time and hash of their files.
fn put(path: &Path, text: &str) -> Result<(), SuiteError> {
    if std::fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    Ok(write_atomically(path, text.as_bytes())?)
}

fn lines(rows: &[Columns]) -> String {
    let line = |row: &Columns| format!("{}\n", Value::Object(row.clone()));
    rows.iter().map(line).collect()
}

/// The `task.json`.
fn meta(task: &SuiteTask) -> Value {
    let mut meta = json!({
        "task": task.name,
        "type": task.kind,
        "instruction": task.instruction,
    });
    let map = meta.as_object_mut().expect("an object");
    let lists = [("labels", &task.labels), ("label_words", &task.label_words)];
    for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        map.insert(key.into(), json!(list));
    }
    if let Some(metric) = &task.metric {
        map.insert("metric".into(), json!(metric));
    }
    if let Some(answer) = &task.answer {
        map.insert("answer".into(), json!(answer));
    }
    if !task.tests.is_empty() {
        map.insert("tests".into(), json!(task.tests.keys().collect::<Vec<_>>()));
    }
    meta
}
