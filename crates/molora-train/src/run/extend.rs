//! Continuing a finished run.

use std::path::Path;

use super::Schedule;
use crate::base::files::{remove, sync};
use crate::error::{RunProblem, TrainError};
use crate::recipe::{FinalState, Phase, phases};
use crate::store::{MANIFEST, RUN, RunConfig, SUMMARY, checkpoint, write_config};

/// The configuration of a finished run with so many steps in all, and the run as one that has these still
/// before it. Of a run that was stopped on that way nothing is changed.
///
/// # Errors
/// If the run ends with experts that train alone, its last state is not there, or it has as many steps already.
pub(super) fn extend(
    folder: &Path,
    mut config: RunConfig,
    steps: usize,
    schedule: Schedule,
) -> Result<RunConfig, TrainError> {
    let refuse = |problem| Err(TrainError::run(&folder.join(RUN), problem));
    let recipe = &config.recipe;
    let names: Vec<String> = config.tasks.iter().map(|task| task.name.clone()).collect();
    let phases = phases(&recipe.name, &recipe.stages, &names, 0..names.len())?;
    let total = |phases: &[Phase]| -> usize { phases.iter().map(|phase| phase.steps).sum() };
    let found = total(&phases);
    if !folder.join(SUMMARY).exists() {
        return match found == steps {
            true => Ok(config),
            false => refuse(RunProblem::StepsOfUnfinished { found }),
        };
    }
    let last = phases.last().filter(|phase| phase.steps > 0);
    let (Some(last), Some(end)) = (last, checkpoint::end_of(folder)?) else {
        let stages = &recipe.stages;
        let is_joint = last.is_some_and(|phase| !stages[phase.stage].scope.is_by_task());
        return refuse(RunProblem::NoEnd { is_joint });
    };
    let earlier = total(&phases[..phases.len() - 1]);
    if steps <= earlier + end.phase_step {
        let found = earlier + end.phase_step;
        return refuse(RunProblem::FewerSteps { steps, found });
    }
    let is_last = recipe.checkpoint.final_state == FinalState::Last;
    let stage = &mut config.recipe.stages[last.stage];
    stage.steps = steps - earlier;
    if schedule == Schedule::Restart {
        stage.schedule.restart_at = end.phase_step;
    }
    checkpoint::go_on(folder, is_last)?;
    write_config(folder, &config)?;
    remove(&folder.join(MANIFEST))?;
    // Last: until then the run is finished, with what it was.
    remove(&folder.join(SUMMARY))?;
    sync(folder)?;
    Ok(config)
}
