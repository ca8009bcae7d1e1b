//! What can be wrong with a router's configuration.

/// An invalid value in a router's configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RoutingError {
    /// More experts are to be selected than there are.
    #[error("top_k {top_k} exceeds num_experts {num_experts}")]
    TopKTooLarge {
        /// Configured number of selected experts.
        top_k: usize,
        /// Number of experts.
        num_experts: usize,
    },
    /// No expert would be selected.
    #[error("top_k is 0, expected at least 1")]
    TopKZero,
    /// A temperature that would divide by zero or flip the order.
    #[error("temperature is {0}, expected a finite number above 0")]
    Temperature(f64),
    /// A probability mass out of its range.
    #[error("top_p is {0}, expected a number from 0 to 1")]
    TopP(f64),
    /// A floor under probabilities that none would reach.
    #[error("floor is {0}, expected at least 0 and less than 1")]
    Floor(f64),
    /// A largest threshold out of its range.
    #[error("theta_max is {0}, expected a number above 0 and at most 1")]
    Threshold(f64),
    /// A temperature of one level of a grouped scorer that would divide by zero or flip the order.
    #[error("{field} is {value}, expected a finite number above 0")]
    GroupTemperature {
        /// Name of the level's temperature.
        field: &'static str,
        /// What was configured.
        value: f64,
    },
    /// A group whose weight no expert could get.
    #[error("group {group} has no experts, expected at least one")]
    EmptyGroup {
        /// Number of the group.
        group: usize,
    },
    /// A group that names an expert that does not exist.
    #[error("group {group} names expert {expert}, but there are {num_experts} experts")]
    UnknownExpert {
        /// The expert named.
        expert: usize,
        /// Number of the group.
        group: usize,
        /// Number of experts.
        num_experts: usize,
    },
    /// An expert that is named more than once.
    #[error("expert {expert} is in groups {first} and {second}, expected one group")]
    ExpertInTwoGroups {
        /// The expert.
        expert: usize,
        /// The first group that names it.
        first: usize,
        /// The second one, which may be the same.
        second: usize,
    },
    /// An expert that could never get any weight.
    #[error("expert {expert} is in no group, expected one")]
    ExpertWithoutGroup {
        /// The expert.
        expert: usize,
    },
    /// A group of tasks without any.
    #[error("group {group} has no tasks, expected at least one")]
    EmptyTaskGroup {
        /// Name of the group.
        group: String,
    },
    /// A group that names a task that does not exist.
    #[error("group {group} names {task}, which is no task of this run: {known}")]
    UnknownTask {
        /// Name of the group.
        group: String,
        /// The task named.
        task: String,
        /// The tasks that there are.
        known: String,
    },
    /// A task that is named more than once.
    #[error("task {task} is in groups {first} and {second}, expected one group")]
    TaskInTwoGroups {
        /// The task.
        task: String,
        /// The first group that names it.
        first: String,
        /// The second one, which may be the same.
        second: String,
    },
    /// A task whose expert would be in no group.
    #[error("task {task} is in no group, expected one")]
    TaskWithoutGroup {
        /// The task.
        task: String,
    },
    /// A normaliser of all groups' scores under a selection of some.
    #[error(
        "the normaliser {0} weighs the experts of all groups together, expected selection = \"dense\""
    )]
    JointSelection(&'static str),
    /// More pairs of vectors are to be selected than there are vectors.
    #[error("selected is {selected}, expected at most {most}, the number of {what}")]
    Selected {
        /// Configured number of pairs.
        selected: usize,
        /// Number of vectors.
        most: usize,
        /// Which vectors.
        what: &'static str,
    },
    /// A weight of conditional scores out of its range.
    #[error("condition is {0}, expected a finite number of at least 0")]
    Condition(f64),
    /// A scorer that decides by itself, beside something else that would.
    #[error(
        "the scorer {0} selects and weighs by itself, expected selection = \"dense\", normaliser = \"softmax\", \
         temperature = 1 and no noise"
    )]
    ScorerDecides(&'static str),
    /// A bound of start values out of its range.
    #[error("bound is {0}, expected a finite number of at least 0")]
    Bound(f64),
    /// A rate that would move a bias to no number, or the wrong way.
    #[error("rate is {0}, expected a finite number of at least 0")]
    Rate(f64),
    /// A number that has to be at least one is zero.
    #[error("{field} is 0, expected at least 1")]
    Zero {
        /// Name of the field.
        field: &'static str,
    },
    /// A label of an expert that does not exist.
    #[error("row {row} has label {label}, but there are {num_experts} experts")]
    Label {
        /// The row of the batch.
        row: usize,
        /// Its label.
        label: usize,
        /// Number of experts.
        num_experts: usize,
    },
    /// A scorer that reads tasks, under decisions that are not per task.
    #[error("the scorer {0} reads which task a row belongs to, expected granularity = \"task\"")]
    ScorerOfTasks(&'static str),
    /// A scorer that reads clusters, under decisions that are not per sequence.
    #[error(
        "the scorer {0} reads which cluster a sequence belongs to, expected granularity = \"sequence\""
    )]
    ScorerOfClusters(&'static str),
    /// A deviation of the noise that no draw has.
    #[error("noise is {0}, expected a finite number of at least 0")]
    Noise(f64),
    /// A number that has to be finite is not.
    #[error("{field} is {value}, expected a finite number")]
    NotFinite {
        /// Name of the field.
        field: &'static str,
        /// What was configured.
        value: f64,
    },
    /// A width of zero.
    #[error("task_width is 0, expected at least 1")]
    TaskWidth,
}
