//! Training on a suite's tasks, and the result beside the papers' numbers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::error::SuiteError;
use super::format::{PaperRow, Suite};
use super::prepare::Prepared;
use super::table::document;
use crate::base::place::{write_atomically, write_json_atomically};
use crate::compare::{self, CompareError, Comparison, Event, compare, run_folder};
use crate::recipe::BaseKind;
use crate::report::format::last_part;
use crate::report::{EvalReport, SCHEMA_VERSION, Spread, TaskScore, read_json};
use crate::run::{self, EvalOptions};

/// File of the result in a reproduction's folder.
const RESULT: &str = "reproduce.json";
/// File of the result's table in a reproduction's folder.
pub const TABLE: &str = "reproduce.md";

/// The request of a user.
#[derive(Debug, Clone)]
pub struct Request {
    /// The suite.
    pub suite: Suite,
    /// Its tasks.
    pub prepared: Prepared,
    /// The recipes with the suite's settings, and what they are trained on; its data, tasks and folder are
    /// those of `prepared`.
    pub compare: compare::Request,
    /// What kind of model the base is.
    pub kind: BaseKind,
}

/// A published table beside our own: `reproduce.json`. Our scores are fractions, the papers' per cent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reproduction {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// Version of molora that wrote it.
    pub molora_version: String,
    /// Name of the suite.
    pub suite: String,
    /// What it reproduces.
    pub title: String,
    /// The base model.
    pub model: String,
    /// Number of seeds.
    pub seeds: u64,
    /// What is scored, in the order of the table: tasks, and test splits as `mnli/matched`.
    pub keys: Vec<String>,
    /// The metric of each task.
    pub metrics: BTreeMap<String, String>,
    /// Our recipes in their order.
    pub recipes: Vec<String>,
    /// Our scores by recipe and key.
    pub ours: BTreeMap<String, BTreeMap<String, Spread>>,
    /// Mean of our tasks' scores by recipe.
    pub means: BTreeMap<String, Spread>,
    /// What the papers print.
    pub paper: Vec<PaperRow>,
    /// How ours differs from the papers, a sentence each.
    pub differs: Vec<String>,
}

/// Trains what is not trained yet, scores held-out tasks, and writes the result.
///
/// # Errors
/// See [`SuiteError`]; [`CompareError::Interrupted`] in it if `stop` was set, after a checkpoint.
pub fn reproduce(
    request: &Request,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Reproduction, SuiteError> {
    let comparing = comparing(request);
    check(request, &comparing)?;
    let comparison = compare(&comparing, stop, on_event)?;
    let mut scores = match request.suite.holds_out() {
        true => held_out(request, &comparing, stop, on_event)?,
        false => of_runs(&comparison),
    };
    let prepared = &request.prepared;
    let names = match request.suite.holds_out() {
        true => &prepared.held_out,
        false => &prepared.trained,
    };
    let first = scores.values().next();
    let keys = names.iter().flat_map(|task| {
        let tests = first.and_then(|found| found.get(task));
        let tests = tests.map_or_else(Vec::new, |found| found.tests.keys().collect());
        let tests = tests.into_iter().map(move |test| format!("{task}/{test}"));
        std::iter::once(task.clone()).chain(tests)
    });
    let keys: Vec<String> = keys.collect();
    let metric = |task: &String| Some((task.clone(), first?.get(task)?.metric.clone()));
    let metrics = names.iter().filter_map(metric).collect();
    let recipes: Vec<String> = request
        .compare
        .recipes
        .iter()
        .map(|r| r.name.clone())
        .collect();
    let mean = |recipe: &String| Some((recipe.clone(), mean(names, scores.get(recipe)?)));
    let means = recipes.iter().filter_map(mean).collect();
    let ours = recipes.iter().filter_map(|recipe| {
        let by_key = by_key(scores.remove(recipe)?);
        Some((recipe.clone(), by_key))
    });
    let reproduction = Reproduction {
        version: SCHEMA_VERSION,
        molora_version: env!("CARGO_PKG_VERSION").into(),
        suite: request.suite.name.clone(),
        title: request.suite.title.clone(),
        model: comparison.model.clone(),
        seeds: comparison.seeds,
        keys,
        metrics,
        ours: ours.collect(),
        means,
        recipes,
        paper: request.suite.rows.clone(),
        differs: differs(request, &comparison),
    };
    write_json_atomically(&prepared.folder.join(RESULT), &reproduction)?;
    let text = document(&reproduction);
    write_atomically(&prepared.folder.join(TABLE), text.as_bytes())?;
    Ok(reproduction)
}

/// The comparison's request with the suite's tasks.
fn comparing(request: &Request) -> compare::Request {
    let prepared = &request.prepared;
    compare::Request {
        data: prepared.data().display().to_string(),
        tasks: Some(prepared.trained.clone()),
        out: prepared.folder.join("comparison"),
        ..request.compare.clone()
    }
}

fn check(request: &Request, comparing: &compare::Request) -> Result<(), SuiteError> {
    if request.suite.holds_out() && request.kind == BaseKind::Encoder {
        return Err(SuiteError::NeedsWriter {
            suite: request.suite.name.clone(),
        });
    }
    Ok(compare::check(comparing)?)
}

/// What several seeds scored on a task, and on its test splits.
struct Scored {
    metric: String,
    values: Vec<f64>,
    tests: BTreeMap<String, Vec<f64>>,
}

/// Scores by recipe and task.
type ByRecipe = BTreeMap<String, BTreeMap<String, Scored>>;

fn of_runs(comparison: &Comparison) -> ByRecipe {
    let of_recipe = |recipe: &compare::RecipeResult| {
        let tasks = recipe.tasks.iter().map(|(task, found)| {
            let tests = found.tests.iter();
            let tests = tests.map(|(name, of)| (name.clone(), of.values.clone()));
            let scored = Scored {
                metric: found.metric.clone(),
                values: found.score.values.clone(),
                tests: tests.collect(),
            };
            (task.clone(), scored)
        });
        (recipe.name.clone(), tasks.collect())
    };
    comparison.recipes.iter().map(of_recipe).collect()
}

/// Scores of the finished runs on the tasks that none was trained on.
fn held_out(
    request: &Request,
    comparing: &compare::Request,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<ByRecipe, SuiteError> {
    let folder = request.prepared.folder.join("scores");
    fs_err::create_dir_all(&folder)?;
    let total = comparing.recipes.len() * comparing.seeds as usize;
    let mut found = ByRecipe::new();
    let runs = comparing
        .recipes
        .iter()
        .flat_map(|recipe| (0..comparing.seeds).map(move |seed| (recipe, seed)));
    for (index, (recipe, seed)) in runs.enumerate() {
        if stop.load(Ordering::SeqCst) {
            let (what, number) = ("evaluation", index + 1);
            return Err(CompareError::Interrupted {
                what,
                number,
                total,
            }
            .into());
        }
        let run = run_folder(&comparing.out, &recipe.name, seed);
        let file = folder.join(format!("{}-seed{seed}.json", recipe.name));
        let report = score(request, &run, &file, on_event)?;
        let tasks = found.entry(recipe.name.clone()).or_default();
        for (task, score) in report.tasks {
            add(tasks, task, score);
        }
    }
    Ok(found)
}

/// The scores of a run on the held-out tasks, from its file if that is there.
fn score(
    request: &Request,
    run: &Path,
    file: &Path,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<EvalReport, SuiteError> {
    let names = &request.prepared.held_out;
    if file.is_file() {
        let report: EvalReport = read_json(file)?;
        if names.iter().all(|name| report.tasks.contains_key(name)) {
            return Ok(report);
        }
    }
    let data = request.prepared.held_out_data().display().to_string();
    let mut inside = |event: run::Event<'_>| on_event(Event::Inside(event));
    let options = EvalOptions {
        data: Some(&data),
        device: Some(request.compare.device),
        ..EvalOptions::default()
    };
    let (report, _) = run::evaluate_other(run, names, &options, &mut inside)?;
    write_json_atomically(file, &report)?;
    Ok(report)
}

fn add(tasks: &mut BTreeMap<String, Scored>, task: String, score: TaskScore) {
    let scored = tasks.entry(task).or_insert_with(|| Scored {
        metric: score.metric.clone(),
        values: Vec::new(),
        tests: BTreeMap::new(),
    });
    scored.values.push(score.value);
    for (name, test) in score.tests {
        scored.tests.entry(name).or_default().push(test.value);
    }
}

/// The mean of the tasks' scores, seed by seed.
fn mean(names: &[String], scores: &BTreeMap<String, Scored>) -> Spread {
    let seeds = scores.values().map(|scored| scored.values.len()).min();
    let of_seed = |seed: usize| {
        let values = names
            .iter()
            .filter_map(|name| scores.get(name)?.values.get(seed));
        values.sum::<f64>() / names.len().max(1) as f64
    };
    Spread::of((0..seeds.unwrap_or(0)).map(of_seed).collect())
}

fn by_key(scores: BTreeMap<String, Scored>) -> BTreeMap<String, Spread> {
    let of_task = |(task, scored): (String, Scored)| {
        let tests = scored.tests.into_iter();
        let tests: Vec<(String, Spread)> = tests
            .map(|(name, values)| (format!("{task}/{name}"), Spread::of(values)))
            .collect();
        std::iter::once((task, Spread::of(scored.values))).chain(tests)
    };
    scores.into_iter().flat_map(of_task).collect()
}

/// How this reproduction differs from the papers.
fn differs(request: &Request, comparison: &Comparison) -> Vec<String> {
    let (suite, prepared) = (&request.suite, &request.prepared);
    let mut found = Vec::new();
    let ours = last_part(&comparison.model);
    let is_theirs = |model: &String| last_part(model).eq_ignore_ascii_case(ours);
    if !suite.published.models.iter().any(is_theirs) {
        let theirs = suite.published.models.join(", ");
        found.push(format!("base model: ours {ours}, the papers' {theirs}"));
    }
    if let Some(seeds) = suite
        .published
        .seeds
        .filter(|seeds| *seeds != comparison.seeds)
    {
        found.push(format!(
            "seeds: ours {}, the papers' {seeds}",
            comparison.seeds
        ));
    }
    found.extend(prepared.differs.iter().cloned());
    if request.kind == BaseKind::Encoder {
        found.push(
            "an encoder reads the texts without the suite's prompts, and heads answer".into(),
        );
    }
    let all: Vec<(&String, Vec<String>)> = request
        .compare
        .recipes
        .iter()
        .map(|recipe| {
            (
                &recipe.name,
                suite.differences(recipe, request.kind, prepared),
            )
        })
        .collect();
    for (name, own) in &all {
        for text in own {
            let is_of_all = all.iter().all(|(_, other)| other.contains(text));
            let text = match is_of_all {
                true => text.clone(),
                false => format!("{name}: {text}"),
            };
            if !found.contains(&text) {
                found.push(text);
            }
        }
    }
    found.extend(suite.differs.iter().cloned());
    found
}
