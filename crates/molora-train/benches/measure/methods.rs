//! A training step of every recipe at the same number of trainable parameters.
//!
//! What is measured is the last stage that trains the mixture; of recipes whose mixture does not
//! train, the stage of one expert.

use anyhow::{Context, Result};
use molora_kernels::random::Seed;
use molora_models::{Adaptable, AdapterSpec, Backbone, TaskHead, TaskModel};
use molora_routing::{Guidance, expert_labels};
use molora_train::compare::Counter;
use molora_train::data::Batch;
use molora_train::model::with_stable_ids;
use molora_train::recipe::{self, Recipe, Scope, StageConfig, StageRouting};
use molora_train::train::Step;

use crate::World;
use crate::clock::{Measured, time};
use crate::model::{MINILM, MiniLm};
use crate::step::{CLASSES, ROWS, TASKS, TOKENS, batch};

/// Parameters of a LoRA of rank 32 at the attention of MiniLM's shape.
const BUDGET: usize = 589_824;

pub(crate) fn cases() -> Vec<String> {
    recipe::names().map(String::from).collect()
}

pub(crate) fn run(case: &str, world: &World) -> Option<Result<Measured>> {
    let recipe = recipe::find(case).ok()?;
    Some(measure(&recipe, world))
}

/// The stage that is measured, and the specification that it trains.
fn stage(recipe: &Recipe, mixture: AdapterSpec) -> (StageConfig, AdapterSpec) {
    let trains = |stage: &&StageConfig| stage.transform.is_none() && stage.steps > 0;
    let mut trained = recipe.stages.iter().rev().filter(trains);
    let of_mixture = trained.clone().find(|stage| stage.scope == Scope::Mixture);
    match (of_mixture, trained.next()) {
        (Some(stage), _) => (stage.clone(), mixture),
        (None, Some(stage)) => (
            stage.clone(),
            mixture.one_expert(stage.scope == Scope::EachGate),
        ),
        (None, None) => (StageConfig::joint(1), mixture),
    }
}

fn measure(recipe: &Recipe, world: &World) -> Result<Measured> {
    let device = world.device.clone().autodiff();
    let tasks: Vec<String> = (0..TASKS).map(|task| format!("task{task}")).collect();
    let mut recipe = recipe.clone();
    if let Some(groups) = recipe.adapter.task_groups_mut() {
        let (first, second) = tasks.split_at(TASKS / 2);
        *groups = [
            ("first".into(), first.to_vec()),
            ("second".into(), second.to_vec()),
        ]
        .into();
    }
    let mut spec = recipe.for_tasks(&tasks)?;
    let mut backbone = Backbone::from_folder(&world.models.join(MINILM), &device)?;
    let counter = Counter {
        base: &backbone,
        num_tasks: TASKS,
        device: &device,
    };
    spec.bank.rank = counter.nearest(&spec, BUDGET)?.rank;
    let (stage, spec) = stage(&recipe, spec);
    backbone.attach(&spec, TASKS, Seed::new(0), &device)?;
    let head = |task: usize| {
        let seed = Seed::new(1).index(task as u64);
        Some(TaskHead::new(MiniLm::WIDTH, CLASSES, seed, &device))
    };
    let heads = (0..TASKS).map(head).collect();
    let mut model = with_stable_ids(stage.apply(TaskModel { backbone, heads }));
    let mut optimizer = stage.optimizer.init(&model);
    let objective = stage.objective(&recipe.objective);
    let objective = objective.map(|objective| objective.for_tasks(&tasks));
    let objective = objective
        .transpose()
        .map_err(|problems| anyhow::anyhow!(problems.join("; ")))?;
    let guidance = |batch: &Batch| {
        let mut guidance = Guidance::default();
        if stage.routing == StageRouting::Label {
            let labels: Vec<_> = batch.task_ids.iter().copied().map(Some).collect();
            let labels = expert_labels(&labels, spec.bank.num_experts, &device);
            guidance.labels = Some(labels.map_err(molora_models::ModelError::from)?);
        }
        Ok(guidance)
    };
    let (batch, mut number) = (batch(ROWS, TOKENS), 0);
    let measured = time(world.effort, &world.device, || {
        let step = Step {
            objective: objective.as_ref(),
            guidance: &guidance,
            ..Step::new(&spec, &stage, Seed::new(2).index(number), &device)
        };
        let (next, values) = step.run(model.clone(), &mut optimizer, &batch)?;
        anyhow::ensure!(values.loss.is_finite(), "the loss is {}", values.loss);
        (model, number) = (next, number + 1);
        Ok(())
    });
    let measured = measured.with_context(|| recipe.name.clone())?;
    Ok(Measured {
        tokens: Some((ROWS * TOKENS) as f64),
        ..measured
    })
}
