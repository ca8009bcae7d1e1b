//! The stages in which a mixture that was trained together learns one more task.

use molora_models::Growth;

use super::{Recipe, ScheduleConfig, StageConfig};

impl Recipe {
    /// The stages in which a mixture whose experts were trained together, for so many tasks, learns one
    /// more, where nothing but what is new trains: the recipe's `growth` stages, if it has any. Without
    /// them its own stages, on the new task's data, with as many steps as each of the old ones had; then,
    /// if an expert has joined the others, the last of them on the data of all tasks with as many steps again,
    /// as that expert takes part in their rows, too.
    ///
    /// There is no weight decay, which would also move what is old in a common tensor.
    pub(crate) fn growth_together(
        &self,
        growth: Growth,
        task: &str,
        old_tasks: usize,
    ) -> Vec<StageConfig> {
        if !self.growth.is_empty() {
            return self.growth.iter().map(without_decay).collect();
        }
        let of = |stage: &StageConfig, whose: &str, tasks: &[&str]| StageConfig {
            name: format!("{}-{whose}", stage.name),
            tasks: tasks.iter().map(|task| (*task).to_owned()).collect(),
            steps: (stage.steps / old_tasks).max(1),
            schedule: ScheduleConfig {
                restart_at: 0,
                ..stage.schedule.clone()
            },
            ..without_decay(stage)
        };
        let trains = |stage: &&StageConfig| stage.transform.is_none();
        let trained = self.stages.iter().filter(trains);
        let mut stages: Vec<_> = trained.map(|stage| of(stage, task, &[task])).collect();
        if growth == Growth::Expert {
            let last = self.stages.iter().rfind(trains);
            stages.extend(last.map(|stage| of(stage, &format!("{task}-all"), &[])));
        }
        stages
    }
}

fn without_decay(stage: &StageConfig) -> StageConfig {
    let mut stage = stage.clone();
    stage.optimizer.weight_decay = 0.0;
    stage.optimizer.weight_decays.clear();
    stage.optimizer.up_weight_decay = None;
    stage
}

#[cfg(test)]
mod tests {
    use crate::recipe::find;
    use molora_models::Growth;

    #[test]
    fn a_new_task_gets_the_steps_of_an_old_one_and_an_expert_meets_all() {
        let mut recipe = find("samora").expect("listed");
        recipe.stages[0].optimizer.weight_decay = 0.1;
        let stages = recipe.growth_together(Growth::Expert, "weather", 8);
        let found: Vec<_> = stages
            .iter()
            .map(|stage| (&stage.name[..], stage.steps, stage.tasks.len()))
            .collect();
        let expected = [("joint-weather", 75, 1), ("joint-weather-all", 75, 0)];
        assert_eq!(found, expected);
        assert!(stages.iter().all(|s| s.optimizer.weight_decay == 0.0));
        assert_eq!(stages[0].trainable, recipe.stages[0].trainable);
        let apart = recipe.growth_together(Growth::Task, "weather", 1000);
        assert_eq!((apart.len(), apart[0].steps), (1, 1));
    }
}
