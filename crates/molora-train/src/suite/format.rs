//! The file of a suite: `suite.toml`.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::SuiteError;
use crate::data::{AnswerConfig, TaskKind};

/// A published table: its data, how they are asked and scored, and its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Its name, as `molora reproduce` takes it.
    pub name: String,
    /// What it reproduces, in a line.
    pub title: String,
    /// What has to lie in the folder of the data, and where it comes from.
    pub files: String,
    /// What the papers' runs had, as far as it is known.
    #[serde(default)]
    pub published: Published,
    /// Values that every recipe is given, by the path of their key: those of the papers' scripts.
    #[serde(default)]
    pub settings: BTreeMap<String, Value>,
    /// A template that writes the prompts of all tasks, in Jinja over a record's fields.
    #[serde(default)]
    pub template: Option<String>,
    /// How a reproduction differs from the papers whatever it is run with, a sentence each.
    #[serde(default)]
    pub differs: Vec<String>,
    /// The tasks, in the order of the table.
    pub tasks: Vec<SuiteTask>,
    /// Numbers that the papers print.
    #[serde(default)]
    pub rows: Vec<PaperRow>,
}

/// What the papers' runs had.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Published {
    /// Base models.
    pub models: Vec<String>,
    /// Epochs of training; the steps of a reproduction follow from it unless they are given.
    pub epochs: Option<f64>,
    /// Optimizer steps, where the paper says steps.
    pub steps: Option<usize>,
    /// The learning rate.
    pub learning_rate: Option<f64>,
    /// The rank of a LoRA, or of an expert.
    pub rank: Option<usize>,
    /// Number of seeds.
    pub seeds: Option<u64>,
}

/// A task of a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SuiteTask {
    /// Its name.
    pub name: String,
    /// What it asks for.
    #[serde(rename = "type")]
    pub kind: TaskKind,
    /// The prompt of records that have none of their own.
    #[serde(default)]
    pub instruction: String,
    /// The labels' names by their number.
    #[serde(default)]
    pub labels: Vec<String>,
    /// What a model that writes says for each label.
    #[serde(default)]
    pub label_words: Vec<String>,
    /// How it is scored; what is usual for its kind where nothing is said.
    #[serde(default)]
    pub metric: Option<String>,
    /// How the answer is found in a text.
    #[serde(default)]
    pub answer: Option<AnswerConfig>,
    /// Templates for the prompts, the first of which scores; the suite's where there is none.
    #[serde(default)]
    pub templates: Vec<String>,
    /// Whether no run is trained on it.
    #[serde(default)]
    pub held_out: bool,
    /// Where its training records are: the first of these that is there.
    #[serde(default)]
    pub train: Vec<Source>,
    /// Where its validation records are; held out from the training records where nothing is said.
    #[serde(default)]
    pub validation: Vec<Source>,
    /// Where its test records are; held out from the training records where nothing is said.
    #[serde(default)]
    pub test: Vec<Source>,
    /// Several test splits by their names, in the place of `test`.
    #[serde(default)]
    pub tests: BTreeMap<String, Vec<Source>>,
}

/// Records in a file of the folder of the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The file's usual name below the folder; `*` stands for any part of a name, and all files that match are
    /// read. `.jsonl`, `.json`, `.csv`, `.parquet`, or `.tsv` and `.txt` with tabs and no quoting.
    pub file: String,
    /// The file's column by the name that molora knows it under; all columns as they are where none is named.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    /// The columns' names of a file with tabs that has no first line with them.
    #[serde(default)]
    pub header: Vec<String>,
    /// Which records of the file belong to the task; all where nothing is said.
    #[serde(default)]
    pub when: Option<When>,
    /// SHA-256 of the file that the papers used, where it is known.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// Which records of a file belong to a task: those whose column matches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// The file's column.
    pub column: String,
    /// A regular expression that it matches somewhere.
    pub pattern: String,
    /// One that it does not match.
    #[serde(default)]
    pub not: Option<String>,
}

/// A row of a published table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PaperRow {
    /// The method as the paper calls it.
    pub method: String,
    /// The recipe of molora for it, if there is one.
    #[serde(default)]
    pub recipe: Option<String>,
    /// Where the row stands.
    pub source: String,
    /// The base model of the row.
    pub model: String,
    /// Scores in per cent by task, or `task/test` of several test splits.
    #[serde(default)]
    pub scores: BTreeMap<String, f64>,
    /// The printed mean, in per cent.
    #[serde(default)]
    pub mean: Option<f64>,
}

/// The JSON schema of a suite's file, for editors and other tools.
pub fn schema() -> Value {
    let generator = SchemaSettings::draft07().into_generator();
    generator.into_root_schema_for::<Suite>().to_value()
}

impl Suite {
    /// Reads and checks a suite; `file` is named in errors.
    ///
    /// # Errors
    /// [`SuiteError::Text`] for what is no suite, [`SuiteError::Field`] for one that contradicts itself.
    pub fn from_toml(text: &str, file: &str) -> Result<Self, SuiteError> {
        let suite: Self = toml::from_str(text).map_err(|error| {
            let problem = error.to_string();
            let problem = problem.split_whitespace().collect::<Vec<_>>().join(" ");
            SuiteError::Text {
                file: file.into(),
                problem,
            }
        })?;
        suite.check()?;
        Ok(suite)
    }

    fn check(&self) -> Result<(), SuiteError> {
        let refuse =
            |field: String, problem: &str| Err(SuiteError::field(&self.name, field, problem));
        let mut names = BTreeSet::new();
        for task in &self.tasks {
            let field = |key: &str| format!("tasks.{}.{key}", task.name);
            if !names.insert(&task.name) || !is_plain(&task.name) {
                return refuse(
                    field("name"),
                    "expected a name of its own that a folder can have",
                );
            }
            let has_tests = [!task.test.is_empty(), !task.tests.is_empty()];
            if has_tests == [true, true] || task.held_out && has_tests == [false, false] {
                return refuse(field("test"), "expected either test or tests");
            }
            if task.held_out != task.train.is_empty() {
                let problem = "expected records for training, or held_out = true without any";
                return refuse(field("train"), problem);
            }
            if task.held_out && !task.templates.is_empty() {
                let problem = "a task that is held out is asked by the suite's template alone";
                return refuse(field("templates"), problem);
            }
            for source in task.sources() {
                check_when(&self.name, field(&source.file), source)?;
            }
        }
        if self.tasks.iter().all(|task| task.held_out) {
            return refuse("tasks".into(), "no task is trained on");
        }
        for row in &self.rows {
            let of_task = |key: &&String| {
                let (task, test) = key.split_once('/').unwrap_or((key, ""));
                let task = self.tasks.iter().find(|own| own.name == task);
                task.is_some_and(|task| test.is_empty() || task.tests.contains_key(test))
            };
            if let Some(unknown) = row.scores.keys().find(|key| !of_task(key)) {
                let field = format!("rows.{}.scores", row.method);
                return refuse(field, &format!("there is no task \"{unknown}\""));
            }
        }
        Ok(())
    }

    /// Whether a task is not trained on.
    pub fn holds_out(&self) -> bool {
        self.tasks.iter().any(|task| task.held_out)
    }
}

impl SuiteTask {
    fn sources(&self) -> impl Iterator<Item = &Source> {
        let splits = [&self.train, &self.validation, &self.test];
        splits.into_iter().chain(self.tests.values()).flatten()
    }
}

fn check_when(suite: &str, field: String, source: &Source) -> Result<(), SuiteError> {
    let Some(when) = &source.when else {
        return Ok(());
    };
    for pattern in [Some(&when.pattern), when.not.as_ref()]
        .into_iter()
        .flatten()
    {
        if Regex::new(pattern).is_err() {
            let problem = format!("\"{pattern}\" is no regular expression");
            return Err(SuiteError::field(suite, field, problem));
        }
    }
    Ok(())
}

fn is_plain(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    !name.is_empty() && name.chars().all(is_part)
}
