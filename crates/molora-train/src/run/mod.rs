//! A run from start to end: load, train, evaluate, write; and reading a run folder again.
//!
//! What a run folder has stands in `store/folder.rs`.

mod base;
mod certificate;
mod checked;
mod dry;
mod evaluate;
mod examples;
mod experts;
mod extend;
mod inputs;
mod load;
mod named;
mod oracle;
mod ranks;
mod request;
mod stages;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use molora_kernels::random::Seed;

use crate::base::base_model;
use crate::base::place::{write_atomically, write_json_atomically};
use crate::collective::{Collective, Local};
use crate::data::{PromptStyle, Split, TokenizedTask, task_names};
use crate::error::{RunProblem, TrainError};
use crate::eval::EvalScope;
use crate::guide::{Guide, Instructions};
use crate::model::count;
use crate::recipe::{BaseKind, FinalState, QuerySource, Recipe, phases};
use crate::report::{
    BaseReport, EvalReport, ExampleReport, ExpertReport, Page, PredictionReport, Record,
    RoutingReport, RunSummary, SCHEMA_VERSION, SplitSizes, kept_states, peak_memory_bytes,
    read_records, render,
};
use crate::store::{
    BASE, Claim, EVAL, EXAMPLES, EXPERT_REPORT, PREDICTIONS, REPORT, ROUTING, RunConfig, STEPS,
    SUMMARY, Writing, checkpoint, read_config,
};
use crate::train::{Setup, Start, State, Trained, go_on};

pub use crate::train::{Event, StageEvent};
use base::base_report;
use certificate::write_summary;
pub(crate) use certificate::{base_of, probe_opened};
pub use checked::check;
use checked::{Checked, checked};
pub use dry::dry_run;
use dry::with_micro_batches;
use evaluate::evaluate_showing;
pub use evaluate::{
    EvalOptions, ModelSource, ScoredRecords, evaluate_base, evaluate_other, evaluate_run,
    evaluate_run_by,
};
pub(crate) use evaluate::{
    Opened, bare_task, check_finished, device_of, guide_by, open, open_as, open_without_data,
    read_finished,
};
use examples::examples;
use experts::experts;
use extend::extend;
pub use inputs::changed_inputs;
use inputs::refuse_moving;
pub(crate) use inputs::{refuse_changed, with_base_digests, with_digests};
pub(crate) use load::{Loaded, ReadBase, load, load_run_tasks, tokenized};
pub(crate) use named::{expert_number, task_number};
pub use oracle::{MAX_PATHS, OracleReport, OracleRequest, OracleScore, search_oracle};
use ranks::{Place, agree};
pub use request::{Request, ResumeOptions, Schedule};
use stages::{begin_again, stage_number};
pub(crate) use stages::{check_tasks, with_groups};

/// A finished run.
#[derive(Debug)]
pub struct Finished {
    /// Facts of the run.
    pub summary: RunSummary,
    /// Scores on the test split, or that of [`Request::scored`].
    pub eval: EvalReport,
    /// How the routers shared the tasks.
    pub routing: RoutingReport,
    /// The class predicted for each test record.
    pub predictions: PredictionReport,
    /// Scores of the base model alone, if the recipe asks for them.
    pub base: Option<BaseReport>,
    /// Some records with what was answered, if the recipe asks for them.
    pub examples: Option<ExampleReport>,
    /// How alike the experts are, where a site has several.
    pub experts: Option<ExpertReport>,
}

/// Trains a recipe and writes the run folder.
///
/// The folder is claimed first, so that no other process can take it; an older run stays until
/// everything that can be checked is checked, and a run that does not begin leaves nothing.
///
/// # Errors
/// Any problem with recipe, model, data, device or folder; see [`TrainError`].
pub fn train(
    request: &Request,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Finished, TrainError> {
    train_on(request, &Local, stop, on_event)
}

/// [`train`] on several ranks: each calls this with the same request, and gets the same result. Rank 0 writes the run
/// folder. With micro-batches of one size (`micro_batch_size`) the run is the same, to the bit, for any number of
/// ranks on a processor.
///
/// # Errors
/// As [`train`], and if the ranks differ in what they train, or one of them ends.
pub fn train_on(
    request: &Request,
    collective: &dyn Collective,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Finished, TrainError> {
    let place = Place::new(collective, &request.out)?;
    let request = &Request {
        out: place.folder().to_owned(),
        ..request.clone()
    };
    let Checked {
        claim,
        recipe,
        tasks,
        files,
    } = checked(request)?;
    let model = find_model(&request.model, stop, on_event)?;
    claim.protect(&[&model.folder])?;
    let recipe = with_prompt(recipe, &model.folder)?;
    let config = request.config(model.name, recipe, &tasks);
    on_event(Event::Phase("loading model and tasks"));
    let config = with_digests(config, &model.folder)?;
    let loaded = load(&config, &model.folder, &tasks, request.device, true)?;
    let config = with_micro_batches(request, config, &loaded, stop, on_event)?;
    refuse_moving(&request.out, &config, files, &model.folder)?;
    let run = Run {
        folder: &request.out,
        config: &config,
        loaded,
        until: request.until.as_deref(),
        collective,
    };
    run.to_its_end(Some(claim), stop, on_event)
}

/// Goes on with an unfinished run from its newest checkpoint, or from the start without one.
///
/// # Errors
/// As [`train`]; also if the run is finished, another process writes it, or base model or data are
/// not what they were.
pub fn resume(
    folder: &Path,
    part: &ResumeOptions,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Finished, TrainError> {
    resume_on(folder, part, &Local, stop, on_event)
}

/// [`resume`] on several ranks, as many as before or not; see [`train_on`]. All of them have to see the folder.
///
/// # Errors
/// As [`resume`] and [`train_on`].
pub fn resume_on(
    folder: &Path,
    part: &ResumeOptions,
    collective: &dyn Collective,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Finished, TrainError> {
    let place = Place::of_run(collective, folder)?;
    let folder = place.folder();
    let _writing = Writing::begin(folder)?;
    let mut config = read_config(folder)?;
    // Before anything of the run is changed.
    if let Some(stage) = &part.until {
        stage_number(&config.recipe, stage)?;
    }
    // First: it is about the run's end.
    if let Some(steps) = part.steps {
        config = extend(folder, config, steps, part.schedule)?;
    }
    if let Some(stage) = &part.from {
        begin_again(folder, &config, stage)?;
    }
    if folder.join(SUMMARY).exists() {
        return Err(TrainError::run(folder, RunProblem::Finished));
    }
    if part.checkpoint_every_seconds.is_some() {
        config.recipe.checkpoint.every_seconds = part.checkpoint_every_seconds;
    }
    let device = device_of(folder, &config, None)?;
    let tasks = load_run_tasks(folder, &config, None)?;
    check_tasks(&config.recipe, &tasks)?;
    let model = find_model(&config.model, stop, on_event)?;
    refuse_changed(folder, &config, &model.folder)?;
    on_event(Event::Phase("loading model and tasks"));
    let loaded = load(&config, &model.folder, &tasks, device, true)?;
    let run = Run {
        folder,
        config: &config,
        loaded,
        until: part.until.as_deref(),
        collective,
    };
    run.to_its_end(None, stop, on_event)
}

/// The recipe with the prompts that fit the model of a folder, where it leaves them open.
pub(crate) fn with_prompt(mut recipe: Recipe, folder: &Path) -> Result<Recipe, TrainError> {
    let writing = &mut recipe.data.writing;
    // An encoder writes nothing, whatever its folder has.
    writing.prompt = match (BaseKind::of(folder), writing.prompt) {
        (Ok(BaseKind::Encoder), PromptStyle::Auto) => PromptStyle::Plain,
        _ => writing.style(folder)?,
    };
    Ok(recipe)
}

/// Finds the base model, and stops a download when the run is to stop.
pub(crate) fn find_model(
    name: &str,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<base_model::BaseModel, TrainError> {
    base_model::find(name, &mut |progress| {
        on_event(Event::Download(progress));
        match stop.load(Ordering::SeqCst) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
}

/// A run that trains.
struct Run<'a> {
    folder: &'a Path,
    config: &'a RunConfig,
    loaded: Loaded,
    until: Option<&'a str>,
    collective: &'a dyn Collective,
}

impl Run<'_> {
    /// Trains, evaluates and writes everything that a finished run consists of. With a claim the run is new, and
    /// leaves nothing if it cannot begin.
    fn to_its_end(
        &self,
        claim: Option<Claim>,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Finished, TrainError> {
        let (folder, config, loaded) = (self.folder, self.config, &self.loaded);
        agree(self.collective, config)?;
        let recipe = &config.recipe;
        let until = self.until.map(|name| stage_number(recipe, name));
        let names = task_names(&loaded.tasks);
        let phases = phases(&recipe.name, &recipe.stages, &names, 0..names.len())?;
        let init = config.init.as_ref().map(PathBuf::from);
        let setup = Setup {
            recipe,
            stages: &recipe.stages,
            phases: &phases,
            spec: &loaded.spec,
            base: (&loaded.base, config.base_name()),
            tasks: &loaded.tasks,
            seed: Seed::new(config.seed),
            device: &loaded.device,
            collective: self.collective,
            folder,
            stop,
            until: until.transpose()?,
            keeps_end: true,
            init: init.as_deref(),
        };
        on_event(Event::Phase("training"));
        let start = Start::Fresh(loaded.heads.clone());
        let (state, _lock) = match claim.map(|claim| claim.begin(config)).transpose()? {
            None => (State::start(&setup, start, on_event)?, None),
            Some(begun) => {
                let folder = begun.folder();
                let state = State::start(&Setup { folder, ..setup }, start, on_event)?;
                (state, Some(begun.put()?))
            }
        };
        let trained = go_on(&setup, state, on_event)?;
        let ranks = self.collective;
        let finished = finish(folder, config, loaded, &trained, ranks, stop, on_event)?;
        checkpoint::retain(folder, &trained.progress, recipe.checkpoint.keep_last)?;
        Ok(finished)
    }
}

/// Evaluates a trained model and writes everything that a finished run consists of, the summary
/// last, into a folder that has the steps already.
pub(crate) fn finish(
    folder: &Path,
    config: &RunConfig,
    loaded: &Loaded,
    trained: &Trained,
    collective: &dyn Collective,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Finished, TrainError> {
    let (tasks, device, spec) = (&loaded.tasks[..], &loaded.device, &loaded.spec);
    let split = config.scored;
    on_event(Event::Phase(&format!(
        "evaluating on the {} split",
        split.name()
    )));
    let guide = closing_guide(folder, config, tasks, device, trained.guide.clone())?;
    let rows = config.recipe.data.eval_batch_size;
    let scope = EvalScope {
        generates: split == Split::Test || config.recipe.validation.generate,
        collective,
        ..EvalScope::own(split, rows, tasks.len())
    };
    let guide = guide.as_ref();
    let found = evaluate_showing(&trained.model, tasks, scope, device, guide, on_event)?;
    let (names, base_name) = (task_names(tasks), config.base_name());
    checkpoint::replace_weights(folder, &trained.model, spec, &names, base_name)?;
    let mut routing = found.routing;
    routing.has_general = spec.general.is_some();
    let records = read_records(&folder.join(STEPS))?;
    // Before the base model is scored, which not every run does.
    let facts = summary(config, trained);
    let go_on = || match stop.load(Ordering::SeqCst) {
        false => Ok(()),
        true => Err(TrainError::Interrupted {
            step: trained.progress.step,
            run: folder.to_owned(),
        }),
    };
    let base = base_report(config, loaded, &go_on, on_event)?;
    let shown = config.recipe.report.examples;
    let examples = match shown > 0 && split == Split::Test {
        true => Some(examples(
            loaded,
            split,
            &found.predictions,
            base.as_ref(),
            shown,
        )?),
        false => None,
    };
    let experts = experts(&trained.model, loaded, split, guide, examples.is_some())?;
    let is_last = config.recipe.checkpoint.final_state == FinalState::Last;
    let cut = tasks.iter().filter(|task| task.cut > 0);
    let finished = Finished {
        summary: RunSummary {
            states: kept_states(&records, is_last),
            cut_texts: cut.map(|task| (task.name.clone(), task.cut)).collect(),
            records: tasks
                .iter()
                .map(|task| (task.name.clone(), sizes(task)))
                .collect(),
            ..facts
        },
        eval: found.scores,
        routing,
        predictions: found.predictions,
        base,
        examples: examples.filter(|examples| !examples.tasks.is_empty()),
        experts,
    };
    write_report(folder, &finished, &records, &config.recipe)?;
    write_summary(folder, config, loaded, &finished.summary)?;
    Ok(finished)
}

/// Writes what a run that nothing was measured of consists of, the summary last.
pub(crate) fn close(
    folder: &Path,
    config: &RunConfig,
    loaded: &Loaded,
    trained: &Trained,
) -> Result<(), TrainError> {
    let (model, names) = (&trained.model, task_names(&loaded.tasks));
    checkpoint::replace_weights(folder, model, &loaded.spec, &names, config.base_name())?;
    write_summary(folder, config, loaded, &summary(config, trained))
}

/// The guidance of the routers for the split that is scored: that of the training, unless the recipe's
/// queries are the records' own texts.
fn closing_guide(
    folder: &Path,
    config: &RunConfig,
    tasks: &[TokenizedTask],
    device: &Device,
    guide: Option<Guide>,
) -> Result<Option<Guide>, TrainError> {
    let instructions = config.recipe.instructions();
    let by_request = instructions.is_some_and(|config| config.query == QuerySource::Request);
    if !by_request || guide.is_none() {
        return Ok(guide);
    }
    let instructions = Instructions::load(folder, &task_names(tasks))?;
    let backbone = instructions.text_encoder(device)?;
    let query = QuerySource::Request.into();
    let guide = instructions.guide_of(&query, tasks, config.scored, &backbone)?;
    Ok(Some(guide))
}

fn summary(config: &RunConfig, trained: &Trained) -> RunSummary {
    let progress = &trained.progress;
    let padding = progress.padded_tokens - progress.tokens;
    let names = config.tasks.iter().map(|task| task.name.clone());
    let data = &config.recipe.data;
    let weights = data.relative_weights(config.tasks.iter().map(|task| &task.name[..]));
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
        cut_texts: BTreeMap::new(),
        records: BTreeMap::new(),
        task_weights: names.zip(weights).collect(),
        validation_seconds: progress.validation_seconds,
        states: Vec::new(),
        peak_memory_bytes: peak_memory_bytes(),
        molora_version: config.molora_version.clone(),
        git_commit: config.git_commit.clone(),
    }
}

fn sizes(task: &TokenizedTask) -> SplitSizes {
    let [validation, test] = [Split::Validation, Split::Test].map(|split| task.split(split).len());
    SplitSizes {
        train: task.num_train(),
        validation,
        test,
    }
}

fn write_report(
    folder: &Path,
    finished: &Finished,
    records: &[Record],
    recipe: &Recipe,
) -> Result<(), TrainError> {
    write_json_atomically(&folder.join(EVAL), &finished.eval)?;
    write_json_atomically(&folder.join(ROUTING), &finished.routing)?;
    write_json_atomically(&folder.join(PREDICTIONS), &finished.predictions)?;
    if let Some(base) = &finished.base {
        write_json_atomically(&folder.join(BASE), base)?;
    }
    if let Some(examples) = &finished.examples {
        write_json_atomically(&folder.join(EXAMPLES), examples)?;
    }
    if let Some(experts) = &finished.experts {
        write_json_atomically(&folder.join(EXPERT_REPORT), experts)?;
    }
    let routing = (!finished.routing.sites.is_empty()).then_some(&finished.routing);
    let html = render(&Page {
        routing,
        records,
        base: finished.base.as_ref(),
        examples: finished.examples.as_ref(),
        experts: finished.experts.as_ref(),
        settings: &recipe.to_toml(),
        ..Page::new(&finished.summary, &finished.eval)
    });
    write_atomically(&folder.join(REPORT), html.as_bytes())
}
