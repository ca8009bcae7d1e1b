//! Scorers: features in, logits over experts out. One file each, and one line in the list below.
//!
//! | scorer | score of expert e for features u | from |
//! |---|---|---|
//! | `linear` | `<w_e, u> (+ b_e)` | HydraLoRA, MoSLD, Mixture-of-LoRAs |
//! | `cosine` | `cos(k_e, u)` | SAMoRA |
//! | `prototype` | `<std(v_e), std(u)> / sqrt(F)` | PHATGOOSE, GLIDER |
//! | `arrow` | size of `<v_e, u>` | Arrow |
//! | `uniform` | 0 | |
//! | `grouped` | log of (weight of its group times weight inside it) | AT-MoE |
//! | `magnitude` | `sum_r |z_er + d_e|` of its own code z | FlyLoRA |
//! | `perceptron` | `W2 relu(W1 u + b1) + b2` | WEMoE |
//! | `table` | entry of the row's task, whatever u is | MTL-LoRA, Poly |
//! | `per_task` | `<w_te, u>` for a row of task t | Mod-Squad |
//! | `task_prompt` | `<w_e, u + t>` for a row of the task with prompt t | JiuZhang |
//! | `cluster` | `<w_e, c> + b_e`, c the embedding of the sequence's cluster | MoCLE |
//! | `conditional` | log of the probability of a pair (down-vector, up-vector) | conditional mixture of LoRA |
//! | `blend` | log of the blend of a softmax by u and one by the row's task | HMoRA |

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Tensor};
use molora_kernels::random::{Seed, uniform};
use molora_parts::{Axis, ParameterKind, PartTensor};

use crate::RoutingError;

/// The tasks whose experts form a group, by the group's name.
pub type TaskGroups = BTreeMap<String, Vec<String>>;

/// How many there are of what a scorer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScorerDims {
    /// Width F of the features.
    pub features: usize,
    /// Number of experts E.
    pub experts: usize,
    /// Number of tasks.
    pub tasks: usize,
    /// Number of decisions from the same features, whose experts are counted in `experts` together.
    pub groups: usize,
}

/// What a scorer's input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Features of tokens, sequences or tasks, `[N, F]`.
    Features,
    /// Rows that pick a task, `[N, tasks]`: one-hot, or uniform for an unknown one.
    Tasks,
    /// The low-rank codes of all experts side by side, `[N, E*R]`.
    Codes,
    /// Features, and which task each row of the batch belongs to.
    FeaturesAndTasks,
    /// Which cluster each sequence belongs to.
    Clusters,
    /// Features, and the columns of the site's shared down-projection.
    FeaturesAndColumns,
}

/// What a scorer may read of a batch.
#[derive(Debug, Clone)]
pub struct ScoreInput {
    /// Features of every decision, or what else the scorer [reads](Reads), `[B, T', F]`.
    pub features: Tensor<3>,
    /// Rows that pick each sequence's task, `[B, tasks]`, if that is known.
    pub tasks: Option<Tensor<2>>,
    /// Rows that pick each sequence's cluster, `[B, clusters]`, if that is known.
    pub clusters: Option<Tensor<2>>,
    /// The columns of the site's shared down-projection, `[F, R]`, if the scorer reads them.
    pub columns: Option<Tensor<2>>,
    /// What is added to every sequence's scores from outside, `[B, E]`, for a scorer that
    /// [decides](ScorerNumbers::decides); minus infinity bars an expert.
    pub bias: Option<Tensor<2>>,
}

impl ScoreInput {
    /// Features alone, `[B, T', F]`.
    pub fn new(features: Tensor<3>) -> Self {
        Self {
            features,
            tasks: None,
            clusters: None,
            columns: None,
            bias: None,
        }
    }
}

/// The scores of a batch.
#[derive(Debug, Clone)]
pub struct Scored {
    /// A score for every decision and expert, `[B, T', E]`.
    pub logits: Tensor<3>,
    /// The probabilities that the scores were blended from, `[B, T', E]` or, of decisions for whole
    /// sequences, `[B, 1, E]`; none if they were not.
    pub parts: Vec<Tensor<3>>,
    /// What takes part, where the scorer [decides](ScorerNumbers::decides) that as well.
    pub decided: Option<Decided>,
}

/// The decisions of a scorer that takes them itself.
#[derive(Debug, Clone)]
pub struct Decided {
    /// Weights, `[B, T', E]`.
    pub weights: Tensor<3>,
    /// Which experts were selected, `[B, T', E]`.
    pub selected: Tensor<3, Bool>,
}

impl Scored {
    /// Scores that are not blended.
    pub fn new(logits: Tensor<3>) -> Self {
        Self {
            logits,
            parts: Vec::new(),
            decided: None,
        }
    }
}

/// Where a scorer's row for an expert comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsFrom {
    /// It is trained with the others.
    Training,
    /// It is the gate that was trained with the expert alone (`collect_prototypes`).
    Gates,
    /// It is computed from the expert's own matrices (`collect_directions`).
    Experts,
}

/// The numbers of a scorer.
pub trait ScorerNumbers {
    /// The scorer with its parameters.
    type Scorer: Score;

    /// A fresh scorer.
    ///
    /// # Panics
    /// If [`validate`](Self::validate) refuses the number of experts.
    fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> Self::Scorer;

    /// Checks what depends on the number of experts.
    ///
    /// # Errors
    /// The first number that is out of its range.
    fn validate(&self, _num_experts: usize) -> Result<(), RoutingError> {
        Ok(())
    }

    /// Checks what depends on the number of columns of the down-projection that the scorer reads.
    ///
    /// # Errors
    /// The first number that is out of its range.
    fn validate_columns(&self, _columns: usize) -> Result<(), RoutingError> {
        Ok(())
    }

    /// What the scorer reads.
    fn reads(&self) -> Reads {
        Reads::Features
    }

    /// Where the row of an expert comes from.
    fn rows_from(&self) -> RowsFrom {
        RowsFrom::Training
    }

    /// Whether the score is the cosine with a key for each expert.
    fn has_keys(&self) -> bool {
        false
    }

    /// Whether all experts have the same score.
    fn is_uniform(&self) -> bool {
        false
    }

    /// Whether the scorer selects and weighs experts as well, so that there is nothing left to a selection
    /// and a normaliser.
    fn decides(&self) -> bool {
        false
    }

    /// Why a trained scorer cannot get one more expert, where it cannot.
    fn is_full(&self) -> Option<&'static str> {
        None
    }

    /// Whether all that a row is scored by belongs to its task alone: one more task then leaves the scores of
    /// the others as they are.
    fn is_apart_by_task(&self) -> bool {
        false
    }

    /// The groups of tasks whose experts belong together, where the scorer has groups.
    fn task_groups(&mut self) -> Option<&mut TaskGroups> {
        None
    }

    /// Settles what depends on which tasks there are, where each has an expert.
    ///
    /// # Errors
    /// Groups that do not fit the tasks.
    fn for_tasks(&mut self, _tasks: &[String]) -> Result<(), RoutingError> {
        Ok(())
    }

    /// Settles what depends on the layer, where start values do.
    fn at_layer(&mut self, _layer: usize, _num_layers: usize) {}

    /// The number of clusters, where the scorer reads which one a sequence belongs to.
    fn num_clusters(&self) -> Option<usize> {
        None
    }
}

/// A scorer with its parameters.
pub trait Score: Module {
    /// `[N, F]`, or what else the scorer [reads](Reads), to logits `[N, E]`.
    fn score(&self, features: Tensor<2>) -> Tensor<2>;

    /// The scores of a batch; by [`score`](Self::score) alone, unless more than features is read.
    fn score_rows(&self, input: &ScoreInput) -> Scored {
        let [batch, decisions, width] = input.features.dims();
        let rows = input.features.clone().reshape([batch * decisions, width]);
        let scores = self.score(rows);
        let experts = scores.dims()[1];
        Scored::new(scores.reshape([batch, decisions, experts]))
    }

    /// Whether the experts of every group are so many more experts to the scorer, with rows of their own.
    fn groups_are_experts(&self) -> bool {
        true
    }

    /// Every tensor.
    fn tensors(&mut self) -> Vec<PartTensor<'_>>;

    /// A row for each expert that its score is computed from, `[E, F]`, where there is just one.
    fn rows(&mut self) -> Option<&mut Param<Tensor<2>>> {
        None
    }

    /// The keys `[E, F]`, where the score is the cosine with a key.
    fn keys(&self) -> Option<Tensor<2>> {
        None
    }

    /// Whether a step [`balance`](Self::balance)s the scorer by how often experts were chosen.
    fn is_balanced(&self) -> bool {
        false
    }

    /// Moves what is no gradient's after a step, from the number of decisions that chose each expert,
    /// `[E]`, and the number of all, `[1]`.
    fn balance(&mut self, _counts: Tensor<1>, _decisions: Tensor<1>) {}
}

/// Makes both enums of the axis and hands every call on.
macro_rules! scorers {
    ($($(#[$doc:meta])* $name:literal => $file:ident::$Variant:ident($Numbers:ident, $Scorer:ident)),* $(,)?) => {
        $(
            mod $file;
            pub use $file::{$Numbers, $Scorer};
        )*

        molora_parts::choices! {
            /// Which score an expert gets from the features.
            pub enum ScorerConfig {
                $($(#[$doc])* $name => $Variant($Numbers),)*
            }
        }

        /// A scorer of any kind.
        #[derive(Module, Debug)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, reason = "there is one in a site, and few sites")]
        pub enum Scorer {
            $(#[doc = concat!("See [`", stringify!($Scorer), "`].")] $Variant($Scorer),)*
        }

        /// The same call for whatever scorer it is.
        macro_rules! each {
            ($of:ident, $scorer:expr, $part:ident => $call:expr) => {
                match $scorer {
                    $($of::$Variant($part) => $call,)*
                }
            };
        }

        impl ScorerConfig {
            /// A fresh scorer.
            ///
            /// # Panics
            /// If [`validate`](Self::validate) refuses the number of experts.
            pub fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> Scorer {
                match self {
                    $(Self::$Variant(numbers) => Scorer::$Variant(numbers.init(dims, seed, device)),)*
                }
            }
        }
    };
}

scorers! {
    "linear" => linear::Linear(LinearConfig, LinearScorer),
    "cosine" => cosine::Cosine(CosineConfig, CosineScorer),
    "prototype" => prototype::Prototype(PrototypeConfig, PrototypeScorer),
    "arrow" => arrow::Arrow(ArrowConfig, ArrowScorer),
    "uniform" => uniform::Uniform(UniformConfig, UniformScorer),
    "grouped" => grouped::Grouped(GroupedConfig, GroupedScorer),
    "perceptron" => perceptron::Perceptron(PerceptronConfig, PerceptronScorer),
    "table" => table::Table(TableConfig, TableScorer),
    "magnitude" => magnitude::Magnitude(MagnitudeConfig, MagnitudeScorer),
    "per_task" => per_task::PerTask(PerTaskConfig, PerTaskScorer),
    "task_prompt" => task_prompt::TaskPrompt(TaskPromptConfig, TaskPromptScorer),
    "conditional" => conditional::Conditional(ConditionalConfig, ConditionalScorer),
    "cluster" => cluster::Cluster(ClusterConfig, ClusterScorer),
    "blend" => blend::Blend(BlendConfig, BlendScorer),
}

pub use grouped::{WithinGroup, WithinScorer};
pub use magnitude::CountTarget;
pub use table::UnknownTask;

impl ScorerConfig {
    /// Checks what depends on the number of experts.
    ///
    /// # Errors
    /// The first number that is out of its range.
    pub fn validate(&self, num_experts: usize) -> Result<(), RoutingError> {
        each!(ScorerConfig, self, numbers => numbers.validate(num_experts))
    }

    /// See [`ScorerNumbers::validate_columns`].
    ///
    /// # Errors
    /// The first number that is out of its range.
    pub fn validate_columns(&self, columns: usize) -> Result<(), RoutingError> {
        each!(ScorerConfig, self, numbers => numbers.validate_columns(columns))
    }

    /// What the scorer reads.
    pub fn reads(&self) -> Reads {
        each!(ScorerConfig, self, numbers => numbers.reads())
    }

    /// Where the row of an expert comes from.
    pub fn rows_from(&self) -> RowsFrom {
        each!(ScorerConfig, self, numbers => numbers.rows_from())
    }

    /// Whether the score is the cosine with a key for each expert.
    pub fn has_keys(&self) -> bool {
        each!(ScorerConfig, self, numbers => numbers.has_keys())
    }

    /// Whether all experts have the same score.
    pub fn is_uniform(&self) -> bool {
        each!(ScorerConfig, self, numbers => numbers.is_uniform())
    }

    /// Whether the scorer selects and weighs experts as well.
    pub fn decides(&self) -> bool {
        each!(ScorerConfig, self, numbers => numbers.decides())
    }

    /// See [`ScorerNumbers::is_full`].
    pub fn is_full(&self) -> Option<&'static str> {
        each!(ScorerConfig, self, numbers => numbers.is_full())
    }

    /// See [`ScorerNumbers::is_apart_by_task`].
    pub fn is_apart_by_task(&self) -> bool {
        each!(ScorerConfig, self, numbers => numbers.is_apart_by_task())
    }

    /// The groups of tasks whose experts belong together, where the scorer has groups.
    pub fn task_groups(&mut self) -> Option<&mut TaskGroups> {
        each!(ScorerConfig, self, numbers => numbers.task_groups())
    }

    /// Settles what depends on which tasks there are, where each has an expert.
    ///
    /// # Errors
    /// Groups that do not fit the tasks.
    pub fn for_tasks(&mut self, tasks: &[String]) -> Result<(), RoutingError> {
        each!(ScorerConfig, self, numbers => numbers.for_tasks(tasks))
    }

    /// Settles what depends on the layer, where start values do.
    pub fn at_layer(&mut self, layer: usize, num_layers: usize) {
        each!(ScorerConfig, self, numbers => numbers.at_layer(layer, num_layers));
    }

    /// The number of clusters, where the scorer reads which one a sequence belongs to.
    pub fn num_clusters(&self) -> Option<usize> {
        each!(ScorerConfig, self, numbers => numbers.num_clusters())
    }
}

impl Scorer {
    /// `[N, F]`, or what else the scorer [reads](Reads), to logits `[N, E]`.
    pub fn score(&self, features: Tensor<2>) -> Tensor<2> {
        each!(Scorer, self, scorer => scorer.score(features))
    }

    /// The scores of a batch.
    pub fn score_rows(&self, input: &ScoreInput) -> Scored {
        each!(Scorer, self, scorer => scorer.score_rows(input))
    }

    /// See [`Score::groups_are_experts`].
    pub fn groups_are_experts(&self) -> bool {
        each!(Scorer, self, scorer => scorer.groups_are_experts())
    }

    /// Every tensor.
    pub fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        each!(Scorer, self, scorer => scorer.tensors())
    }

    /// A row for each expert that its score is computed from, `[E, F]`, where there is just one.
    pub fn rows(&mut self) -> Option<&mut Param<Tensor<2>>> {
        each!(Scorer, self, scorer => scorer.rows())
    }

    /// The keys `[E, F]`, where the score is the cosine with a key.
    pub fn keys(&self) -> Option<Tensor<2>> {
        each!(Scorer, self, scorer => scorer.keys())
    }
}

impl Scorer {
    /// See [`Score::is_balanced`].
    pub fn is_balanced(&self) -> bool {
        each!(Scorer, self, scorer => scorer.is_balanced())
    }

    /// See [`Score::balance`].
    pub fn balance(&mut self, counts: Tensor<1>, decisions: Tensor<1>) {
        each!(Scorer, self, scorer => scorer.balance(counts, decisions));
    }
}

/// Scores `[N, E]` of features `[N, F]` whose task or cluster is unknown.
fn unknown_rows(scorer: &impl Score, features: Tensor<2>) -> Tensor<2> {
    let scored = scorer.score_rows(&ScoreInput::new(features.unsqueeze_dim(1)));
    scored.logits.squeeze_dim(1)
}

/// A tensor with a row for each expert, `[E, F]`.
fn rows_of_experts<'a>(name: &'static str, rows: &'a mut Param<Tensor<2>>) -> PartTensor<'a> {
    let [experts, width] = rows.dims();
    let (experts, features) = ([Axis::Expert.of(experts)], [Axis::Feature.of(width)]);
    PartTensor::matrix(name, ParameterKind::Routers, rows, &experts, &features)
}

/// Values from U(-1/sqrt(F), 1/sqrt(F)), PyTorch's default for linear layers and the reference
/// codes' choice for keys.
fn draw<const D: usize>(
    shape: [usize; D],
    d_features: usize,
    seed: Seed,
    device: &Device,
) -> Param<Tensor<D>> {
    let bound = 1.0 / (d_features as f64).sqrt();
    Param::from_tensor(uniform(shape, bound, seed, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_not_trained_can_be_put_in() {
        let dims = ScorerDims {
            features: 4,
            experts: 3,
            tasks: 2,
            groups: 1,
        };
        let from_elsewhere = ScorerConfig::all()
            .into_iter()
            .filter(|scorer| scorer.rows_from() != RowsFrom::Training);
        for config in from_elsewhere {
            let mut scorer = config.init(dims, Seed::new(0), &molora_testkit::device());
            let rows = scorer.rows().map(|rows| rows.dims());
            assert_eq!(rows, Some([3, 4]), "{}", config.name());
        }
    }
}
