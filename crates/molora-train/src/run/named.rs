//! The tasks and experts of a run, by their names.

use std::path::Path;

use super::Opened;
use crate::error::{RunProblem, TrainError};

/// The number of a task among those of a run.
///
/// # Errors
/// [`TrainError::Run`] with the names that there are.
pub(crate) fn task_number<'a>(
    run: &Path,
    tasks: impl Iterator<Item = &'a str> + Clone,
    name: &str,
) -> Result<usize, TrainError> {
    let number = tasks.clone().position(|task| task == name);
    number.ok_or_else(|| {
        let problem = RunProblem::NoTask {
            task: name.into(),
            known: tasks.collect::<Vec<_>>().join(", "),
        };
        TrainError::run(run, problem)
    })
}

impl Opened {
    /// The number of one of the run's tasks.
    ///
    /// # Errors
    /// As [`task_number`].
    pub(crate) fn task_number(&self, run: &Path, name: &str) -> Result<usize, TrainError> {
        let names = self.config.tasks.iter().map(|task| &task.name[..]);
        task_number(run, names, name)
    }

    /// Names of the experts, where they have any; that of a general expert is the last one.
    pub(crate) fn expert_names(&self) -> Vec<String> {
        let spec = &self.config.recipe.adapter;
        if !spec.has_expert_per_task() {
            return Vec::new();
        }
        let names = self.config.tasks.iter().map(|task| task.name.clone());
        let general = spec.general.is_some().then(|| "general".to_owned());
        names.chain(general).collect()
    }
}

/// The number of one of `count` experts, by its name or its number.
///
/// # Errors
/// [`TrainError::Run`] with what there is.
pub(crate) fn expert_number(
    run: &Path,
    (names, count): (&[String], usize),
    name: &str,
) -> Result<usize, TrainError> {
    let by_name = names.iter().position(|other| other == name);
    let number = by_name.or_else(|| name.parse().ok().filter(|&number| number < count));
    number.ok_or_else(|| {
        let known = match names {
            [] => "expected a number".to_owned(),
            names => format!("there are {}, or a number", names.join(", ")),
        };
        let problem = RunProblem::NoExpert {
            name: name.into(),
            known,
            last: count.saturating_sub(1),
        };
        TrainError::run(run, problem)
    })
}
