//! The training loop: stages, steps, records, checkpoints.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::optim::ModuleOptimizer;
use burn::tensor::Device;
use molora_kernels::random::Seed;
use molora_models::Classifier;

use crate::checkpoint::{self, Progress};
use crate::data::{Batch, Sampler, Split, TokenizedTask};
use crate::parameters::find_not_finite;
use crate::report::{SCHEMA_VERSION, StepRecord, StepWriter, truncate_after};
use crate::step::Step;
use crate::{Recipe, TrainError};

/// File of the step records in a run folder.
pub const STEPS: &str = "steps.jsonl";

/// Everything that a training run reads and does not change.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The method.
    pub recipe: &'a Recipe,
    /// The tasks.
    pub tasks: &'a [TokenizedTask],
    /// Key of every random draw.
    pub seed: Seed,
    /// The device, with autodiff.
    pub device: &'a Device,
    /// The run folder.
    pub folder: &'a Path,
    /// Set from outside to stop after the current step.
    pub stop: &'a AtomicBool,
}

/// A finished training.
#[derive(Debug)]
pub struct Trained {
    /// The model.
    pub model: Classifier,
    /// Where it ended.
    pub progress: Progress,
}

/// Trains through all stages, or the rest of them if the run folder has a checkpoint.
///
/// `on_step` sees every record and the total number of steps.
///
/// # Errors
/// [`TrainError::NotFinite`] if a loss is no number, [`TrainError::Interrupted`] if `stop` was set
/// (after a checkpoint), and whatever reading and writing files gives.
pub fn train(
    setup: &Setup<'_>,
    model: Classifier,
    mut on_step: impl FnMut(&StepRecord, usize),
) -> Result<Trained, TrainError> {
    let mut state = State::start(setup, model)?;
    let mut writer = StepWriter::open(setup.folder.join(STEPS))?;
    let total: usize = setup.recipe.stages.iter().map(|stage| stage.steps).sum();
    while state.progress.stage < setup.recipe.stages.len() {
        let record = state.step(setup)?;
        writer.write(&record)?;
        on_step(&record, total);
        let is_due = state.progress.step % setup.recipe.checkpoint_every == 0;
        let is_stopped = setup.stop.load(Ordering::SeqCst) && state.progress.step < total;
        if is_stopped || is_due {
            writer.sync()?;
            state.save(setup)?;
        }
        if is_stopped {
            let run = setup.folder.to_owned();
            return Err(TrainError::Interrupted {
                step: state.progress.step,
                run,
            });
        }
    }
    writer.sync()?;
    state.check_weights(setup)?;
    Ok(Trained {
        model: state.model,
        progress: state.progress,
    })
}

struct State {
    model: Classifier,
    optimizer: ModuleOptimizer,
    progress: Progress,
}

impl State {
    fn start(setup: &Setup<'_>, model: Classifier) -> Result<Self, TrainError> {
        let lengths: Vec<_> = setup
            .tasks
            .iter()
            .map(|task| task.lengths(Split::Train))
            .collect();
        let checkpoint = checkpoint::latest(setup.folder)?;
        let mut model = model;
        let progress = match &checkpoint {
            Some(path) => {
                let names = task_names(setup.tasks);
                checkpoint::load_weights(path, &mut model, setup.recipe, &names)?;
                let progress = checkpoint::load_progress(path)?;
                progress.sampler.check_data(&lengths)?;
                progress
            }
            None => {
                let seed = setup.seed.child("sampler").value();
                let config = setup.recipe.data.sampling.clone();
                Progress {
                    step: 0,
                    stage: 0,
                    stage_step: 0,
                    tokens: 0,
                    padded_tokens: 0,
                    seconds: 0.0,
                    sampler: Sampler::new(config, &lengths, seed)?,
                }
            }
        };
        truncate_after(&setup.folder.join(STEPS), progress.step)?;
        let stage = &setup.recipe.stages[progress.stage.min(setup.recipe.stages.len() - 1)];
        let mut optimizer = stage.optimizer.init();
        if let Some(path) = &checkpoint {
            optimizer = checkpoint::load_optimizer(path, optimizer)?;
        }
        Ok(Self {
            model: stage.apply(model),
            optimizer,
            progress,
        })
    }

    fn step(&mut self, setup: &Setup<'_>) -> Result<StepRecord, TrainError> {
        let start = Instant::now();
        let stage = &setup.recipe.stages[self.progress.stage];
        let picks = self.progress.sampler.next_batch();
        let examples: Vec<_> = picks
            .iter()
            .map(|&(task, index)| &setup.tasks[task].train[index])
            .collect();
        let batch = Batch::from_examples(&examples);
        let factor = stage.schedule.factor(self.progress.stage_step, stage.steps);
        let step = Step {
            recipe: setup.recipe,
            stage,
            rate_factor: factor,
            dropout: setup.seed.child("dropout").index(self.progress.step as u64),
            device: setup.device,
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
        let seconds = start.elapsed().as_secs_f64();
        let name_of = |(task, loss): (usize, f64)| (setup.tasks[task].name.clone(), loss);
        let record = StepRecord {
            version: SCHEMA_VERSION,
            step,
            stage: stage.name.clone(),
            loss: values.loss,
            task_loss: values.task_loss,
            terms: values.terms,
            tasks: values
                .tasks
                .into_iter()
                .map(name_of)
                .collect::<BTreeMap<_, _>>(),
            learning_rate: stage.optimizer.learning_rate * factor,
            gradient_norm: values.gradient_norm,
            tokens: batch.num_tokens(),
            padded_tokens: batch.num_padded(),
            seconds,
        };
        self.advance(setup, &record);
        Ok(record)
    }

    fn advance(&mut self, setup: &Setup<'_>, record: &StepRecord) {
        let progress = &mut self.progress;
        progress.step = record.step;
        progress.stage_step += 1;
        progress.tokens += record.tokens;
        progress.padded_tokens += record.padded_tokens;
        progress.seconds += record.seconds;
        let stages = &setup.recipe.stages;
        if progress.stage_step == stages[progress.stage].steps {
            progress.stage += 1;
            progress.stage_step = 0;
            if let Some(next) = stages.get(progress.stage) {
                self.model = next.apply(self.model.clone());
                self.optimizer = next.optimizer.init();
            }
        }
    }

    /// A good loss may be followed by an update that overflows: nobody shall keep its result.
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
        checkpoint::save(
            setup.folder,
            &self.model,
            &self.optimizer,
            &self.progress,
            setup.recipe,
            &names,
        )
    }
}

fn not_finite(setup: &Setup<'_>, step: usize, what: &str, value: f64) -> TrainError {
    let advice = match checkpoint::latest(setup.folder) {
        Ok(Some(path)) => format!("the last good checkpoint is {}", path.display()),
        _ => "there is no checkpoint yet; try a smaller learning rate".into(),
    };
    TrainError::NotFinite {
        step,
        what: what.into(),
        value,
        advice,
    }
}

/// Names of the tasks, in order.
pub fn task_names(tasks: &[TokenizedTask]) -> Vec<String> {
    tasks.iter().map(|task| task.name.clone()).collect()
}
