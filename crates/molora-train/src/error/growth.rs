//! Why an expert cannot join a run, or leave it.

/// Why an expert cannot join a run or leave it; the error names the run in front of this.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the texts say what their fields are")]
pub enum GrowthProblem {
    /// A recipe that cannot grow.
    #[error("recipe {recipe} cannot get another expert: {why}")]
    CannotGrow { recipe: String, why: &'static str },
    /// A task that cannot go, where experts belong to none.
    #[error(
        "recipe {recipe} trains no expert alone: only the task that was added last can go, {last}"
    )]
    TrainedTogether { recipe: String, last: String },
    /// An expert that is there already.
    #[error("has an expert of {task} already")]
    HasExpert { task: String },
    /// An expert that is not there, by its task.
    #[error("has no expert of {task}; there are: {known}")]
    NoExpertOf { task: String, known: String },
    /// The last expert, which stays.
    #[error("{task} is its only expert, expected another one to stay")]
    OnlyExpert { task: String },
    /// An addition that was begun in another way.
    #[error(
        "the expert was begun with other data, another group or beside other experts: give the same \
         options, or remove this folder"
    )]
    BegunOtherwise,
    /// A new expert without a group.
    #[error(
        "task {task} has no group in its task.json; name one of this run's with --group, or a new one: \
         {known}"
    )]
    NoGroup { task: String, known: String },
    /// A group for a method that has none.
    #[error("recipe {recipe} has no groups of experts, but {group} is given")]
    NoGroups { recipe: String, group: String },
    /// A stage that would be left without a task.
    #[error("stage {stage} trains on {task} alone")]
    StageOfOneTask { stage: String, task: String },
}
