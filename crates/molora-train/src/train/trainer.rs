//! The training loop: stages, steps, records, checkpoints.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use burn::optim::{AdamWConfig, ModuleOptimizer};
use molora_models::{AdapterSpec, TaskHead, TaskModel};

use super::event::{Event, Kept};
use super::setup::{Setup, guidance, not_finite, objective, phase_seed, task_weights};
use super::step::Step;
use super::watch::Found;
use super::{streaming, validate};
use crate::collective;
use crate::data::sampler::Pick;
use crate::data::{Average, Batch, Example, Streams, task_names};
use crate::error::TrainError;
use crate::guide::Guide;
use crate::model::{NewValues, find_not_finite};
use crate::recipe::{FinalState, GuardRule, LogFormat, Phase, Scope, StageConfig};
use crate::report::{GuardDone, SCHEMA_VERSION, StepRecord, StepWriter, truncate_after};
use crate::store::checkpoint::{Progress, Snapshot};
use crate::store::{STEPS, TENSORBOARD, checkpoint, pool};

/// Where a training starts that has no checkpoint yet.
#[derive(Debug)]
pub enum Start {
    /// At the first stage, with these heads.
    Fresh(Vec<Option<TaskHead>>),
    /// With a mixture that exists already.
    Mixture {
        /// The mixture.
        model: Box<TaskModel>,
        /// The guidance of its routers by task, if the method has that.
        guide: Option<Guide>,
        /// The values that alone train, if that is not all that the stages train.
        only: Option<Box<NewValues>>,
    },
}

/// A finished training.
#[derive(Debug)]
pub struct Trained {
    /// The model of the last stage.
    pub model: TaskModel,
    /// The guidance of its routers by task, if the method has that.
    pub guide: Option<Guide>,
    /// Where it ended.
    pub progress: Progress,
}

/// Trains through all phases, or the rest of them if the run folder has a checkpoint.
///
/// # Errors
/// [`TrainError::NotFinite`] if a loss is no number, [`TrainError::Guard`] if a guard stops the run,
/// [`TrainError::Interrupted`] if `stop` was set
/// or the stage `until` has ended (after a checkpoint), and whatever reading and writing files gives.
pub fn train(
    setup: &Setup<'_>,
    start: Start,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Trained, TrainError> {
    let state = State::start(setup, start, on_event)?;
    go_on(setup, state, on_event)
}

/// Trains on from where a state is; see [`train`].
pub(crate) fn go_on(
    setup: &Setup<'_>,
    mut state: State,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Trained, TrainError> {
    let mut writer = StepWriter::open(setup.folder.join(STEPS))?;
    if setup.recipe.report.log.contains(&LogFormat::Tensorboard) {
        writer = writer.with_events(&setup.folder.join(TENSORBOARD))?;
    }
    let total: usize = setup.phases.iter().map(|phase| phase.steps).sum();
    let mut saved = Instant::now();
    while let Some(phase) = setup.phases.get(state.progress.phase) {
        let (record, watched) = state.step(setup, phase)?;
        writer.write(&record)?;
        on_event(Event::Step(&record, total));
        let acts = state.guard(setup, phase, &watched);
        for act in &acts {
            writer.write_guard(act)?;
            on_event(Event::Guard(act));
        }
        let halted = acts.iter().find(|act| act.guard.done == GuardDone::Stopped);
        let is_best = state.validate(setup, phase, &mut writer, on_event)?;
        let is_done = state.is_done(phase);
        let is_kept = is_best && state.has_to_be_kept(setup, is_done);
        if is_kept {
            writer.sync()?;
            state.save(setup)?;
            saved = Instant::now();
        }
        let next = setup
            .phases
            .get(state.progress.phase + usize::from(is_done));
        let is_over = next.is_some_and(|next| setup.until.is_some_and(|last| next.stage > last));
        if is_done {
            if next.is_none() && setup.keeps_end {
                state.save_end(setup, phase)?;
            }
            state.leave(setup, phase, on_event)?;
        }
        // A run that stops here does what comes next when it is resumed.
        if is_done && !is_over {
            state.enter(setup, state.progress.phase + 1, on_event)?;
        }
        let is_due = state
            .progress
            .step
            .is_multiple_of(setup.recipe.checkpoint_every);
        // A signal may reach one rank alone, and each has a clock of its own: all do the same after the same step.
        let [is_asked, is_time] = collective::any(
            setup.collective,
            [setup.stop.load(Ordering::SeqCst), setup.is_time(saved)],
        )?;
        let is_stopped = is_asked && setup.phases.get(state.progress.phase).is_some();
        // A state that is kept stays as it was; what follows it is done again when the run is resumed.
        let is_halted = halted.is_some();
        if (is_over || is_stopped || is_due || is_time || is_halted) && !is_kept {
            writer.sync()?;
            state.save(setup)?;
            saved = Instant::now();
        }
        if let Some(act) = halted {
            let run = setup.folder.to_owned();
            return Err(TrainError::Guard {
                text: act.text(),
                run,
            });
        }
        if is_over || is_stopped {
            let run = setup.folder.to_owned();
            let step = state.progress.step;
            return Err(TrainError::Interrupted { step, run });
        }
    }
    writer.sync()?;
    state.check_weights(setup)?;
    Ok(Trained {
        model: state.model,
        guide: state.guide,
        progress: state.progress,
    })
}

/// A training that has begun.
pub(crate) struct State {
    pub(super) model: TaskModel,
    pub(super) is_mixture: bool,
    pub(super) guide: Option<Guide>,
    pub(super) only: Option<Box<NewValues>>,
    pub(super) optimizer: ModuleOptimizer,
    pub(super) progress: Progress,
    /// The streams of the phase's data, if these are streamed.
    pub(super) streams: Option<Streams>,
}

impl State {
    /// Begins a training, or reads where it was; the folder of `setup` may get files of what comes before the
    /// first step.
    ///
    /// # Errors
    /// What cannot be begun with or gone on from; whatever reading and writing files gives.
    pub(crate) fn start(
        setup: &Setup<'_>,
        start: Start,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, TrainError> {
        let (model, guide, only, is_mixture) = match start {
            Start::Fresh(heads) => {
                let backbone = setup.base.0.clone();
                (TaskModel { backbone, heads }, None, None, false)
            }
            Start::Mixture { model, guide, only } => (*model, guide, only, true),
        };
        let mut state = Self {
            model,
            is_mixture,
            guide,
            only,
            optimizer: AdamWConfig::new().init(),
            progress: Progress::default(),
            streams: None,
        };
        match checkpoint::latest(setup.folder)? {
            Some(path) => state.load(setup, &path, on_event)?,
            None => state.enter(setup, 0, on_event)?,
        }
        truncate_after(&setup.folder.join(STEPS), state.progress.step)?;
        Ok(state)
    }

    /// The model with the parameters of a stage trainable.
    pub(super) fn to_be_trained(&self, stage: &StageConfig) -> TaskModel {
        let model = stage.apply(self.model.clone());
        match &self.only {
            Some(only) => only.freeze_others(model),
            None => model,
        }
    }

    /// Whether a phase has made its last step.
    pub(super) fn is_done(&self, phase: &Phase) -> bool {
        self.progress.phase_step == phase.steps || self.progress.is_early
    }

    /// Scores the state on the validation split if that is due, ends the phase if that has not helped for
    /// too long, and returns whether the state is one of the best.
    fn validate(
        &mut self,
        setup: &Setup<'_>,
        phase: &Phase,
        writer: &mut StepWriter,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<bool, TrainError> {
        if !validate::is_due(setup, phase, self.progress.phase_step) {
            return Ok(false);
        }
        self.check_weights(setup)?;
        let (model, guide, progress) = self.scored();
        let record = validate::score(setup, phase, model, guide, progress)?;
        writer.write_validation(&record)?;
        on_event(Event::Validated(&record));
        let patience = setup.recipe.validation.patience;
        progress.is_early =
            patience > 0 && progress.since_best >= patience && progress.phase_step < phase.steps;
        let step = progress.step;
        Ok(progress.best.iter().any(|best| best.step == step))
    }

    /// Whether one of the best states is needed later: to be taken when the phase ends, or for good.
    fn has_to_be_kept(&self, setup: &Setup<'_>, is_done: bool) -> bool {
        let config = &setup.recipe.checkpoint;
        let is_taken = config.final_state == FinalState::Best && !is_done;
        is_taken || config.keep_best > 0
    }

    /// The next step, and what a guard measures of it.
    fn step(
        &mut self,
        setup: &Setup<'_>,
        phase: &Phase,
    ) -> Result<(StepRecord, Vec<Found>), TrainError> {
        let guard = &setup.recipe.guard;
        let rules = match guard.is_due(self.progress.phase_step + 1) {
            true if !setup.stages[phase.stage].trains_alone() => &guard.rules[..],
            _ => &[],
        };
        let (record, watched) = match &mut self.streams {
            Some(streams) => {
                let examples = streaming::next_batch(setup, streams)?;
                let examples: Vec<&Example> = examples.iter().collect();
                self.step_with(setup, phase, (&examples, Vec::new()), rules)?
            }
            None => {
                let sampler = self.progress.sampler.as_mut();
                let picks = sampler.expect("a phase that trains has one").next_batch();
                self.step_on(setup, phase, &picks, rules)?
            }
        };
        self.count(&record);
        Ok((record, watched))
    }

    /// A step on given examples, which is not counted, and what these rules watch.
    pub(super) fn step_on(
        &mut self,
        setup: &Setup<'_>,
        phase: &Phase,
        picks: &[Pick],
        rules: &[GuardRule],
    ) -> Result<(StepRecord, Vec<Found>), TrainError> {
        let examples: Vec<_> = picks
            .iter()
            .map(|&(place, index)| &setup.tasks[phase.tasks[place]].train[index])
            .collect();
        let records = picks.iter().map(|&(_, index)| index).collect();
        self.step_with(setup, phase, (&examples, records), rules)
    }

    /// A step on examples, with the places of their records where these are known.
    fn step_with(
        &mut self,
        setup: &Setup<'_>,
        phase: &Phase,
        (examples, records): (&[&Example], Vec<usize>),
        rules: &[GuardRule],
    ) -> Result<(StepRecord, Vec<Found>), TrainError> {
        let start = Instant::now();
        let stage = &setup.stages[phase.stage];
        let writing = &setup.recipe.data.writing;
        let mut batch = match writing.packing {
            true if examples.iter().all(|example| example.can_be_packed()) => {
                Batch::packed(examples, writing.max_length)
            }
            _ => Batch::from_examples(examples),
        };
        if batch.segments.is_none() {
            batch.records = records;
        }
        if writing.average == Average::Tokens {
            batch.average_over_tokens();
        }
        let factor = stage.schedule.factor(self.progress.phase_step, phase.steps);
        let dropout = phase_seed(setup, phase, "dropout").index(self.progress.phase_step as u64);
        let guide = self.guide.as_ref().filter(|_| self.is_mixture);
        let guidance = |batch: &Batch| guidance(setup, stage, guide, batch);
        let factor_of_balance = self.progress.balance_factor.unwrap_or(1.0);
        let objective = objective(setup, stage, self.progress.phase_step, factor_of_balance);
        let weights = task_weights(setup, phase);
        let step = Step {
            task_weights: &weights,
            spec: setup.spec,
            objective: objective.as_ref(),
            stage,
            only: self.only.as_deref(),
            rate_factor: factor,
            dropout,
            device: setup.device,
            collective: setup.collective,
            rules,
            guidance: &guidance,
        };
        let (model, values) = step.run(self.model.clone(), &mut self.optimizer, &batch)?;
        self.model = model;
        let step = self.progress.step + 1;
        for (what, value) in [
            ("loss", values.loss),
            ("gradient norm", values.gradient_norm),
        ] {
            if !value.is_finite() {
                return Err(not_finite(setup, step, what, value));
            }
        }
        let name_of = |task: usize| setup.tasks[task].name.clone();
        let tasks = values.tasks.into_iter();
        let record = StepRecord {
            version: SCHEMA_VERSION,
            step,
            stage: stage.name.clone(),
            expert: phase.expert.map(name_of),
            loss: values.loss,
            task_loss: values.task_loss,
            terms: values.terms,
            tasks: tasks
                .map(|(task, loss)| (name_of(task), loss))
                .collect::<BTreeMap<_, _>>(),
            learning_rate: stage.optimizer.learning_rate * factor,
            gradient_norm: values.gradient_norm,
            tokens: batch.num_tokens(),
            padded_tokens: batch.num_padded(),
            seconds: start.elapsed().as_secs_f64(),
        };
        Ok((record, values.watched))
    }

    /// What is scored, and where the scores are noted.
    pub(super) fn scored(&mut self) -> (&TaskModel, Option<&Guide>, &mut Progress) {
        let guide = self.guide.as_ref().filter(|_| self.is_mixture);
        (&self.model, guide, &mut self.progress)
    }

    fn count(&mut self, record: &StepRecord) {
        let progress = &mut self.progress;
        progress.step = record.step;
        progress.phase_step += 1;
        progress.tokens += record.tokens;
        progress.padded_tokens += record.padded_tokens;
        progress.seconds += record.seconds;
    }

    /// Takes the state that a phase ends with, and keeps what it has made if it trained an expert alone.
    pub(super) fn leave(
        &mut self,
        setup: &Setup<'_>,
        phase: &Phase,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        self.take_best(setup, phase, on_event)?;
        let stage = &setup.stages[phase.stage];
        if !stage.trains_alone() {
            return Ok(());
        }
        self.check_weights(setup)?;
        let (folder, head) = match (stage.scope, phase.expert) {
            (Scope::EachTask | Scope::EachGate, Some(task)) => {
                let name = &setup.tasks[task].name;
                let folder = pool::expert_folder(setup.folder, name);
                (folder, Some((name, &self.model.heads[task])))
            }
            _ => (pool::general_folder(setup.folder), None),
        };
        let spec = stage.spec(setup.spec);
        pool::save(&folder, &self.model.backbone, &spec, setup.base.1, head)
    }

    /// Puts the best state of a phase in the place of its last one, if the recipe says so.
    fn take_best(
        &mut self,
        setup: &Setup<'_>,
        phase: &Phase,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let best = std::mem::take(&mut self.progress.best);
        let Some(first) = best.first() else {
            return Ok(());
        };
        let config = &setup.recipe.checkpoint;
        let last = self.progress.step;
        let is_best = config.final_state == FinalState::Best;
        let step = if is_best { first.step } else { last };
        if step < last {
            let spec = setup.stages[phase.stage].spec(setup.spec);
            let folder = checkpoint::after(setup.folder, step);
            let names = task_names(setup.tasks);
            checkpoint::load_weights(&folder, &mut self.model, &spec, &names)?;
        }
        let kept = best.iter().take(config.keep_best);
        self.progress.kept.extend(kept.map(|best| best.step));
        on_event(Event::Kept(Kept {
            step,
            last,
            is_early: self.progress.is_early,
        }));
        Ok(())
    }

    /// A good loss may be followed by an update that overflows: its result must not be kept.
    fn check_weights(&self, setup: &Setup<'_>) -> Result<(), TrainError> {
        match find_not_finite(&self.model) {
            Some((path, value)) => {
                let what = format!("weight {path}");
                Err(not_finite(setup, self.progress.step, &what, value))
            }
            None => Ok(()),
        }
    }

    fn save(&self, setup: &Setup<'_>) -> Result<(), TrainError> {
        self.check_weights(setup)?;
        let names = task_names(setup.tasks);
        let phase = setup
            .phases
            .get(self.progress.phase)
            .or(setup.phases.last());
        let spec = phase.map_or(setup.spec.clone(), |phase| {
            setup.stages[phase.stage].spec(setup.spec)
        });
        let progress = self.noted(setup)?;
        let snapshot = self.snapshot(&progress, &spec, &names, true);
        checkpoint::save(setup.folder, &snapshot, setup.recipe.checkpoint.keep_last)
    }

    /// Keeps the state that a mixture ends with; of experts that trained alone there is no such state.
    fn save_end(&self, setup: &Setup<'_>, phase: &Phase) -> Result<(), TrainError> {
        let stage = &setup.stages[phase.stage];
        if stage.trains_alone() || stage.scope.is_by_task() {
            return Ok(());
        }
        self.check_weights(setup)?;
        let (names, spec) = (task_names(setup.tasks), stage.spec(setup.spec));
        let progress = self.noted(setup)?;
        checkpoint::save_end(setup.folder, &self.snapshot(&progress, &spec, &names, true))
    }

    /// Where the run is, with the streams of all ranks.
    pub(super) fn noted(&self, setup: &Setup<'_>) -> Result<Progress, TrainError> {
        let streams = self.streams.as_ref();
        let streams = streams.map(|streams| streaming::state(setup, streams));
        Ok(Progress {
            streams: streams.transpose()?,
            ..self.progress.clone()
        })
    }

    pub(super) fn snapshot<'a>(
        &'a self,
        progress: &'a Progress,
        spec: &'a AdapterSpec,
        tasks: &'a [String],
        with_optimizer: bool,
    ) -> Snapshot<'a> {
        Snapshot {
            model: &self.model,
            spec,
            tasks,
            optimizer: with_optimizer.then_some(&self.optimizer),
            progress,
        }
    }
}
