//! What a run would be and cost, without a run folder.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use molora_kernels::random::Seed;
use molora_models::Adaptable;

use super::{
    Checked, Loaded, Request, checked, find_model, load, sizes, stage_number, with_digests,
    with_prompt,
};
use crate::TrainError;
use crate::collective::Local;
use crate::data::{Split, TaskKind, TokenizedTask, task_names};
use crate::model::count;
use crate::recipe::phases;
use crate::report::{DryRun, SiteSize, TaskSize, peak_memory_bytes};
use crate::store::RunConfig;
use crate::train::{Event, Setup, Start, fit, padded, rehearse};

/// Reads everything that a run would read, makes a few steps of each stage, and leaves nothing behind.
///
/// # Errors
/// As [`train`](super::train).
pub fn dry_run(
    request: &Request,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<DryRun, TrainError> {
    if request.recipe.data.streaming {
        return Err(TrainError::streamed("--dry-run"));
    }
    let Checked { recipe, tasks, .. } = checked(request)?;
    let model = find_model(&request.model, stop, on_event)?;
    let recipe = with_prompt(recipe, &model.folder)?;
    let config = request.config(model.name, recipe, &tasks);
    on_event(Event::Phase("loading model and tasks"));
    let config = with_digests(config, &model.folder)?;
    let loaded = load(&config, &model.folder, &tasks, request.device, true)?;
    let config = with_micro_batches(request, config, &loaded, stop, on_event)?;
    on_event(Event::Phase("a few steps of each stage"));
    let heads = loaded.heads.clone();
    let stages = on_trial(request, &config, &loaded, stop, |setup| {
        rehearse(setup, Start::Fresh(heads), on_event)
    })?;
    let recipe = &config.recipe;
    let peak_memory_bytes = peak_memory_bytes();
    let mixture = loaded.mixture(Seed::new(config.seed))?;
    let widths: BTreeMap<String, _> = mixture
        .backbone
        .linears()
        .into_iter()
        .map(|(path, linear)| (path, linear.dims()))
        .collect();
    let site = |path: String| {
        let dims = widths[&path];
        let (input, output) = (dims.d_input, dims.d_output);
        SiteSize {
            path,
            input,
            output,
        }
    };
    let test = padded(&loaded.tasks, Split::Test, recipe.data.eval_batch_size);
    let token_seconds = stages.last().map_or(0.0, |stage| stage.token_seconds);
    Ok(DryRun {
        recipe: recipe.name.clone(),
        sites: mixture
            .backbone
            .site_paths()
            .into_iter()
            .map(site)
            .collect(),
        parameters: count(&mixture),
        tasks: loaded.tasks.iter().map(size).collect(),
        stages,
        test_seconds: token_seconds * test as f64,
        peak_memory_bytes,
    })
}

/// The configuration with the largest micro-batches that the memory of a request has room for, if it says
/// how much there is.
///
/// # Errors
/// As [`fit`]; also for a device whose memory is not measured.
pub(super) fn with_micro_batches(
    request: &Request,
    mut config: RunConfig,
    loaded: &Loaded,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<RunConfig, TrainError> {
    let Some(limit) = request.memory else {
        return Ok(config);
    };
    on_event(Event::Phase("trying micro-batches"));
    let heads = loaded.heads.clone();
    let found = on_trial(request, &config, loaded, stop, |setup| {
        let scored = config.scored;
        fit(setup, Start::Fresh(heads), (limit, scored), on_event)
    })?;
    for micro in found {
        match micro.stage {
            Some((stage, _)) => config.recipe.stages[stage].micro_batch_size = micro.rows,
            None => config.recipe.data.eval_batch_size = micro.rows,
        }
    }
    Ok(config)
}

/// Calls `run` with a training that writes into a temporary folder.
fn on_trial<T>(
    request: &Request,
    config: &RunConfig,
    loaded: &Loaded,
    stop: &AtomicBool,
    run: impl FnOnce(&Setup<'_>) -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    let (recipe, names) = (&config.recipe, task_names(&loaded.tasks));
    let phases = phases(&recipe.name, &recipe.stages, &names, 0..names.len())?;
    let until = request.until.as_deref();
    let folder = tempfile::tempdir()?;
    run(&Setup {
        recipe,
        stages: &recipe.stages,
        phases: &phases,
        spec: &loaded.spec,
        base: (&loaded.base, config.base_name()),
        tasks: &loaded.tasks,
        seed: Seed::new(config.seed),
        device: &loaded.device,
        collective: &Local,
        folder: folder.path(),
        stop,
        until: until.map(|name| stage_number(recipe, name)).transpose()?,
        keeps_end: false,
        init: request.init.as_deref(),
    })
}

fn size(task: &TokenizedTask) -> TaskSize {
    let lengths = task.lengths(Split::Train);
    let sum: usize = lengths.iter().sum();
    TaskSize {
        name: task.name.clone(),
        kind: task.kind,
        records: sizes(task),
        mean_tokens: sum as f64 / lengths.len().max(1) as f64,
        most_tokens: lengths.into_iter().max().unwrap_or(0),
        cut: task.cut,
        is_written: task.written.is_some() && task.kind == TaskKind::Generation,
    }
}
