//! A run from start to end: load, train, evaluate, write; and reading a run folder again.
//!
//! | file in a run folder | content |
//! |---|---|
//! | `run.toml` | the resolved configuration: model, data, tasks with labels, seed, device, recipe |
//! | `adapter_config.json`, `adapter_model.safetensors` | the adapter |
//! | `heads.safetensors` | the heads |
//! | `steps.jsonl`, `eval.json`, `routing.json`, `summary.json`, `report.html` | the report |
//! | `predictions.json` | the class predicted for each test record |
//! | `checkpoints/` | where to go on, until the run is finished |

mod config;
mod folder;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use molora_kernels::random::Seed;
use molora_models::{Bert, Classifier};

use crate::data::{
    Split, TextTokenizer, TokenizedTask, load_tasks, require_classification, tokenize_tasks,
};
use crate::device::DeviceSpec;
use crate::eval::evaluate;
use crate::parameters::{count, with_stable_ids};
use crate::report::{
    EvalReport, PredictionReport, RoutingReport, RunSummary, SCHEMA_VERSION, StepRecord,
    peak_memory_bytes, read_steps, render, write_atomically, write_json_atomically,
};
use crate::trainer::{STEPS, Setup, Trained, task_names, train as train_loop};
use crate::{Recipe, TrainError, bundled, checkpoint};

pub(crate) use config::absolute;
use config::git_commit;
pub use config::{RUN, RunConfig, TaskLabels, read_config};
use folder::{check_folder, make_folder};

/// File that a run folder holds as soon as the run is finished.
pub const SUMMARY: &str = "summary.json";
/// File of the predicted classes in a run folder.
pub const PREDICTIONS: &str = "predictions.json";

/// What a user asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub recipe: Recipe,
    /// Folder of the base model, or `bundled:NAME`.
    pub model: String,
    /// Folder of the tasks, or `bundled:tasks`.
    pub data: String,
    /// The tasks to train on; all in the folder if `None`.
    pub tasks: Option<Vec<String>>,
    /// The run folder.
    pub out: PathBuf,
    /// Whether an older run in that folder may be removed.
    pub force: bool,
    /// Seed of every random draw.
    pub seed: u64,
    /// The device.
    pub device: DeviceSpec,
}

/// What a run tells while it goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// Something is about to be done.
    Phase(&'a str),
    /// A step is done; with the total number of steps.
    Step(&'a StepRecord, usize),
    /// Records are evaluated; with the total number of records.
    Evaluated(usize, usize),
}

/// A finished run.
#[derive(Debug)]
pub struct Finished {
    /// Facts of the run.
    pub summary: RunSummary,
    /// Scores on the test split.
    pub eval: EvalReport,
    /// How the routers shared the tasks.
    pub routing: RoutingReport,
    /// The class predicted for each test record.
    pub predictions: PredictionReport,
}

/// A base model, tokenized tasks and a classifier for them.
struct Loaded {
    classifier: Classifier,
    tasks: Vec<TokenizedTask>,
    device: Device,
}

/// Trains a recipe and writes the run folder.
///
/// Everything that can be checked is checked before the folder is made.
///
/// # Errors
/// Any problem with recipe, model, data, device or folder; see [`TrainError`].
pub fn train(
    request: &Request,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Finished, TrainError> {
    check_folder(&request.out, request.force)?;
    let data = bundled::folder(&request.data)?;
    let tasks = load_tasks(&data, request.tasks.as_deref())?;
    require_classification(&tasks)?;
    let labels = |task: &crate::data::Task| TaskLabels {
        name: task.meta.name.clone(),
        labels: task.meta.labels.clone(),
    };
    let config = RunConfig {
        molora_version: env!("CARGO_PKG_VERSION").into(),
        git_commit: git_commit(),
        model: absolute(&request.model),
        data: absolute(&request.data),
        seed: request.seed,
        device: request.device.to_string(),
        tasks: tasks.iter().map(labels).collect(),
        recipe: request.recipe.clone(),
    };
    on_event(Event::Phase("loading model and tasks"));
    let loaded = load(&config, &tasks, request.device, true)?;
    make_folder(&request.out, &config)?;
    run(&request.out, &config, loaded, stop, on_event)
}

/// Goes on with an unfinished run from its newest checkpoint, or from the start without one.
///
/// # Errors
/// As [`train`]; also if the run is finished, or its data are not what they were.
pub fn resume(
    folder: &Path,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Finished, TrainError> {
    let config = read_config(folder)?;
    if folder.join(SUMMARY).exists() {
        return Err(TrainError::run(
            folder,
            "the run is finished; see its report.html",
        ));
    }
    on_event(Event::Phase("loading model and tasks"));
    let device = config
        .device
        .parse()
        .map_err(|problem: String| TrainError::run(&folder.join(RUN), problem))?;
    let tasks = load_run_tasks(folder, &config, None)?;
    let loaded = load(&config, &tasks, device, true)?;
    run(folder, &config, loaded, stop, on_event)
}

/// Scores a finished run on the test split of its tasks, in `data` if that is given.
///
/// # Errors
/// If the folder holds no finished run, or the data's tasks or labels are not those of the run.
pub fn evaluate_run(
    folder: &Path,
    data: Option<&str>,
    device: Option<DeviceSpec>,
) -> Result<(EvalReport, RoutingReport), TrainError> {
    let config = read_config(folder)?;
    // The last file that a run writes: the others may be cut by a kill before it.
    if !folder.join(SUMMARY).exists() {
        let text = "the run is not finished; continue it with molora train --resume";
        return Err(TrainError::run(folder, text));
    }
    let device = match device {
        Some(device) => device,
        None => config
            .device
            .parse()
            .map_err(|problem: String| TrainError::run(&folder.join(RUN), problem))?,
    };
    let tasks = load_run_tasks(folder, &config, data)?;
    let mut loaded = load(&config, &tasks, device, false)?;
    let names = task_names(&loaded.tasks);
    checkpoint::load_weights(folder, &mut loaded.classifier, &config.recipe, &names)?;
    let rows = config.recipe.data.eval_batch_size;
    let found = evaluate(
        &loaded.classifier,
        &loaded.tasks,
        Split::Test,
        rows,
        &loaded.device,
        |_| {},
    )?;
    Ok((found.scores, found.routing))
}

/// Loads model and tokenizer, checks the recipe against them and attaches fresh adapters and heads.
fn load(
    config: &RunConfig,
    tasks: &[crate::data::Task],
    device: DeviceSpec,
    trains: bool,
) -> Result<Loaded, TrainError> {
    let device = device.open()?;
    let device = if trains { device.autodiff() } else { device };
    let folder = bundled::folder(&config.model)?;
    let tokenizer = TextTokenizer::from_folder(&folder)?;
    let mut encoder = Bert::from_folder(&folder, &device)?;
    tokenizer.check_vocabulary(encoder.vocab_size())?;
    let recipe = &config.recipe;
    recipe.resolve(&encoder)?;
    let tasks = tokenize_tasks(tasks, &tokenizer, recipe.data.max_length)?;
    check_token_types(&folder, &tasks, encoder.num_token_types())?;
    let seed = Seed::new(config.seed);
    encoder.attach(
        &recipe.adapter,
        tasks.len(),
        seed.child("adapters"),
        &device,
    )?;
    let heads: Vec<_> = tasks
        .iter()
        .map(|t| (t.name.clone(), t.labels.len()))
        .collect();
    let classifier = Classifier::new(encoder, &heads, seed.child("heads"), &device);
    for (index, stage) in recipe.stages.iter().enumerate() {
        if stage.num_trained(&classifier) == 0 {
            let problem = format!("stages.{index}.trainable matches no parameter of this recipe");
            return Err(TrainError::Recipe {
                name: recipe.name.clone(),
                problems: vec![problem],
            });
        }
    }
    Ok(Loaded {
        classifier: with_stable_ids(classifier),
        tasks,
        device,
    })
}

/// Checks that the model has a row for every token type; a tokenizer gives one to second texts even
/// where the model knows only one.
fn check_token_types(
    model: &Path,
    tasks: &[TokenizedTask],
    limit: usize,
) -> Result<(), TrainError> {
    for task in tasks {
        let splits = [&task.train, &task.validation, &task.test];
        let mut types = splits.into_iter().flatten().flat_map(|e| &e.type_ids);
        if let Some(found) = types.find(|&&found| found as usize >= limit) {
            let problem = format!(
                "gives token type {found} to texts of task {}, but the model's type_vocab_size is \
                 {limit}",
                task.name
            );
            return Err(TrainError::run(&model.join("tokenizer.json"), problem));
        }
    }
    Ok(())
}

/// Trains, evaluates and writes everything that a finished run consists of.
fn run(
    folder: &Path,
    config: &RunConfig,
    loaded: Loaded,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Finished, TrainError> {
    let Loaded {
        classifier,
        tasks,
        device,
    } = loaded;
    let setup = Setup {
        recipe: &config.recipe,
        tasks: &tasks,
        seed: Seed::new(config.seed),
        device: &device,
        folder,
        stop,
    };
    on_event(Event::Phase("training"));
    let trained = train_loop(&setup, classifier, |record, total| {
        on_event(Event::Step(record, total))
    })?;
    on_event(Event::Phase("evaluating on the test split"));
    let total = tasks.iter().map(|task| task.split(Split::Test).len()).sum();
    let mut done = 0;
    let rows = config.recipe.data.eval_batch_size;
    let found = evaluate(
        &trained.model,
        &tasks,
        Split::Test,
        rows,
        &device,
        |records| {
            done += records;
            on_event(Event::Evaluated(done, total));
        },
    )?;
    let summary = summary(config, &trained);
    let names = task_names(&tasks);
    let base = config.model.trim_start_matches("bundled:");
    checkpoint::save_weights(folder, &trained.model, &config.recipe, &names, base)?;
    let finished = Finished {
        summary,
        eval: found.scores,
        routing: found.routing,
        predictions: found.predictions,
    };
    write_report(folder, &finished)?;
    // The last thing: from here on the run is finished and needs no checkpoint.
    write_json_atomically(&folder.join(SUMMARY), &finished.summary)?;
    let checkpoints = folder.join("checkpoints");
    if checkpoints.exists() {
        std::fs::remove_dir_all(&checkpoints).map_err(TrainError::io(&checkpoints))?;
    }
    Ok(finished)
}

fn summary(config: &RunConfig, trained: &Trained) -> RunSummary {
    let progress = &trained.progress;
    let padding = progress.padded_tokens - progress.tokens;
    RunSummary {
        version: SCHEMA_VERSION,
        recipe: config.recipe.name.clone(),
        citation: config.recipe.citation.clone(),
        model: config.model.clone(),
        device: config.device.clone(),
        seed: config.seed,
        steps: progress.step,
        tasks: config.tasks.iter().map(|task| task.name.clone()).collect(),
        parameters: count(&trained.model),
        train_seconds: progress.seconds,
        tokens_per_second: progress.tokens as f64 / progress.seconds.max(1e-9),
        padding_share: padding as f64 / progress.padded_tokens.max(1) as f64,
        peak_memory_bytes: peak_memory_bytes(),
        molora_version: config.molora_version.clone(),
        git_commit: config.git_commit.clone(),
    }
}

fn write_report(folder: &Path, finished: &Finished) -> Result<(), TrainError> {
    let steps = read_steps(&folder.join(STEPS))?;
    write_json_atomically(&folder.join("eval.json"), &finished.eval)?;
    write_json_atomically(&folder.join("routing.json"), &finished.routing)?;
    write_json_atomically(&folder.join(PREDICTIONS), &finished.predictions)?;
    let routing = (!finished.routing.sites.is_empty()).then_some(&finished.routing);
    let html = render(&finished.summary, &finished.eval, routing, &steps);
    Ok(write_atomically(
        &folder.join("report.html"),
        html.as_bytes(),
    )?)
}

/// Loads a run's tasks and checks that their labels still mean what its heads learned.
fn load_run_tasks(
    folder: &Path,
    config: &RunConfig,
    data: Option<&str>,
) -> Result<Vec<crate::data::Task>, TrainError> {
    let names: Vec<String> = config.tasks.iter().map(|task| task.name.clone()).collect();
    let data = bundled::folder(data.unwrap_or(&config.data))?;
    let tasks = load_tasks(&data, Some(&names))?;
    require_classification(&tasks)?;
    for (task, trained) in tasks.iter().zip(&config.tasks) {
        if task.meta.labels != trained.labels {
            let problem = format!(
                "the labels of task {} are not those of {}: found {}, expected {}",
                trained.name,
                folder.join(RUN).display(),
                brief(&task.meta.labels),
                brief(&trained.labels)
            );
            return Err(TrainError::run(
                &data.join(&trained.name).join("task.json"),
                problem,
            ));
        }
    }
    Ok(tasks)
}

/// A list of labels cut to a readable length.
fn brief(labels: &[String]) -> String {
    let shown: Vec<&str> = labels.iter().take(4).map(String::as_str).collect();
    let more = if labels.len() > shown.len() {
        ", ..."
    } else {
        ""
    };
    format!("{} labels ({}{more})", labels.len(), shown.join(", "))
}
