//! Tasks: what is said about them and the three splits of their records, read and checked.

pub(super) mod asked;
mod streamed;

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::asked::asked_by_templates;
use self::streamed::{not_streamed, streamed};
use super::error::DataError;
use super::format::{Format, Row, Wanted, read_rows};
use super::hold_out::hold_out;
pub use super::kind::{Split, TaskKind};
use super::meta::MetaFile;
use super::metrics::Metric;
use super::prompt::PromptTemplate;
use super::record::Record;
use super::schema::{Reading, Schema, is_read, rename_all, warn_of_places, warn_of_unread};
use super::source::{is_task, split_files, task_name, test_files, warn_of_other_files};
use super::stream::StreamedSplit;
use super::written::WritingConfig;

/// What is known about a task: what `task.json` says, or what is usual where it says nothing.
///
/// Keys of `task.json` that are not listed here are allowed and ignored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskMeta {
    /// Key `task`: the name, which is also the folder's or file's.
    pub name: String,
    /// Key `type`.
    pub kind: TaskKind,
    /// Key `instruction`: the prompt of all records that have none of their own; may be empty.
    pub instruction: String,
    /// Key `labels`: names by index; empty where the file says null.
    pub labels: Vec<String>,
    /// Key `label_words`: what a model that writes says for each label, where that is not its name.
    pub label_words: Vec<String>,
    /// Key `tests`: names of several test splits, in files `test_<name>`.
    pub tests: Vec<String>,
    /// Key `group`: which of a method's groups of experts the task's own belongs to.
    pub group: Option<String>,
    /// Key `metric`, parsed: always there for a task that was read.
    pub metric: Option<Metric>,
    /// Key `metric` as it stands.
    pub metric_text: String,
    /// What writes the prompts of its records, if that is a template of one's own.
    pub template: Option<PromptTemplate>,
}

/// A task with all its records, or all but those of a training split that is streamed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Task {
    /// What `task.json` says.
    pub meta: TaskMeta,
    /// The training split.
    pub train: Vec<Record>,
    /// The validation split.
    pub validation: Vec<Record>,
    /// The test split; of several, all records, one split after the other.
    pub test: Vec<Record>,
    /// Names and numbers of records of several test splits, in the order of `test`; empty where there is
    /// one.
    pub test_sets: Vec<(String, usize)>,
    /// The training split where that is read piece by piece, and `train` is empty.
    pub streamed: Option<StreamedSplit>,
}

impl Task {
    /// Number of training records.
    pub fn num_train(&self) -> usize {
        let streamed = self.streamed.as_ref();
        streamed.map_or(self.train.len(), StreamedSplit::records)
    }

    /// The records of one split.
    pub fn split(&self, split: Split) -> &[Record] {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
            Split::Test => &self.test,
        }
    }
}

/// Reads and checks one task: a folder with splits and, as a rule, a `task.json`, or one file.
///
/// The validation split may also be called `valid`, `val` or `dev`; other files that look like a split
/// are named in a warning. A validation or test split that is not there is held out from the training split, unless the
/// records are in our own schema with a `task.json`, which asks for all three.
///
/// # Errors
/// The first thing found wrong, with file and line; see [`DataError`].
pub fn load_task(path: &Path) -> Result<Task, DataError> {
    load_task_for(path, &WritingConfig::default(), false)
}

/// [`load_task`] with the prompts that a template writes, if there is one for the task. With `streaming` the
/// training split is not held.
fn load_task_for(path: &Path, writing: &WritingConfig, streaming: bool) -> Result<Task, DataError> {
    let name = task_name(path)?;
    let template = writing.template_of(&name)?;
    if path.is_file() && streaming {
        return Err(not_streamed(path, "it is one file"));
    }
    if path.is_file() {
        let file = Table::read(&[path.to_path_buf()], None, template.as_ref())?;
        let task = assemble(path, &name, None, template, [Some(file), None, None])?;
        return Ok(asked_by_templates(task, writing.scored_templates));
    }
    let meta_file = MetaFile::read(path)?;
    let tests = meta_file.as_ref().map_or(&[][..], |file| &file.tests[..]);
    warn_of_other_files(path, tests)?;
    let read = |files: &[PathBuf]| Table::read(files, meta_file.as_ref(), template.as_ref());
    let table = |split| match &split_files(path, split)?[..] {
        [] => Ok(None),
        files => read(files).map(Some),
    };
    let (test, test_sets) = match tests {
        [] => (table(Split::Test)?, Vec::new()),
        names => read_tests(path, names, &read)?,
    };
    let (streamed, train) = match streaming {
        true => streamed(path, meta_file.as_ref(), template.as_ref())?,
        false => (None, table(Split::Train)?),
    };
    let tables = [train, table(Split::Validation)?, test];
    for (split, table) in [Split::Validation, Split::Test].iter().zip(&tables[1..]) {
        if streaming && table.is_none() {
            return Err(not_streamed(path, &format!("there is no {split} split")));
        }
    }
    let mut task = assemble(path, &name, meta_file, template, tables)?;
    if streaming {
        // The first records are checked by now like all others as they come.
        task.train.clear();
        task.streamed = streamed;
    }
    task.test_sets = test_sets;
    Ok(asked_by_templates(task, writing.scored_templates))
}

/// Test splits by their names, with how many records each has.
type TestSizes = Vec<(String, usize)>;

/// The rows of several test splits, one after the other, with their numbers.
fn read_tests(
    path: &Path,
    names: &[String],
    read: &impl Fn(&[PathBuf]) -> Result<Table, DataError>,
) -> Result<(Option<Table>, TestSizes), DataError> {
    let (mut all, mut sets): (Option<Table>, _) = (None, Vec::new());
    for name in names {
        let files = test_files(path, name)?;
        if files.is_empty() {
            return Err(missing_file(&path.join(format!("test_{name}.jsonl"))));
        }
        let mut table = read(&files)?;
        sets.push((name.clone(), table.rows.len()));
        match &mut all {
            Some(all) => all.rows.append(&mut table.rows),
            None => all = Some(table),
        }
    }
    Ok((all, sets))
}

/// Reads the tasks under `path`: those in `names`, in that order, or all of them sorted by name.
///
/// # Errors
/// A name that is not there (with near names), a name given twice, no task at all, or what
/// [`load_task`] finds.
pub fn load_tasks(path: &Path, names: Option<&[String]>) -> Result<Vec<Task>, DataError> {
    load_tasks_for(path, names, &WritingConfig::default(), false)
}

/// [`load_tasks`] for a generative model: templates of one's own write the prompts of the records. With
/// `streaming` training splits are not held.
///
/// # Errors
/// As [`load_tasks`]; a template that is broken, or a record that it cannot ask; a task that cannot be
/// streamed.
pub(crate) fn load_tasks_for(
    path: &Path,
    names: Option<&[String]>,
    writing: &WritingConfig,
    streaming: bool,
) -> Result<Vec<Task>, DataError> {
    let available = list_tasks(path)?;
    let chosen = names.unwrap_or(&available);
    check_selection(path, chosen, &available)?;
    chosen
        .iter()
        .map(|name| load_task_for(&task_path(path, name), writing, streaming))
        .collect()
}

/// The file or folder of one of the tasks under `path`, which may itself be that task.
pub fn task_path(path: &Path, name: &str) -> PathBuf {
    match is_task(path) {
        true => path.into(),
        false => path.join(name),
    }
}

/// The names of the tasks under `path`, sorted: the one that it is itself, or all sub-folders that
/// hold a `task.json` or a training split.
///
/// # Errors
/// If `path` cannot be read or holds no task.
pub fn list_tasks(path: &Path) -> Result<Vec<String>, DataError> {
    if is_task(path) {
        return Ok(vec![task_name(path)?]);
    }
    let unreadable = |source| DataError::Read {
        path: path.into(),
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if entry.path().is_dir() && is_task(&entry.path()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    if names.is_empty() {
        return Err(DataError::NoTasks { path: path.into() });
    }
    names.sort();
    Ok(names)
}

/// Refuses tasks whose answers a linear probe cannot tell.
///
/// # Errors
/// Names every task that is no classification task, with its kind.
pub(crate) fn require_classification(tasks: &[Task]) -> Result<(), DataError> {
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

/// The columns that are read of a task's files.
fn wanted(meta_file: Option<&MetaFile>, template: Option<&PromptTemplate>) -> Wanted {
    let (meta, own) = (meta_file.cloned(), template.cloned());
    let is_own = move |name: &str| own.as_ref().is_some_and(|own| own.reads(name));
    Arc::new(move |name: &str| is_read(name, meta.as_ref()) || is_own(name))
}

/// The rows of one split, from one file or several.
struct Table {
    schema: Schema,
    rows: Vec<Row>,
}

impl Table {
    fn read(
        files: &[PathBuf],
        meta_file: Option<&MetaFile>,
        template: Option<&PromptTemplate>,
    ) -> Result<Self, DataError> {
        let mut table: Option<Self> = None;
        for file in files {
            let found = read_rows(file, wanted(meta_file, template))?;
            let schema = table.as_ref().map(|table| table.schema);
            let mut read = Self::of(file, found, (meta_file, template), schema)?;
            match &mut table {
                Some(table) => table.rows.append(&mut read.rows),
                None => table = Some(read),
            }
        }
        Ok(table.expect("a split has at least one file"))
    }

    /// Rows of one file, whose schema is that of their first, or `schema` of an earlier file.
    fn of(
        file: &Path,
        (format, mut rows): (Format, Vec<Row>),
        (meta_file, template): (Option<&MetaFile>, Option<&PromptTemplate>),
        schema: Option<Schema>,
    ) -> Result<Self, DataError> {
        rename_all(&mut rows, meta_file)?;
        let schema = match schema {
            Some(schema) => schema,
            None => Schema::detect(&rows[0])?,
        };
        for row in &mut rows {
            format.type_values(row, schema == Schema::Own)?;
        }
        warn_of_unread(schema, template, file, &rows);
        Ok(Self { schema, rows })
    }

    fn records(
        self,
        split: Split,
        meta: &TaskMeta,
        has_meta_file: bool,
    ) -> Result<Vec<Record>, DataError> {
        let reading = Reading {
            schema: self.schema,
            meta,
            has_meta_file,
        };
        let record = |(index, row): (usize, Row)| {
            let columns = reading.columns(&row);
            reading.record(row, format!("{}-{split}-{index}", meta.name), columns)
        };
        self.rows.into_iter().enumerate().map(record).collect()
    }
}

fn assemble(
    path: &Path,
    name: &str,
    meta_file: Option<MetaFile>,
    template: Option<PromptTemplate>,
    tables: [Option<Table>; 3],
) -> Result<Task, DataError> {
    let has_meta_file = meta_file.is_some();
    let [train, validation, test] = tables;
    let Some(train) = train else {
        return Err(not_found(path, Split::Train));
    };
    if train.schema == Schema::Own
        && let Some(file) = &meta_file
    {
        file.require_all()?;
        for (split, table) in [(Split::Validation, &validation), (Split::Test, &test)] {
            if table.is_none() {
                return Err(not_found(path, split));
            }
        }
    }
    let meta = TaskMeta {
        template,
        ..resolve_meta(path, name, meta_file, &train)?
    };
    for table in [&train].into_iter().chain(&validation).chain(&test) {
        table
            .schema
            .check_kind(meta.kind, &table.rows[0].place.path)?;
    }
    let has_own_ids = train.schema == Schema::Own;
    if !has_own_ids {
        warn_of_places(path, &meta, &train.rows);
    }
    let records = |table: Table, split| table.records(split, &meta, has_meta_file);
    let mut train = records(train, Split::Train)?;
    let validation = validation.map(|table| records(table, Split::Validation));
    let test = test.map(|table| records(table, Split::Test));
    let (validation, test) = (validation.transpose()?, test.transpose()?);
    if has_own_ids {
        let all = [Some(&train), validation.as_ref(), test.as_ref()];
        warn_of_same_ids(path, all.into_iter().flatten().flatten());
    }
    let [held_validation, held_test] =
        hold_out(&mut train, validation.is_none(), test.is_none(), path)?;
    Ok(Task {
        meta,
        train,
        validation: validation.or(held_validation).unwrap_or_default(),
        test: test.or(held_test).unwrap_or_default(),
        test_sets: Vec::new(),
        streamed: None,
    })
}

/// Names an id that several records of a task have.
fn warn_of_same_ids<'a>(path: &Path, records: impl Iterator<Item = &'a Record>) {
    let (mut seen, mut again) = (HashSet::new(), BTreeSet::new());
    for record in records {
        if !seen.insert(&record.id[..]) {
            again.insert(&record.id[..]);
        }
    }
    if let Some(first) = again.first() {
        let (path, count) = (path.display(), again.len());
        tracing::warn!("{path}: {count} ids stand on several records, \"{first}\" first");
    }
}

fn resolve_meta(
    path: &Path,
    name: &str,
    meta_file: Option<MetaFile>,
    train: &Table,
) -> Result<TaskMeta, DataError> {
    let said = meta_file.as_ref().and_then(MetaFile::kind);
    let kind = match said {
        Some(kind) => kind,
        None => train.schema.kind(&train.rows[0])?,
    };
    let file = match meta_file {
        Some(file) => file,
        None if train.schema == Schema::Own => MetaFile::of_records(path, &train.rows, kind)?,
        None => MetaFile::default(),
    };
    file.resolve(name, kind)
}

fn not_found(path: &Path, split: Split) -> DataError {
    missing_file(&path.join(format!("{split}.jsonl")))
}

fn missing_file(path: &Path) -> DataError {
    let error = std::fs::metadata(path).err();
    let source = error.unwrap_or_else(|| std::io::ErrorKind::NotFound.into());
    let path = path.into();
    DataError::Read { path, source }
}

#[cfg(test)]
mod tests;
