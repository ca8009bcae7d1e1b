//! What a training run reads and does not change, and what follows from that.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use burn::tensor::Device;
use molora_kernels::random::Seed;
use molora_models::{Adaptable, AdapterSpec, Backbone, TaskHead, TaskModel};
use molora_regularize::ObjectiveConfig;
use molora_routing::{Guidance, expert_labels};

use crate::TrainError;
use crate::collective::Collective;
use crate::data::{Batch, Split, TokenizedTask};
use crate::guide::Guide;
use crate::model::with_stable_ids;
use crate::recipe::{Phase, Recipe, StageConfig, StageRouting, balances};
use crate::store::checkpoint;

/// Everything that a training run reads and does not change.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The method.
    pub recipe: &'a Recipe,
    /// The stages that are gone through: the recipe's, or those of a run that grows.
    pub stages: &'a [StageConfig],
    /// Their phases.
    pub phases: &'a [Phase],
    /// The specification of the whole mixture for the run's tasks.
    pub spec: &'a AdapterSpec,
    /// The base model without adapters, and its name.
    pub base: (&'a Backbone, &'a str),
    /// The tasks.
    pub tasks: &'a [TokenizedTask],
    /// Key of every random draw.
    pub seed: Seed,
    /// The device, with autodiff.
    pub device: &'a Device,
    /// What the ranks of the run exchange data by.
    pub collective: &'a dyn Collective,
    /// The run folder.
    pub folder: &'a Path,
    /// Set from outside to stop after the current step.
    pub stop: &'a AtomicBool,
    /// Number of the stage at whose end the run stops as if the user had stopped it.
    pub until: Option<usize>,
    /// Whether the state at the end is kept, for a run that is continued from there.
    pub keeps_end: bool,
    /// Folder of the run or adapter whose weights the training begins with.
    pub init: Option<&'a Path>,
}

impl Setup<'_> {
    /// Whether a checkpoint is due by the clock, whose last one was written at `saved`.
    pub(super) fn is_time(&self, saved: Instant) -> bool {
        let interval = self.recipe.checkpoint.every_seconds;
        interval.is_some_and(|seconds| saved.elapsed().as_secs() >= seconds.get())
    }
}

/// The guidance of the routers for the sequences of a batch, beside their features.
pub(crate) fn guidance(
    setup: &Setup<'_>,
    stage: &StageConfig,
    guide: Option<&Guide>,
    batch: &Batch,
) -> Result<Guidance, TrainError> {
    let guidance =
        guide.map(|guide| guide.of(&batch.task_ids, &batch.records, Split::Train, setup.device));
    let mut guidance = guidance.unwrap_or_default();
    guidance.random = stage.routing == StageRouting::Random;
    if stage.routing == StageRouting::Label {
        let labels: Vec<_> = batch.task_ids.iter().copied().map(Some).collect();
        let labels = expert_labels(&labels, setup.spec.bank.num_experts, setup.device);
        guidance.labels = Some(labels.map_err(molora_models::ModelError::from)?);
    }
    Ok(guidance)
}

/// The terms that are due at a step of a stage, for the tasks of the run, where a guard has multiplied the
/// weights of those that balance.
pub(crate) fn objective(
    setup: &Setup<'_>,
    stage: &StageConfig,
    step: usize,
    balance_factor: f64,
) -> Option<ObjectiveConfig> {
    let mut due = stage.objective(&setup.recipe.objective)?.due(step);
    let balancing = due.terms.iter_mut();
    for config in balancing.filter(|config| balances(config.term.name())) {
        config.weight *= balance_factor;
    }
    let names: Vec<String> = setup.tasks.iter().map(|task| task.name.clone()).collect();
    let resolved = due.for_tasks(&names);
    Some(resolved.expect("the recipe was checked against the tasks"))
}

/// The base model with fresh adapters for a phase, or for the mixture after the last one.
pub(crate) fn attach(
    setup: &Setup<'_>,
    phase: Option<&Phase>,
    spec: &AdapterSpec,
    heads: Vec<Option<TaskHead>>,
) -> Result<TaskModel, TrainError> {
    let alone = phase.filter(|phase| setup.stages[phase.stage].trains_alone());
    let seed = match alone {
        None => setup.seed.child("adapters"),
        Some(phase) => match phase.expert {
            Some(task) => setup.seed.child("experts").child(&setup.tasks[task].name),
            None => setup.seed.child("general"),
        },
    };
    let mut backbone = setup.base.0.clone();
    backbone.attach(spec, setup.tasks.len(), seed, setup.device)?;
    Ok(with_stable_ids(TaskModel { backbone, heads }))
}

/// The key of a phase's draws: by the names of its stage and expert, so that neither depends on what
/// else is trained; the first stage of a mixture has that of the run.
pub(crate) fn phase_seed(setup: &Setup<'_>, phase: &Phase, what: &str) -> Seed {
    let seed = setup.seed.child(what);
    match (phase.stage, phase.expert) {
        (_, Some(task)) => {
            let stage = &setup.stages[phase.stage].name;
            seed.child(stage).child(&setup.tasks[task].name)
        }
        (0, None) => seed,
        (stage, None) => seed.child(&setup.stages[stage].name),
    }
}

/// What the loss of each task is multiplied by in a phase, by task number; none where all count alike.
pub(crate) fn task_weights(setup: &Setup<'_>, phase: &Phase) -> Vec<f64> {
    let names = phase.tasks.iter().map(|&task| &setup.tasks[task].name[..]);
    let own = setup.recipe.data.relative_weights(names);
    if own.is_empty() {
        return own;
    }
    let mut weights = vec![1.0; setup.tasks.len()];
    for (&task, weight) in phase.tasks.iter().zip(own) {
        weights[task] = weight;
    }
    weights
}

pub(crate) fn lengths(setup: &Setup<'_>, phase: &Phase) -> Vec<Vec<usize>> {
    let of = |&task: &usize| setup.tasks[task].lengths(Split::Train);
    phase.tasks.iter().map(of).collect()
}

pub(crate) fn not_finite(setup: &Setup<'_>, step: usize, what: &str, value: f64) -> TrainError {
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
