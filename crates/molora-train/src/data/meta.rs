//! `task.json`: what it says, and what holds where it says nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{DataError, Place};
use super::fields::{Fields, whole};
use super::format::{FormatError, Row, read_text};
use super::kind::TaskKind;
use super::metrics::{AnswerConfig, AnswerPattern, Metric};
use super::schema::COLUMNS;
use super::task::TaskMeta;

/// What a `task.json` says; anything may be missing.
#[derive(Debug, Clone, Default)]
pub(super) struct MetaFile {
    pub(super) path: PathBuf,
    name: Option<String>,
    kind: Option<TaskKind>,
    instruction: Option<String>,
    labels: Option<Vec<String>>,
    group: Option<String>,
    label_words: Vec<String>,
    answer: Option<AnswerConfig>,
    /// Key `tests`: names of several test splits.
    pub(super) tests: Vec<String>,
    metric_text: Option<String>,
    /// Key `columns`: the file's column by the name that we know it under.
    pub(super) columns: BTreeMap<String, String>,
}

impl MetaFile {
    /// Reads the `task.json` of a folder, if it has one.
    ///
    /// # Errors
    /// Broken JSON or a key of the wrong type.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, DataError> {
        let path = dir.join("task.json");
        if !path.is_file() {
            return Ok(None);
        }
        let text = read_text(&path)?;
        let place = Place::file(&path);
        let mut fields = Fields::parse(&text, &place)?;
        let has = |fields: &Fields<'_>, key: &str| fields.map.contains_key(key);
        let mut file = Self {
            path: path.clone(),
            ..Self::default()
        };
        if has(&fields, "type") {
            file.kind = Some(parse_kind(&mut fields)?);
        }
        if has(&fields, "labels") {
            file.labels = Some(match fields.take("labels")? {
                Value::Null => Vec::new(),
                value => fields.string_list("labels", value)?,
            });
        }
        let texts = [
            ("metric", &mut file.metric_text),
            ("task", &mut file.name),
            ("instruction", &mut file.instruction),
        ];
        for (key, text) in texts {
            if has(&fields, key) {
                *text = Some(fields.string(key)?);
            }
        }
        if has(&fields, "group") {
            file.group = fields.optional_string("group")?;
        }
        for (key, list) in [
            ("label_words", &mut file.label_words),
            ("tests", &mut file.tests),
        ] {
            *list = match fields.take_or_null(key) {
                Value::Null => Vec::new(),
                value => fields.string_list(key, value)?,
            };
        }
        check_tests(&fields, &file.tests)?;
        file.answer = match fields.take_or_null("answer") {
            Value::Null => None,
            value => Some(answer(&fields, value)?),
        };
        file.columns = columns(&mut fields, &path)?;
        Ok(Some(file))
    }

    /// Refuses a file that leaves out what our own schema asks for, so that a misspelt key is
    /// noticed.
    pub(super) fn require_all(&self) -> Result<(), DataError> {
        let keys = [
            ("type", self.kind.is_some()),
            ("labels", self.labels.is_some()),
            ("metric", self.metric_text.is_some()),
            ("task", self.name.is_some()),
            ("instruction", self.instruction.is_some()),
        ];
        match keys.iter().find(|(_, is_there)| !is_there) {
            None => Ok(()),
            Some((key, _)) => Err(DataError::MissingKey {
                place: Place::file(&self.path),
                key,
            }),
        }
    }

    /// The kind that it says.
    pub(super) fn kind(&self) -> Option<TaskKind> {
        self.kind
    }

    /// Everything about a task: what the file says, and where it says nothing the task is called
    /// `name`, is of kind `kind`, has no instruction and the metric that its kind usually has.
    ///
    /// # Errors
    /// A name that is not the folder's, labels or a metric that cannot be.
    pub(super) fn resolve(self, name: &str, kind: TaskKind) -> Result<TaskMeta, DataError> {
        let path = self.path;
        if let Some(found) = self.name.filter(|found| found != name) {
            return Err(DataError::Contradiction {
                place: Place::file(&path),
                key: "task",
                found,
                expected: format!("the folder's name is \"{name}\""),
            });
        }
        let labels = self.labels.unwrap_or_default();
        check_labels(&path, kind, &labels)?;
        let metric_text = self
            .metric_text
            .unwrap_or_else(|| usual_metric(kind).into());
        let metric =
            Metric::parse_for(kind, &metric_text, &labels).map_err(|source| DataError::Metric {
                path: path.clone(),
                source,
            })?;
        check_words(&path, kind, &labels, &self.label_words)?;
        let metric = match &self.answer {
            None => metric,
            Some(answer) => extracted(&path, kind, answer, &labels)?,
        };
        Ok(TaskMeta {
            name: name.into(),
            kind,
            instruction: self.instruction.unwrap_or_default(),
            labels,
            label_words: self.label_words,
            tests: self.tests,
            group: self.group,
            metric: Some(metric),
            metric_text,
            template: None,
        })
    }

    /// Of records in our own schema that have no `task.json`: what they say themselves.
    ///
    /// # Errors
    /// A classification task of which some labels never occur.
    pub(super) fn of_records(path: &Path, rows: &[Row], kind: TaskKind) -> Result<Self, DataError> {
        let instruction = rows.first().and_then(|row| row.columns.get("instruction"));
        let labels = match kind {
            TaskKind::Classification => Some(names_of_labels(path, rows)?),
            _ => None,
        };
        Ok(Self {
            path: path.into(),
            instruction: instruction.and_then(Value::as_str).map(str::to_owned),
            labels,
            ..Self::default()
        })
    }
}

/// Names of several test splits of the task in a folder, if its `task.json` has them.
///
/// # Errors
/// As [`MetaFile::read`].
pub(super) fn test_names(dir: &Path) -> Result<Vec<String>, DataError> {
    Ok(MetaFile::read(dir)?.map_or_else(Vec::new, |file| file.tests))
}

/// How answers are found in texts, which only texts that are generated need.
fn extracted(
    path: &Path,
    kind: TaskKind,
    answer: &AnswerConfig,
    labels: &[String],
) -> Result<Metric, DataError> {
    let refused = |problem: String| DataError::Answer {
        path: path.into(),
        problem,
    };
    if kind != TaskKind::Generation {
        return Err(refused(format!(
            "it is for generation, and the task is {kind}"
        )));
    }
    let pattern = AnswerPattern::new(answer, labels).map_err(refused)?;
    Ok(Metric::Extracted(pattern))
}

/// The value of `answer`.
fn answer(fields: &Fields<'_>, value: Value) -> Result<AnswerConfig, DataError> {
    serde_json::from_value(value).map_err(|error| DataError::Answer {
        path: fields.place.path.clone(),
        problem: error.to_string(),
    })
}

/// Refuses words for labels that are not one for each, or are for something else.
fn check_words(
    path: &Path,
    kind: TaskKind,
    labels: &[String],
    words: &[String],
) -> Result<(), DataError> {
    let problem = match words {
        [] => return Ok(()),
        _ if kind != TaskKind::Classification => {
            format!("it is for classification, and the task is {kind}")
        }
        _ if words.len() != labels.len() => {
            let (found, expected) = (words.len(), labels.len());
            format!("it lists {found} words, expected one for each of {expected} labels")
        }
        _ if words.iter().any(|word| word.trim().is_empty()) => "a word of it is empty".into(),
        _ => match (1..words.len()).find(|&place| words[..place].contains(&words[place])) {
            Some(place) => format!("\"{}\" is listed twice", words[place]),
            None => return Ok(()),
        },
    };
    Err(DataError::LabelWords {
        path: path.into(),
        problem,
    })
}

/// Refuses names of test splits that are no part of a file's name, or stand twice.
fn check_tests(fields: &Fields<'_>, names: &[String]) -> Result<(), DataError> {
    let is_plain = |name: &str| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        !name.is_empty() && name.chars().all(is_part)
    };
    for (place, name) in names.iter().enumerate() {
        if !is_plain(name) || names[..place].contains(name) {
            let expected = "they have to be different names in letters, digits, - and _".into();
            return Err(fields.contradiction("tests", name.clone(), expected));
        }
    }
    Ok(())
}

/// The labels' names by number, from the outputs that stand beside them.
fn names_of_labels(path: &Path, rows: &[Row]) -> Result<Vec<String>, DataError> {
    let pairs = rows.iter().filter_map(|row| {
        let label = row.columns.get("label").and_then(whole)?;
        let label = u64::try_from(label).ok()?;
        Some((label, row.columns.get("output")?.as_str()?.to_owned()))
    });
    let names: BTreeMap<u64, String> = pairs.collect();
    match names.keys().zip(0..).find(|(label, index)| *label != index) {
        None => Ok(names.into_values().collect()),
        Some((_, missing)) => Err(FormatError::UnseenLabel {
            path: path.into(),
            label: missing,
        }
        .into()),
    }
}

fn usual_metric(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Classification | TaskKind::MultipleChoice => "accuracy",
        TaskKind::Generation => "exact_match",
        TaskKind::Regression => "spearman",
    }
}

/// The value of `type`.
pub(super) fn parse_kind(fields: &mut Fields<'_>) -> Result<TaskKind, DataError> {
    let found = fields.string("type")?;
    match TaskKind::ALL.into_iter().find(|kind| kind.name() == found) {
        Some(kind) => Ok(kind),
        None => {
            let names = TaskKind::ALL.map(TaskKind::name).join(", ");
            Err(fields.contradiction("type", found, format!("it has to be one of {names}")))
        }
    }
}

fn columns(fields: &mut Fields<'_>, path: &Path) -> Result<BTreeMap<String, String>, DataError> {
    let map = match fields.take_or_null("columns") {
        Value::Null => return Ok(BTreeMap::new()),
        Value::Object(map) => map,
        other => return Err(fields.wrong_type("columns", &other, "an object")),
    };
    let pair = |(ours, theirs): (String, Value)| match theirs {
        _ if !COLUMNS.contains(&&ours[..]) => Err(FormatError::Rename {
            path: path.into(),
            name: ours,
            known: COLUMNS.join(", "),
        }
        .into()),
        Value::String(theirs) => Ok((ours, theirs)),
        other => Err(fields.wrong_type("columns", &other, "names of columns")),
    };
    map.into_iter().map(pair).collect()
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
            return Err(DataError::DuplicateLabel {
                path: path.into(),
                label: label.clone(),
                first,
                second,
            });
        }
    }
    Ok(())
}
