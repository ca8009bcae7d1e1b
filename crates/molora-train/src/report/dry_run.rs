//! What a run would be and cost, and how that is printed.

use comfy_table::presets::ASCII_BORDERS_ONLY_CONDENSED;

use super::format::{duration, mebibytes, thousands};
use super::schema::{ParameterCounts, SplitSizes};
use super::table::{aligned, count_rows, total_table};
use crate::data::TaskKind;

/// What a run would be and cost.
#[derive(Debug, Clone, PartialEq)]
pub struct DryRun {
    /// Name of the recipe.
    pub recipe: String,
    /// The adapted layers in the order of the forward pass.
    pub sites: Vec<SiteSize>,
    /// Parameters by what they are for.
    pub parameters: ParameterCounts,
    /// The tasks in the order of their numbers.
    pub tasks: Vec<TaskSize>,
    /// The stages that train.
    pub stages: Vec<StageCost>,
    /// Seconds of the scores on the test split at the end; of answers that are written only what reading
    /// the texts takes.
    pub test_seconds: f64,
    /// Peak resident memory in bytes, where the system reports it.
    pub peak_memory_bytes: Option<u64>,
}

impl DryRun {
    /// Seconds of all steps.
    pub fn step_seconds(&self) -> f64 {
        let seconds = |stage: &StageCost| stage.step_seconds * stage.steps as f64;
        self.stages.iter().map(seconds).sum()
    }

    /// Seconds of the whole run but for loading, and for scores of the base model, which are kept.
    pub fn seconds(&self) -> f64 {
        let other = |stage: &StageCost| stage.validation_seconds + stage.begin_seconds;
        self.step_seconds() + self.stages.iter().map(other).sum::<f64>() + self.test_seconds
    }
}

/// An adapted layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteSize {
    /// Path of the layer.
    pub path: String,
    /// Width of its input.
    pub input: usize,
    /// Width of its output.
    pub output: usize,
}

/// The records of a task and their tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskSize {
    /// Name of the task.
    pub name: String,
    /// What it asks for.
    pub kind: TaskKind,
    /// Numbers of records.
    pub records: SplitSizes,
    /// Tokens of a training record on average.
    pub mean_tokens: f64,
    /// Tokens of the longest training record.
    pub most_tokens: usize,
    /// Number of its texts, of all splits, that are cut.
    pub cut: usize,
    /// Whether its answers are texts that are written when it is scored.
    pub is_written: bool,
}

/// What a stage will cost, as measured on a few of its batches.
#[derive(Debug, Clone, PartialEq)]
pub struct StageCost {
    /// Name of the stage.
    pub stage: String,
    /// Its optimizer steps, of all its experts together.
    pub steps: usize,
    /// Seconds of a step, on average over its batches.
    pub step_seconds: f64,
    /// Seconds of all scores on the validation split while it trains.
    pub validation_seconds: f64,
    /// Seconds of one pass over a token of the validation split, padding included.
    pub token_seconds: f64,
    /// Seconds of what comes before its first step without any gradient, such as clusters of texts.
    pub begin_seconds: f64,
}

/// What a run would be and cost: layers, parameters, tasks, stages, memory and time.
pub fn dry_run_table(dry: &DryRun) -> String {
    let style = ASCII_BORDERS_ONLY_CONDENSED;
    let header = |names: &[&str]| {
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>()
    };
    let sites = aligned(
        style,
        header(&["layers", "number", "width"]),
        site_rows(dry),
        1,
    );
    let counts = total_table(
        ["parameters", "count", "of base"].map(str::to_owned),
        count_rows(&dry.parameters),
        1,
    );
    let task = |task: &TaskSize| {
        let records = &task.records;
        let sizes = [records.train, records.validation, records.test].map(thousands);
        let tokens = [
            format!("{:.1}", task.mean_tokens),
            thousands(task.most_tokens),
        ];
        let kind = task.kind.to_string();
        [task.name.clone(), kind, sizes.join(" / ")]
            .into_iter()
            .chain(tokens)
            .chain([thousands(task.cut)])
            .collect::<Vec<_>>()
    };
    let names = [
        "task",
        "kind",
        "train / valid. / test",
        "tokens",
        "most",
        "cut",
    ];
    let tasks = dry.tasks.iter().map(task).collect();
    let tasks = aligned(style, header(&names), tasks, 2);
    let stage = |stage: &StageCost| {
        let steps = stage.step_seconds * stage.steps as f64;
        let seconds = [stage.begin_seconds, steps, stage.validation_seconds].map(duration);
        [
            stage.stage.clone(),
            thousands(stage.steps),
            milliseconds(stage.step_seconds),
        ]
        .into_iter()
        .chain(seconds)
        .collect::<Vec<_>>()
    };
    let names = [
        "stage",
        "steps",
        "ms a step",
        "before it",
        "training",
        "validation",
    ];
    let stages = dry.stages.iter().map(stage).collect();
    let stages = aligned(style, header(&names), stages, 1);
    let written = dry.tasks.iter().filter(|task| task.is_written);
    let written: Vec<&str> = written.map(|task| &task.name[..]).collect();
    let written = match written.is_empty() {
        true => String::new(),
        false => format!(", without writing the answers of {}", written.join(", ")),
    };
    format!(
        "{sites}\n{counts}\n{tasks}\n{stages}\npeak memory: {}\nscores on the test split: {}{written}\nin all: {}, \
         without loading and the scores of the base model, which are kept\n",
        mebibytes(dry.peak_memory_bytes),
        duration(dry.test_seconds),
        duration(dry.seconds()),
    )
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1}", seconds * 1e3)
}

/// The adapted layers, those that differ in a number alone together.
fn site_rows(dry: &DryRun) -> Vec<Vec<String>> {
    let mut kinds: Vec<(String, usize, String)> = Vec::new();
    for site in &dry.sites {
        let is_number = |part: &str| part.parse::<usize>().is_ok();
        let parts = site.path.split('.');
        let parts: Vec<&str> = parts
            .map(|part| if is_number(part) { "*" } else { part })
            .collect();
        let (name, width) = (
            parts.join("."),
            format!("{} -> {}", site.input, site.output),
        );
        match kinds
            .iter_mut()
            .find(|kind| kind.0 == name && kind.2 == width)
        {
            Some(kind) => kind.1 += 1,
            None => kinds.push((name, 1, width)),
        }
    }
    let row = |(name, count, width): (String, usize, String)| vec![name, count.to_string(), width];
    kinds.into_iter().map(row).collect()
}
