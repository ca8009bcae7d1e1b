//! The router: a scorer, a selection and a normaliser, for tokens, sequences or tasks.

mod config;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, activation::softmax};
use molora_kernels::random::{Seed, normal, uniform};
use molora_parts::{Axis, ParameterKind, PartTensor};

use crate::normaliser::{Normaliser, Scores, Weighed};
use crate::pool::without_padding;
use crate::scorer::{ScoreInput, Scored, Scorer};
use crate::{Guidance, Pooling, RoutedPart, RouterOutput, Selected, Selection};
pub use config::{Granularity, RouteFrom, RouterConfig};

/// What a router reads.
#[derive(Debug, Clone)]
pub struct RouteInput {
    /// Features of every token, `[B, T, F]`.
    pub features: Tensor<3>,
    /// 1 for real tokens, 0 for padding, `[B, T]`.
    pub mask: Tensor<2>,
    /// Rows that pick each sequence's task, `[B, tasks]`: one-hot, or uniform for an unknown task.
    /// Decisions per task need it.
    pub tasks: Option<Tensor<2>>,
    /// The columns of the site's shared down-projection, `[F, R]`; a scorer that
    /// [reads them](Router::reads_columns) needs them.
    pub columns: Option<Tensor<2>>,
}

/// Weights over experts from features.
#[derive(Module, Debug)]
pub struct Router {
    /// The scorer with its parameters.
    pub scorer: Scorer,
    /// Task embeddings of decisions per task, `[tasks, F]`.
    pub task_embedding: Option<Param<Tensor<2>>>,
    /// How the logits of the selected experts become weights.
    pub normaliser: Normaliser,
    #[module(skip)]
    granularity: Granularity,
    #[module(skip)]
    pooling: Pooling,
    #[module(skip)]
    selection: Selection,
    temperature: f64,
    noise: f64,
    is_uniform: bool,
    groups: usize,
    relaxed: bool,
    reads_columns: bool,
}

impl Router {
    /// What one decision is taken for.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Whether every decision gives all experts the same weight, one in all.
    pub fn is_uniform(&self) -> bool {
        self.is_uniform
    }

    /// Whether weights are what the normaliser makes of all scores: no selection, and a temperature of 1.
    pub fn is_plain(&self) -> bool {
        self.selection == Selection::Dense && self.temperature == 1.0
    }

    /// Number of decisions that are taken from the same features: for groups of ranks, or of outputs.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Whether the scorer reads the columns of a down-projection.
    pub fn reads_columns(&self) -> bool {
        self.reads_columns
    }

    /// The most experts that take part in a decision, of so many.
    pub fn most_selected(&self, num_experts: usize) -> usize {
        self.selection.most(num_experts)
    }

    /// Every tensor.
    pub fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let embedding = self.task_embedding.iter_mut().map(|embedding| {
            let [tasks, width] = embedding.dims();
            let (rows, columns) = ([Axis::Task.of(tasks)], [Axis::Feature.of(width)]);
            let name = "router.task_embedding";
            PartTensor::matrix(name, ParameterKind::Routers, embedding, &rows, &columns)
        });
        let is_split = self.scorer.groups_are_experts();
        let groups = Axis::Group.of(self.groups);
        let scorer = self.scorer.tensors().into_iter();
        let scorer = scorer.map(|tensor| match is_split {
            true => tensor.split(Axis::Expert, groups),
            false => tensor,
        });
        let mut tensors: Vec<_> = scorer.collect();
        tensors.extend(embedding);
        tensors.extend(self.normaliser.tensors());
        tensors
    }

    /// The row of each expert that its score is computed from, `[E, F]`, where there is just one.
    pub fn rows(&self) -> Option<Tensor<2>> {
        self.scorer.clone().rows().map(|rows| rows.val())
    }

    /// Replaces the rows by others, `[E, F]`.
    ///
    /// # Panics
    /// If the scorer has no such rows. One whose rows do [not come from training](crate::scorer::RowsFrom)
    /// has them.
    pub fn set_rows(&mut self, rows: Tensor<2>) {
        let own = self
            .scorer
            .rows()
            .expect("a scorer with a row for each expert");
        *own = Param::from_tensor(rows);
    }

    /// The keys `[E, F]` of a scorer that compares with keys.
    pub fn keys(&self) -> Option<Tensor<2>> {
        self.scorer.keys()
    }

    /// Takes the decisions for a batch.
    ///
    /// # Panics
    /// If decisions are per task and `input.tasks` is `None`, or per token and the mask is for other
    /// tokens.
    pub fn route(&self, input: &RouteInput) -> RouterOutput {
        self.route_guided(input, &Guidance::default())
    }

    /// Takes the decisions for a batch, guided from outside the features.
    ///
    /// # Panics
    /// As [`route`](Self::route), and if a tensor of the guidance is not `[B, E]`.
    pub fn route_guided(&self, input: &RouteInput, guidance: &Guidance) -> RouterOutput {
        self.route_in_training(input, guidance, None)
    }

    /// As [`route_guided`](Self::route_guided), in training: noise, where there is any, is drawn from
    /// the key.
    ///
    /// # Panics
    /// As [`route_guided`](Self::route_guided).
    pub fn route_in_training(
        &self,
        input: &RouteInput,
        guidance: &Guidance,
        key: Option<Seed>,
    ) -> RouterOutput {
        let (features, counted) = self.features(input, guidance);
        let mut scored = self.scored(&features, input, guidance);
        let decided = scored.decided.take();
        let [batch, decisions, all] = scored.logits.dims();
        let part = |probs: Tensor<3>| RoutedPart {
            counted: match probs.dims()[1] == decisions {
                true => counted.clone(),
                false => counted.clone().max_dim(1),
            },
            probs,
        };
        let parts = scored.parts.into_iter().map(part).collect();
        let scores = self.disturbed(scored.logits, key);
        let logits = guidance.biased(scores.div_scalar(self.temperature), self.groups);
        let (groups, experts) = (self.groups, all / self.groups);
        let by_group = |of: Tensor<3>| of.reshape([batch, decisions * groups, experts]);
        let (for_groups, counted) = self.for_groups(features.clone(), counted.clone());
        let (logits, probs, weighed) = match self.normaliser.is_joint() {
            // All groups' scores become weights together.
            true => {
                let probs = softmax(logits.clone(), 2);
                let scores = Scores {
                    features,
                    logits: logits.clone(),
                    probs: probs.clone(),
                    selected: None,
                };
                let prior = guidance.similarities.clone();
                let weights = self
                    .normaliser
                    .blend(scores, prior.map(|p| p.unsqueeze_dim(1)));
                let weighed = Weighed::new(by_group(weights), None);
                (by_group(logits), by_group(probs), weighed)
            }
            false => {
                let logits = by_group(logits);
                let probs = softmax(logits.clone(), 2);
                let scores = Scores {
                    features: for_groups,
                    logits: logits.clone(),
                    probs: probs.clone(),
                    selected: None,
                };
                let weighed = match decided {
                    Some(decided) => {
                        let selected = decided.selected.reshape(logits.dims());
                        Weighed::new(decided.weights.reshape(logits.dims()), Some(selected))
                    }
                    None => weigh(self.selection, &self.normaliser, scores),
                };
                (logits, probs, weighed)
            }
        };
        let weighed = guidance.decided(guidance.drawn(weighed, key));
        RouterOutput {
            logits,
            probs,
            weights: weighed.weights,
            selected: weighed.selected,
            learned: weighed.learned,
            parts,
            counted,
            reaches_all: self.selection.reaches_all(),
        }
    }

    /// Scores with the noise of a training step.
    fn disturbed(&self, mut scores: Tensor<3>, key: Option<Seed>) -> Tensor<3> {
        let Some(key) = key else {
            return scores;
        };
        let (shape, device) = (scores.dims(), scores.device());
        if self.relaxed {
            scores = scores + logistic(shape, key.child("relaxed"), &device);
        }
        if self.noise > 0.0 {
            scores = scores + normal(shape, self.noise, key.child("noise"), &device);
        }
        scores
    }

    /// Features and what counts, once for each group: groups of a token lie one after another.
    fn for_groups(&self, features: Tensor<3>, counted: Tensor<2>) -> (Tensor<3>, Tensor<2>) {
        if self.groups == 1 {
            return (features, counted);
        }
        let ([batch, tokens, width], groups) = (features.dims(), self.groups);
        let features = features
            .unsqueeze_dim::<4>(2)
            .expand([batch, tokens, groups, width])
            .reshape([batch, tokens * groups, width]);
        let counted = counted
            .unsqueeze_dim::<3>(2)
            .expand([batch, tokens, groups])
            .reshape([batch, tokens * groups]);
        (features, counted)
    }

    /// One row of scores per decision, of all groups side by side.
    fn scored(&self, features: &Tensor<3>, input: &RouteInput, guidance: &Guidance) -> Scored {
        let score = |features: Tensor<3>| {
            self.scorer.score_rows(&ScoreInput {
                features,
                tasks: input.tasks.clone(),
                clusters: guidance.clusters.clone(),
                columns: input.columns.clone(),
                bias: guidance.bias.clone(),
            })
        };
        if self.granularity != Granularity::Sequence || self.pooling != Pooling::Scores {
            return score(features.clone());
        }
        let mask = guidance.prompt.as_ref().unwrap_or(&input.mask);
        let Scored {
            logits,
            parts,
            decided: _,
        } = score(without_padding(input.features.clone(), mask.clone()));
        let pool = |tokens: Tensor<3>| match tokens.dims()[1] == mask.dims()[1] {
            true => self.pooling.pool(tokens, mask.clone()),
            // What is one for the sequence already.
            false => tokens,
        };
        Scored {
            logits: pool(logits),
            parts: parts.into_iter().map(pool).collect(),
            decided: None,
        }
    }

    /// One row of features per decision `[B, T', F]`, and which decisions count `[B, T']`.
    fn features(&self, input: &RouteInput, guidance: &Guidance) -> (Tensor<3>, Tensor<2>) {
        let valid_b1 = || input.mask.clone().max_dim(1);
        match (self.granularity, &self.task_embedding) {
            (Granularity::Token, _) => {
                let [batch, tokens, _] = input.features.dims();
                let expected = "one entry of the mask for every token";
                assert_eq!(input.mask.dims(), [batch, tokens], "{expected}");
                (input.features.clone(), input.mask.clone())
            }
            (Granularity::Task, embedding) => {
                let tasks = input.tasks.clone();
                let tasks = tasks.expect("decisions per task are given tasks");
                let features = match embedding {
                    Some(embedding) => tasks.matmul(embedding.val()),
                    None => tasks,
                };
                (features.unsqueeze_dim(1), valid_b1())
            }
            _ => {
                let mask = guidance.prompt.as_ref().unwrap_or(&input.mask).clone();
                let features = input.features.clone();
                (self.pooling.pool(features, mask), valid_b1())
            }
        }
    }
}

/// Draws of a logistic variable, the log odds of a uniform one: added to a logit before a sigmoid they
/// make it a relaxed Bernoulli variable (Maddison et al., arXiv:1611.00712, appendix B).
fn logistic(shape: [usize; 3], seed: Seed, device: &Device) -> Tensor<3> {
    // Of numbers from -1 to 1, the ends of which have no finite odds.
    let uniform = uniform(shape, 1.0 - 1e-6, seed, device);
    (uniform.clone() + 1.0).log() - (uniform.neg() + 1.0).log()
}

/// Weights of the experts that a selection takes, and which those are.
pub(crate) fn weigh(selection: Selection, normaliser: &Normaliser, scores: Scores) -> Weighed {
    match selection.select(&scores.logits, &scores.probs) {
        Selected::One(best) => Weighed::new(best.clone().float(), Some(best)),
        Selected::StraightThrough(best) => {
            // The difference is exactly 0, so the weight is exactly 1.
            let gradient = scores.probs.clone() - scores.probs.detach();
            Weighed::new(best.clone().float() + gradient, Some(best))
        }
        Selected::All => normaliser.weigh(scores),
        Selected::These(selected) => normaliser.weigh(Scores {
            selected: Some(selected),
            ..scores
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scorer::CosineConfig;
    use crate::scorer::{LinearConfig, ScorerConfig};
    use molora_testkit::{FORWARD, assert_close};

    fn input(device: &Device) -> RouteInput {
        RouteInput {
            features: uniform([2, 3, 4], 1.0, Seed::new(1), device),
            mask: Tensor::from_data([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]], device),
            tasks: None,
            columns: None,
        }
    }

    fn router(config: RouterConfig, device: &Device) -> Router {
        config.init(4, 3, 2, Seed::new(2), device)
    }

    #[test]
    fn weights_of_every_decision_sum_to_one() {
        let device = molora_testkit::device();
        let linear = LinearConfig { bias: true };
        for scorer in [linear.into(), ScorerConfig::from(CosineConfig)] {
            for selection in [Selection::Dense, Selection::TopK(2)] {
                let config = RouterConfig {
                    scorer: scorer.clone(),
                    selection,
                    ..Default::default()
                };
                let routed = router(config, &device).route(&input(&device));
                let ones = Tensor::<3>::ones([2, 3, 1], &device);
                assert_close(routed.weights.sum_dim(2), ones, FORWARD, "sums");
            }
        }
    }

    #[test]
    fn a_sequence_decides_by_its_real_tokens() {
        let device = molora_testkit::device();
        let config = RouterConfig {
            granularity: Granularity::Sequence,
            ..Default::default()
        };
        let router = router(config, &device);
        let before = router.route(&input(&device));
        assert_eq!(before.weights.dims(), [2, 1, 3]);
        let mut changed = input(&device);
        let junk = Tensor::full([1, 1, 4], f32::INFINITY, &device);
        changed.features = changed.features.slice_assign([1..2, 2..3, 0..4], junk);
        assert_close(
            router.route(&changed).weights,
            before.weights,
            0.0,
            "weights",
        );
    }

    /// A score that is linear in the features does not depend on which of the two is averaged.
    #[test]
    fn averaged_scores_are_those_of_real_tokens() {
        let device = molora_testkit::device();
        let config = |pooling| RouterConfig {
            granularity: Granularity::Sequence,
            pooling,
            ..Default::default()
        };
        let mut padded = input(&device);
        let junk = Tensor::full([1, 1, 4], f32::INFINITY, &device);
        padded.features = padded.features.slice_assign([1..2, 2..3, 0..4], junk);
        let by = |pooling| router(config(pooling), &device).route(&padded);
        let (found, expected) = (by(Pooling::Scores), by(Pooling::Mean));
        assert_close(found.logits, expected.logits, FORWARD, "logits");
    }

    #[test]
    fn a_task_decides_for_all_its_rows_and_unknown_ones_take_the_mean() {
        let device = molora_testkit::device();
        let config = RouterConfig {
            granularity: Granularity::Task,
            ..Default::default()
        };
        let router = router(config, &device);
        let mut by_task = input(&device);
        by_task.tasks = Some(Tensor::from_data([[0.0, 1.0], [0.5, 0.5]], &device));
        let routed = router.route(&by_task);
        assert_eq!(routed.logits.dims(), [2, 1, 3]);
        let table = router.task_embedding.as_ref().expect("a table").val();
        let mean = router.scorer.score(table.mean_dim(0)).reshape([1, 1, 3]);
        assert_close(routed.logits.narrow(0, 1, 1), mean, FORWARD, "unknown task");
    }

    #[test]
    fn temperature_zero_is_refused() {
        let config = RouterConfig {
            temperature: 0.0,
            ..Default::default()
        };
        let message = config.validate(3).expect_err("temperature 0").to_string();
        assert_eq!(
            message,
            "temperature is 0, expected a finite number above 0"
        );
    }

    #[test]
    fn a_sigmoid_among_the_selections_is_a_normaliser() {
        let read = |text: &str| serde_json::from_str::<RouterConfig>(text);
        let old = read(r#"{"selection": "sigmoid"}"#).expect("an older file");
        let new = read(r#"{"normaliser": "sigmoid"}"#).expect("a file of today");
        assert_eq!(old, new);
        let error = read(r#"{"selecton": "dense"}"#).expect_err("misspelt");
        assert!(error.to_string().contains("unknown field `selecton`"));
    }
}
