//! The steps of a recipe that compute without gradients.

use molora_kernels::random::Seed;
use molora_models::{Adaptable, AdapterSpec, Backbone, TaskHead, TaskModel};

use super::Setup;
use crate::TrainError;
use crate::data::{Split, task_names};
use crate::eval::{EvalScope, evaluate};
use crate::guide::{Clusters, Guide, Instructions, Query, TextEncoder};
use crate::model::with_stable_ids;
use crate::store::pool;

/// The mixture of the experts in the run folder, with fresh routers and the given heads.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::Model`] for an expert that is missing, broken or foreign.
pub(crate) fn assemble(
    setup: &Setup<'_>,
    heads: Vec<Option<TaskHead>>,
) -> Result<TaskModel, TrainError> {
    let spec = setup.spec.one_expert(false);
    let mut experts = read_experts(setup, &spec)?;
    if setup.spec.general.is_some() {
        let mut general = one_expert(setup, &spec)?;
        let folder = pool::general_folder(setup.folder);
        pool::load(&folder, &mut general, &spec, setup.base.1)?;
        experts.push(("general".into(), general));
    }
    let mut backbone = setup.base.0.clone();
    let seed = setup.seed.child("adapters");
    backbone.attach(setup.spec, setup.tasks.len(), seed, setup.device)?;
    let mut mixture = TaskModel { backbone, heads };
    pool::assemble(&mut mixture, &experts, &setup.recipe.name)?;
    Ok(with_stable_ids(mixture))
}

/// Makes the gates in the run folder the prototypes of a mixture's routers.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::Model`] for a gate that is missing, broken or foreign.
pub(crate) fn collect_prototypes(
    setup: &Setup<'_>,
    mixture: &mut TaskModel,
) -> Result<(), TrainError> {
    let spec = setup.spec.one_expert(true);
    let mut gated = Vec::new();
    for task in setup.tasks {
        let mut backbone = one_expert(setup, &spec)?;
        let folder = pool::expert_folder(setup.folder, &task.name);
        pool::load_gate(&folder, &mut backbone, &spec)?;
        gated.push(backbone);
    }
    pool::collect_prototypes(mixture, &gated);
    *mixture = with_stable_ids(mixture.clone());
    Ok(())
}

/// Makes the direction that each expert stretches most its row in the site's router.
pub(crate) fn collect_directions(mixture: &mut TaskModel) {
    for (_, site) in mixture.backbone.sites_mut() {
        let directions = site.bank.directions();
        if let Some(router) = &mut site.router {
            router.set_rows(directions);
        }
    }
    *mixture = with_stable_ids(mixture.clone());
}

/// Divides the training texts into clusters and writes their centroids into the run folder.
///
/// # Errors
/// See [`Clusters::fit`].
pub(crate) fn cluster(setup: &Setup<'_>) -> Result<Guide, TrainError> {
    let (config, clusters) = (setup.recipe.cluster_texts(), setup.spec.num_clusters());
    let (config, clusters) = config
        .zip(clusters)
        .expect("checked when the recipe was resolved");
    let encoder = TextEncoder::open(&config.encoder, setup.device)?;
    let seed = setup.seed.child("clusters");
    let found = Clusters::fit(config, clusters, setup.tasks, seed, &encoder)?;
    found.save(setup.folder)?;
    found.guide_of(setup.tasks, &Split::ALL, &encoder)
}

/// Embeds the tasks' instructions and writes them into the run folder.
///
/// # Errors
/// See [`Instructions::embed`].
pub(crate) fn embed_instructions(setup: &Setup<'_>) -> Result<Guide, TrainError> {
    let config = setup.recipe.instructions();
    let config = config.expect("checked when the recipe was resolved");
    let text = |task: &crate::data::TokenizedTask| (task.name.clone(), task.instruction.clone());
    let texts: Vec<_> = setup.tasks.iter().map(text).collect();
    let instructions = Instructions::embed(config, &texts, setup.device)?;
    instructions.save(setup.folder)?;
    Ok(instructions.guide(setup.device))
}

/// Tries global weights on the validation split, keeps the best and writes it into the run folder.
///
/// # Errors
/// Whatever reading the instructions and evaluating give.
pub(crate) fn tune_global_weight(
    setup: &Setup<'_>,
    mixture: &TaskModel,
    candidates: &[f64],
) -> Result<Guide, TrainError> {
    let mut instructions = Instructions::load(setup.folder, &task_names(setup.tasks))?;
    let config = setup.recipe.instructions();
    let query: Query = config.map_or(Query::Task, |config| config.query.into());
    let encoder = instructions.text_encoder(setup.device)?;
    let mut best: Option<(f64, f64)> = None;
    for &weight in candidates {
        instructions.weight = weight;
        let guide = match query {
            Query::Task => instructions.guide(setup.device),
            _ => instructions.guide_of(&query, setup.tasks, Split::Validation, &encoder)?,
        };
        let rows = setup.recipe.data.eval_batch_size;
        let scope = EvalScope::own(Split::Validation, rows, setup.tasks.len());
        let guide_ref = Some(&guide);
        let found = evaluate(mixture, setup.tasks, scope, setup.device, guide_ref, |_| {
            Ok(())
        })?;
        let score = found.scores.mean;
        tracing::info!("global weight {weight}: mean score {score:.4} on the validation split");
        if best.is_none_or(|(_, best)| score > best) {
            best = Some((weight, score));
        }
    }
    if let Some((weight, _)) = best {
        instructions.weight = weight;
    }
    instructions.save(setup.folder)?;
    Ok(instructions.guide(setup.device))
}

fn read_experts(
    setup: &Setup<'_>,
    spec: &AdapterSpec,
) -> Result<Vec<(String, Backbone)>, TrainError> {
    let read = |task: &crate::data::TokenizedTask| {
        let mut backbone = one_expert(setup, spec)?;
        let folder = pool::expert_folder(setup.folder, &task.name);
        pool::load(&folder, &mut backbone, spec, setup.base.1)?;
        Ok((task.name.clone(), backbone))
    };
    setup.tasks.iter().map(read).collect()
}

/// The base model with one fresh expert, into which a stored one is read.
pub(crate) fn one_expert(setup: &Setup<'_>, spec: &AdapterSpec) -> Result<Backbone, TrainError> {
    let mut backbone = setup.base.0.clone();
    backbone.attach(spec, 0, Seed::new(0), setup.device)?;
    Ok(backbone)
}
