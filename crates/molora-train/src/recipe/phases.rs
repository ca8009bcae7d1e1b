//! The phases of a run: its stages, where those that train one expert after another are split by expert.

use std::ops::Range;

use super::StageConfig;
use crate::TrainError;

/// A part of a run that one model goes through with one optimizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// Number of the stage.
    pub stage: usize,
    /// Number of the task whose expert trains alone.
    pub expert: Option<usize>,
    /// Numbers of the tasks whose data it reads.
    pub tasks: Vec<usize>,
    /// Number of optimizer steps; 0 for a step without gradient.
    pub steps: usize,
}

/// The phases of `stages`, in order, for tasks of these names; experts train alone for the tasks with
/// a number in `new`, which are all but when a run grows.
///
/// # Errors
/// [`TrainError::Recipe`] if a stage names a task that is not there, or names no task twice, or has
/// fewer steps than experts.
pub fn phases(
    recipe: &str,
    stages: &[StageConfig],
    tasks: &[String],
    new: Range<usize>,
) -> Result<Vec<Phase>, TrainError> {
    let mut phases = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let refuse = |problem: String| TrainError::Recipe {
            name: recipe.into(),
            problems: vec![format!("stages.{index}.{problem}")],
        };
        let chosen = chosen(stage, tasks).map_err(refuse)?;
        if stage.transform.is_some() || !stage.scope.is_by_task() {
            phases.push(Phase {
                stage: index,
                expert: None,
                tasks: chosen,
                steps: stage.steps,
            });
            continue;
        }
        let experts: Vec<usize> = chosen.into_iter().filter(|t| new.contains(t)).collect();
        // A new expert gets as many steps as each of the old ones got.
        let old = tasks.len() - new.len();
        let shares = match old {
            0 => shares(stage.steps, experts.len()),
            old => vec![stage.steps / old; experts.len()],
        };
        if let Some(place) = shares.iter().position(|&share| share == 0) {
            let (name, steps) = (&tasks[experts[place]], stage.steps);
            return Err(refuse(format!(
                "steps is {steps} for {} experts: none is left for {name}",
                tasks.len()
            )));
        }
        phases.extend(experts.into_iter().zip(shares).map(|(task, steps)| Phase {
            stage: index,
            expert: Some(task),
            tasks: vec![task],
            steps,
        }));
    }
    Ok(phases)
}

/// The numbers of the tasks that a stage reads.
fn chosen(stage: &StageConfig, tasks: &[String]) -> Result<Vec<usize>, String> {
    if stage.tasks.is_empty() {
        return Ok((0..tasks.len()).collect());
    }
    let mut chosen = Vec::new();
    for (index, name) in stage.tasks.iter().enumerate() {
        let Some(number) = tasks.iter().position(|task| task == name) else {
            let known = tasks.join(", ");
            return Err(format!(
                "tasks.{index} is {name}, which is no task of this run: {known}"
            ));
        };
        if chosen.contains(&number) {
            return Err(format!("tasks.{index} is {name}, which is listed before"));
        }
        chosen.push(number);
    }
    Ok(chosen)
}

/// `total` divided as evenly as possible; earlier parts get what is left over.
fn shares(total: usize, parts: usize) -> Vec<usize> {
    let of = |part| total / parts + usize::from(part < total % parts);
    (0..parts).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Scope;
    use molora_models::ParameterKind;

    fn names() -> Vec<String> {
        ["a", "b", "c"].map(String::from).to_vec()
    }

    fn experts(steps: usize) -> StageConfig {
        StageConfig {
            scope: Scope::EachTask,
            ..StageConfig::new("experts", steps, &[ParameterKind::Adapters])
        }
    }

    #[test]
    fn steps_are_divided_between_experts() {
        let stages = [experts(8), StageConfig::joint(5)];
        let found = phases("mine", &stages, &names(), 0..3).expect("valid");
        let steps: Vec<_> = found
            .iter()
            .map(|phase| (phase.expert, phase.steps))
            .collect();
        assert_eq!(steps, [(Some(0), 3), (Some(1), 3), (Some(2), 2), (None, 5)]);
        assert_eq!(found[3].tasks, [0, 1, 2]);
        let error = phases("mine", &[experts(2)], &names(), 0..3).expect_err("too few");
        assert!(error.to_string().contains("none is left for c"), "{error}");
    }

    #[test]
    fn a_run_that_grows_trains_its_new_expert_alone() {
        let found = phases("mine", &[experts(8)], &names(), 2..3).expect("valid");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].expert, found[0].steps), (Some(2), 4));
    }

    #[test]
    fn a_stage_reads_the_tasks_that_it_names() {
        let mut stage = StageConfig::joint(1);
        stage.tasks = vec!["c".into(), "a".into()];
        let found = phases("mine", &[stage.clone()], &names(), 0..3).expect("valid");
        assert_eq!(found[0].tasks, [2, 0]);
        stage.tasks[1] = "d".into();
        let error = phases("mine", &[stage], &names(), 0..3).expect_err("no such task");
        let expected =
            "recipe `mine`: stages.0.tasks.1 is d, which is no task of this run: a, b, c";
        assert_eq!(error.to_string(), expected);
    }
}
