//! `molora remove-expert`: a run without one of its experts.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use molora_kernels::random::Seed;

use super::mixture::fill;
use super::plan::{Origins, is_apart, position, shrunk};
use super::{names, progress, stored_mixture};
use crate::base::files::{copy, copy_into};
use crate::base::place::discard;
use crate::base::{DeviceSpec, base_model};
use crate::collective::Local;
use crate::error::{GrowthProblem, TrainError};
use crate::guide::Instructions;
use crate::model::with_stable_ids;
use crate::report::read_records;
use crate::run::{
    Finished, Loaded, device_of, finish, load, load_run_tasks, read_finished, refuse_changed,
};
use crate::store::manifest::foresee;
use crate::store::{
    BEFORE, MANIFEST, REMOVING, RUN, RunConfig, STAGES, STEPS, Swap, Writing, pool, write_config,
};
use crate::train::{Event, Trained};

/// What became of a run.
#[derive(Debug)]
pub enum Removed {
    /// It is byte by byte what it was before the expert was added.
    Restored,
    /// It was evaluated again without the expert.
    Rebuilt(Box<Finished>),
}

/// Takes an expert out of a finished run.
///
/// The one that was added last goes as it came: every file is what it was before. Any other loses
/// its expert, router rows, instruction, head and folder, and the run is evaluated again; the other
/// experts keep every bit, and what earlier additions replaced is no longer kept. Where experts were
/// trained together no other can go.
///
/// # Errors
/// If the run is not finished, has no expert of the task or only that one, or none that can go; whatever
/// reading and writing the run gives.
pub fn remove_expert(
    run: &Path,
    task: &str,
    device: Option<DeviceSpec>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Removed, TrainError> {
    let _writing = Writing::begin(run)?;
    let config = read_finished(run)?;
    let place = position(run, &config, task)?;
    if config.tasks.len() == 1 {
        let problem = GrowthProblem::OnlyExpert { task: task.into() };
        return Err(TrainError::run(run, problem));
    }
    let was_added = |task: &str| run.join(BEFORE).join(task).is_dir();
    let is_last = place + 1 == config.tasks.len() && was_added(task);
    if !is_last && !is_apart(&config) {
        let last = &config.tasks[config.tasks.len() - 1].name;
        let problem = GrowthProblem::TrainedTogether {
            recipe: config.recipe.name,
            last: match was_added(last) {
                true => format!("which is {last}"),
                false => "and none was".into(),
            },
        };
        return Err(TrainError::run(&run.join(RUN), problem));
    }
    let work = run.join(format!("{REMOVING}{task}"));
    discard(&work)?;
    fs_err::create_dir_all(&work)?;
    if is_last {
        restore(run, task, &work)?;
        return Ok(Removed::Restored);
    }
    let rebuilt = rebuild(run, &config, task, device, &work, on_event);
    if rebuilt.is_err() {
        discard(&work)?;
    }
    Ok(Removed::Rebuilt(Box::new(rebuilt?)))
}

/// Puts everything back that the addition of an expert replaced.
fn restore(run: &Path, task: &str, work: &Path) -> Result<(), TrainError> {
    let swap = Swap::prepare(work)?;
    copy_into(&run.join(BEFORE).join(task), &swap.new_files())?;
    let mut away = vec![
        format!("{}/{task}", pool::EXPERTS),
        format!("{BEFORE}/{task}"),
        format!("{REMOVING}{task}"),
    ];
    // A run of an earlier version had none.
    if !swap.new_files().join(MANIFEST).exists() {
        away.push(MANIFEST.into());
    }
    swap.commit(run, &away)
}

/// Makes the run anew without an expert and puts it in its place.
fn rebuild(
    run: &Path,
    old: &RunConfig,
    task: &str,
    device: Option<DeviceSpec>,
    work: &Path,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Finished, TrainError> {
    let config = shrunk(run, old, task)?;
    on_event(Event::Phase("loading model and tasks"));
    let device = device_of(run, old, device)?;
    let tasks = load_run_tasks(run, &config, None)?;
    let model = base_model::find(&config.model, &mut base_model::silent)?;
    refuse_changed(run, &config, &model.folder)?;
    let loaded = load(&config, &model.folder, &tasks, device, false)?;
    let swap = Swap::prepare(work)?;
    let new = swap.new_files();
    copy(&run.join(STEPS), &new.join(STEPS))?;
    let mut trained = without(run, old, &config, &loaded)?;
    if config.recipe.instructions().is_some() {
        let mut instructions = Instructions::load(run, &names(old))?;
        instructions.experts.retain(|expert| expert.name != task);
        instructions.save(&new)?;
        trained.guide = Some(instructions.guide(&loaded.device));
    }
    // What is left is short, and nothing could resume it.
    let never = AtomicBool::new(false);
    let finished = finish(&new, &config, &loaded, &trained, &Local, &never, on_event)?;
    write_config(&new, &config)?;
    let away = [
        format!("{}/{task}", pool::EXPERTS),
        BEFORE.to_owned(),
        STAGES.to_owned(),
        format!("{REMOVING}{task}"),
    ];
    foresee(&new, run, &away)?;
    swap.commit(run, &away)?;
    Ok(finished)
}

/// The run's mixture with the experts and heads of the tasks that stay.
fn without(
    run: &Path,
    old: &RunConfig,
    config: &RunConfig,
    loaded: &Loaded,
) -> Result<Trained, TrainError> {
    let stored = stored_mixture(run, old, &loaded.base, &loaded.device)?;
    let origins = Origins::of(old, config);
    let mut model = loaded.mixture(Seed::new(config.seed))?;
    fill(&mut model.backbone, &stored.backbone, &origins, None)
        .map_err(|problem| TrainError::run(run, problem))?;
    let kept = origins.experts.iter().flatten();
    model.heads = kept.map(|&index| stored.heads[index].clone()).collect();
    let steps = read_records(&run.join(STEPS))?;
    Ok(Trained {
        model: with_stable_ids(model),
        guide: None,
        progress: progress(&steps),
    })
}
