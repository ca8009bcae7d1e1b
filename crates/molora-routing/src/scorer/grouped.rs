//! Two levels: a softmax over groups of experts, times a softmax inside each group.
//!
//! AT-MoE, arXiv:2410.10896, section 3. The weight of an expert is the product `w_G[g] v[g, e]`.
//! The score is its logarithm, so that the softmax that follows in every router gives the product
//! itself, as long as that router's own temperature is 1.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, Int, Tensor, activation::log_softmax};
use molora_kernels::random::Seed;
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Score, ScorerDims, ScorerNumbers, TaskGroups};
use crate::RoutingError;

/// What the weights inside a group depend on. The paper's formula has two consistent readings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WithinGroup {
    /// On one learned number per expert, times the weight of its group.
    Static,
    /// On the features, by one row of weights per expert.
    #[default]
    Token,
}

/// Which experts form which groups, and how each level is softened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GroupedConfig {
    /// The experts of each group; every expert is in exactly one. Where each task has an expert, they
    /// follow from `tasks`.
    pub groups: Vec<Vec<usize>>,
    /// What the weights inside a group depend on.
    pub within: WithinGroup,
    /// Scores of groups are divided by this, tau_g.
    pub group_temperature: f64,
    /// Scores inside a group are divided by this, tau_d.
    pub within_temperature: f64,
    /// The tasks whose experts form a group, by its name; those of the tasks' `task.json` if empty.
    #[serde(skip_serializing_if = "TaskGroups::is_empty")]
    pub tasks: TaskGroups,
}

impl Default for GroupedConfig {
    /// No groups yet, weights by token, both temperatures 1.
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            within: WithinGroup::Token,
            group_temperature: 1.0,
            within_temperature: 1.0,
            tasks: TaskGroups::new(),
        }
    }
}

impl GroupedConfig {
    /// The group of each expert.
    fn group_of(&self, num_experts: usize) -> Result<Vec<usize>, RoutingError> {
        let mut group_of = vec![None; num_experts];
        for (group, experts) in self.groups.iter().enumerate() {
            if experts.is_empty() {
                return Err(RoutingError::EmptyGroup { group });
            }
            for &expert in experts {
                let unknown = RoutingError::UnknownExpert {
                    expert,
                    group,
                    num_experts,
                };
                let slot = group_of.get_mut(expert).ok_or(unknown)?;
                if let Some(first) = slot.replace(group) {
                    return Err(RoutingError::ExpertInTwoGroups {
                        expert,
                        first,
                        second: group,
                    });
                }
            }
        }
        let whole = group_of.into_iter().enumerate();
        whole
            .map(|(expert, group)| group.ok_or(RoutingError::ExpertWithoutGroup { expert }))
            .collect()
    }

    /// The experts of each group of tasks, in the order of the groups' names, where task i has
    /// expert i.
    fn experts_of(&self, tasks: &[String]) -> Result<Vec<Vec<usize>>, RoutingError> {
        let mut group_of: Vec<Option<&String>> = vec![None; tasks.len()];
        let mut groups = Vec::new();
        for (group, members) in &self.tasks {
            if members.is_empty() {
                return Err(RoutingError::EmptyTaskGroup {
                    group: group.clone(),
                });
            }
            let mut experts = Vec::new();
            for task in members {
                let expert = tasks.iter().position(|known| known == task);
                let expert = expert.ok_or_else(|| RoutingError::UnknownTask {
                    group: group.clone(),
                    task: task.clone(),
                    known: tasks.join(", "),
                })?;
                if let Some(first) = group_of[expert].replace(group) {
                    return Err(RoutingError::TaskInTwoGroups {
                        task: task.clone(),
                        first: first.clone(),
                        second: group.clone(),
                    });
                }
                experts.push(expert);
            }
            groups.push(experts);
        }
        match group_of.iter().position(Option::is_none) {
            Some(task) => Err(RoutingError::TaskWithoutGroup {
                task: tasks[task].clone(),
            }),
            None => Ok(groups),
        }
    }
}

impl ScorerNumbers for GroupedConfig {
    type Scorer = GroupedScorer;

    /// All zero: uniform on both levels.
    fn init(&self, dims: ScorerDims, _seed: Seed, device: &Device) -> GroupedScorer {
        let group_of = self.group_of(dims.experts);
        let group_of =
            group_of.unwrap_or_else(|error| panic!("groups were not validated: {error}"));
        let matrix = |rows| Param::from_tensor(Tensor::zeros([rows, dims.features], device));
        let within = match self.within {
            WithinGroup::Static => {
                WithinScorer::Static(Param::from_tensor(Tensor::zeros([dims.experts], device)))
            }
            WithinGroup::Token => WithinScorer::Token(matrix(dims.experts)),
        };
        GroupedScorer {
            group: matrix(self.groups.len()),
            within,
            groups: self.groups.clone(),
            group_of,
            group_temperature: self.group_temperature,
            within_temperature: self.within_temperature,
        }
    }

    /// Checks that the groups partition the experts, and the temperatures.
    ///
    /// # Errors
    /// The first group or expert that is wrong, or the first temperature out of its range.
    fn validate(&self, num_experts: usize) -> Result<(), RoutingError> {
        for (field, value) in [
            ("group_temperature", self.group_temperature),
            ("within_temperature", self.within_temperature),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(RoutingError::GroupTemperature { field, value });
            }
        }
        self.group_of(num_experts).map(drop)
    }

    fn task_groups(&mut self) -> Option<&mut TaskGroups> {
        Some(&mut self.tasks)
    }

    fn for_tasks(&mut self, tasks: &[String]) -> Result<(), RoutingError> {
        self.groups = self.experts_of(tasks)?;
        Ok(())
    }
}

/// Parameters of the level inside the groups.
#[derive(Module, Debug)]
pub enum WithinScorer {
    /// One number per expert, `[E]`.
    Static(Param<Tensor<1>>),
    /// One row per expert, `[E, F]`.
    Token(Param<Tensor<2>>),
}

/// A softmax over groups times a softmax inside each.
#[derive(Module, Debug)]
pub struct GroupedScorer {
    /// One row per group, `[G, F]`.
    pub group: Param<Tensor<2>>,
    /// The level inside the groups.
    pub within: WithinScorer,
    #[module(skip)]
    groups: Vec<Vec<usize>>,
    #[module(skip)]
    group_of: Vec<usize>,
    group_temperature: f64,
    within_temperature: f64,
}

impl Score for GroupedScorer {
    /// `[N, F]` to the logarithms of the experts' weights, `[N, E]`; their exponentials sum to 1.
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        let group_ng = self.group_log_weights(features.clone());
        let group_of = indices(self.group_of.iter().copied(), &features.device());
        let own_group_ne = group_ng.select(1, group_of);
        let within_ne = match &self.within {
            // A group of weight 0 has scores 0 inside: flat, not undefined.
            WithinScorer::Static(scores) => own_group_ne.clone().exp() * scores.val().unsqueeze(),
            WithinScorer::Token(weight) => features.matmul(weight.val().transpose()),
        };
        own_group_ne + self.log_softmax_within(within_ne.div_scalar(self.within_temperature))
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let kind = ParameterKind::Routers;
        let [groups, width] = self.group.dims();
        let features = [Axis::Feature.of(width)];
        let experts = [Axis::Expert.of(self.group_of.len())];
        let groups = [Axis::Group.of(groups)];
        vec![
            PartTensor::matrix("router.group", kind, &mut self.group, &groups, &features),
            match &mut self.within {
                WithinScorer::Static(scores) => {
                    PartTensor::vector("router.within", kind, scores, &experts)
                }
                WithinScorer::Token(weight) => {
                    PartTensor::matrix("router.within", kind, weight, &experts, &features)
                }
            },
        ]
    }
}

impl GroupedScorer {
    /// The experts of each group.
    pub fn groups(&self) -> &[Vec<usize>] {
        &self.groups
    }

    /// `[N, F]` to the logarithms of the groups' weights, `[N, G]`.
    pub fn group_log_weights(&self, features: Tensor<2>) -> Tensor<2> {
        let scores = features.matmul(self.group.val().transpose());
        log_softmax(scores.div_scalar(self.group_temperature), 1)
    }

    /// Log-softmax over the experts of each group, `[N, E]`.
    ///
    /// Groups are laid side by side, filled up to the size of the largest: the number of operations
    /// does not depend on the number of groups.
    fn log_softmax_within(&self, scores: Tensor<2>) -> Tensor<2> {
        let (device, num_rows) = (scores.device(), scores.dims()[0]);
        let slots = self.slots();
        let num_groups = self.groups.len();
        let shape = [num_rows, num_groups, slots.len() / num_groups];
        let unused: Vec<bool> = slots.iter().map(Option::is_none).collect();
        let unused = Tensor::<1, Bool>::from_data(unused.as_slice(), &device)
            .reshape([1, shape[1], shape[2]])
            .expand(shape);
        // Whatever fills an unused slot is replaced in the next step.
        let filled = indices(slots.iter().map(|expert| expert.unwrap_or(0)), &device);
        let padded = scores
            .select(1, filled)
            .reshape(shape)
            .mask_fill(unused, f32::NEG_INFINITY);
        let mut slot_of = vec![0; self.group_of.len()];
        for (slot, expert) in slots.iter().enumerate() {
            expert.iter().for_each(|&expert| slot_of[expert] = slot);
        }
        log_softmax(padded, 2)
            .reshape([num_rows, slots.len()])
            .select(1, indices(slot_of, &device))
    }

    /// The expert in each slot, as many slots for every group as the largest group needs.
    fn slots(&self) -> Vec<Option<usize>> {
        let largest = self.groups.iter().map(Vec::len).max().unwrap_or(0);
        let slots_of = |group: &Vec<usize>| {
            let experts = group.iter().copied().map(Some);
            experts
                .chain(std::iter::repeat(None))
                .take(largest)
                .collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(slots_of).collect()
    }
}

fn indices(values: impl IntoIterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.into_iter().map(|value| value as i64).collect();
    Tensor::from_data(values.as_slice(), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::activation::softmax;
    use molora_kernels::random::uniform;
    use molora_testkit::{FORWARD, assert_close};

    fn config(groups: &[&[usize]], within: WithinGroup) -> GroupedConfig {
        GroupedConfig {
            groups: groups.iter().map(|group| group.to_vec()).collect(),
            within,
            ..GroupedConfig::default()
        }
    }

    fn dims(features: usize, experts: usize) -> ScorerDims {
        ScorerDims {
            features,
            experts,
            tasks: 0,
            groups: 1,
        }
    }

    /// The worked example's groups of 3, 2 and 1 experts and its three features.
    fn scorer(within: WithinGroup) -> GroupedScorer {
        let device = molora_testkit::device();
        let groups: [&[usize]; 3] = [&[0, 1, 2], &[3, 4], &[5]];
        let mut scorer = config(&groups, within).init(dims(3, 6), Seed::new(0), &device);
        let group = [[0.8, 0.2, 0.5], [0.1, -0.6, 0.3], [-0.3, 0.4, 0.1]];
        scorer.group = Param::from_data(group, &device);
        scorer.within = match within {
            WithinGroup::Static => {
                WithinScorer::Static(Param::from_data([1.0, 0.5, -0.5, 0.3, 0.6, 0.7], &device))
            }
            WithinGroup::Token => {
                let rows = [
                    [0.4, 0.3, -0.6],
                    [-0.2, 0.5, 0.2],
                    [0.1, -0.4, 0.8],
                    [0.5, 0.25, 0.0],
                    [-0.5, 0.75, 1.0],
                    [2.0, 1.0, -1.0],
                ];
                WithinScorer::Token(Param::from_data(rows, &device))
            }
        };
        scorer
    }

    fn weights(scorer: &GroupedScorer) -> Tensor<2> {
        let features = [[1.0, -0.5, 0.25]];
        let features = Tensor::from_data(features, &molora_testkit::device());
        softmax(scorer.score(features), 1)
    }

    #[test]
    fn weights_of_the_worked_example_by_token() {
        let expected = [[0.163235, 0.099007, 0.243518, 0.260552, 0.095852, 0.137836]];
        let scorer = scorer(WithinGroup::Token);
        assert_close(weights(&scorer), expected, FORWARD, "weights");
    }

    #[test]
    fn weights_of_the_worked_example_by_static_scores() {
        let expected = [[0.225297, 0.174957, 0.105507, 0.168684, 0.187719, 0.137836]];
        let scorer = scorer(WithinGroup::Static);
        assert_close(weights(&scorer), expected, FORWARD, "weights");
    }

    #[test]
    fn a_colder_group_level_of_the_worked_example() {
        let mut scorer = scorer(WithinGroup::Token);
        scorer.group_temperature = 0.5;
        let features = [[1.0, -0.5, 0.25]];
        let features = Tensor::from_data(features, &molora_testkit::device());
        let found = scorer.group_log_weights(features).exp();
        assert_close(found, [[0.636594, 0.316123, 0.047282]], FORWARD, "groups");
    }

    #[test]
    fn a_group_whose_weight_underflows_is_flat_inside() {
        let device = molora_testkit::autodiff_device();
        let groups: [&[usize]; 2] = [&[0, 2], &[1, 3]];
        let mut scorer =
            config(&groups, WithinGroup::Static).init(dims(1, 4), Seed::new(0), &device);
        scorer.group = Param::from_data([[500.0], [-500.0]], &device);
        scorer.within = WithinScorer::Static(Param::from_data([1.0, 3.0, 1.0, -3.0], &device));
        let score = scorer.score(Tensor::ones([1, 1], &device));
        let half = 0.5_f32.ln();
        let expected = [[half, half - 1000.0, half, half - 1000.0]];
        assert_close(score.clone(), expected, FORWARD, "log weights");
        let gradients = softmax(score, 1).square().sum().backward();
        let gradient = scorer.group.val().grad(&gradients).expect("tracked");
        let gradient = gradient.into_data().try_to_vec::<f32>().expect("f32");
        assert!(gradient.iter().all(|value| value.is_finite()));
    }

    #[test]
    fn one_group_is_a_flat_softmax() {
        let device = molora_testkit::device();
        let all: [&[usize]; 1] = [&[2, 0, 1]];
        let features = uniform([5, 4], 2.0, Seed::new(1), &device);
        let mut scorer = config(&all, WithinGroup::Token).init(dims(4, 3), Seed::new(0), &device);
        let weight: Tensor<2> = uniform([3, 4], 1.0, Seed::new(2), &device);
        scorer.within = WithinScorer::Token(Param::from_tensor(weight.clone()));
        let flat = softmax(features.clone().matmul(weight.transpose()), 1);
        assert_close(scorer.score(features).exp(), flat, FORWARD, "weights");
    }

    #[test]
    fn a_fresh_scorer_is_uniform_on_both_levels() {
        let groups: [&[usize]; 2] = [&[1], &[0, 2]];
        for within in [WithinGroup::Static, WithinGroup::Token] {
            let scorer =
                config(&groups, within).init(dims(3, 3), Seed::new(0), &molora_testkit::device());
            assert_close(weights(&scorer), [[0.25, 0.5, 0.25]], FORWARD, "weights");
        }
    }

    #[test]
    fn groups_have_to_partition_the_experts() {
        let message = |groups: &[&[usize]]| {
            let result = config(groups, WithinGroup::Token).validate(3);
            result.map_err(|error| error.to_string())
        };
        let refused = |text: &str| Err(text.to_owned());
        assert_eq!(message(&[&[0, 2], &[1]]), Ok(()));
        assert_eq!(
            message(&[&[0, 1], &[1, 2]]),
            refused("expert 1 is in groups 0 and 1, expected one group")
        );
        assert_eq!(
            message(&[&[0], &[2]]),
            refused("expert 1 is in no group, expected one")
        );
        assert_eq!(
            message(&[&[0, 1, 2], &[]]),
            refused("group 1 has no experts, expected at least one")
        );
        assert_eq!(
            message(&[&[0, 1], &[2, 3]]),
            refused("group 1 names expert 3, but there are 3 experts")
        );
    }

    #[test]
    fn temperatures_are_checked_by_name() {
        let groups: [&[usize]; 1] = [&[0]];
        let mut config = config(&groups, WithinGroup::Token);
        config.within_temperature = -1.0;
        assert_eq!(
            config.validate(1).expect_err("negative").to_string(),
            "within_temperature is -1, expected a finite number above 0"
        );
    }

    #[test]
    fn groups_of_tasks_have_to_partition_them() {
        let message = |groups: &[(&str, &[&str])]| {
            let mut config = GroupedConfig::default();
            for (group, tasks) in groups {
                let tasks = tasks.iter().map(|&task| task.to_owned()).collect();
                config.tasks.insert((*group).into(), tasks);
            }
            let result = config.for_tasks(&["a", "b", "c"].map(String::from));
            result
                .map(|()| config.groups)
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            message(&[("two", &["b"]), ("one", &["c", "a"])]),
            Ok(vec![vec![2, 0], vec![1]])
        );
        let refused = |text: &str| Err(text.to_owned());
        assert_eq!(
            message(&[("one", &["a", "b", "c"]), ("two", &[])]),
            refused("group two has no tasks, expected at least one")
        );
        assert_eq!(
            message(&[("one", &["a", "d"])]),
            refused("group one names d, which is no task of this run: a, b, c")
        );
        assert_eq!(
            message(&[("one", &["a", "b"]), ("two", &["b", "c"])]),
            refused("task b is in groups one and two, expected one group")
        );
        assert_eq!(
            message(&[("one", &["a", "b"])]),
            refused("task c is in no group, expected one")
        );
    }
}
