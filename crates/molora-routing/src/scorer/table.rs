//! One row of logits per task, whatever the text. MTL-LoRA, arXiv:2410.09437; Polytropon,
//! arXiv:2202.13914.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::{Seed, uniform};
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Reads, Score, ScorerDims, ScorerNumbers, draw};
use crate::RoutingError;

/// What a row gets whose task is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownTask {
    /// The mean of all tasks' logits.
    #[default]
    Mean,
    /// Logits of 0, which weigh all experts the same (Polytropon in mttl).
    Zero,
}

/// A logit for every task and expert.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TableConfig {
    /// What a row gets whose task is unknown.
    #[serde(skip_serializing_if = "is_mean")]
    pub unknown: UnknownTask,
    /// Logits start from U(-bound, bound); 1/sqrt(E) where it is not given, as in MTL-LoRA's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
}

fn is_mean(unknown: &UnknownTask) -> bool {
    *unknown == UnknownTask::Mean
}

impl ScorerNumbers for TableConfig {
    type Scorer = TableScorer;

    fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> TableScorer {
        let shape = [dims.tasks, dims.experts];
        let seed = seed.child("table");
        TableScorer {
            table: match self.bound {
                None => draw(shape, dims.experts, seed, device),
                Some(bound) => Param::from_tensor(uniform(shape, bound, seed, device)),
            },
            unknown: self.unknown,
        }
    }

    fn validate(&self, _num_experts: usize) -> Result<(), RoutingError> {
        match self.bound {
            Some(bound) if !(bound.is_finite() && bound >= 0.0) => Err(RoutingError::Bound(bound)),
            _ => Ok(()),
        }
    }

    fn reads(&self) -> Reads {
        Reads::Tasks
    }

    fn is_apart_by_task(&self) -> bool {
        true
    }
}

/// A logit for every task and expert.
#[derive(Module, Debug)]
pub struct TableScorer {
    /// One row per task, `[tasks, E]`.
    pub table: Param<Tensor<2>>,
    #[module(skip)]
    unknown: UnknownTask,
}

impl TableScorer {
    /// A table of logits `[tasks, E]`, whose mean is that of an unknown task.
    pub fn new(table: Param<Tensor<2>>) -> Self {
        Self {
            table,
            unknown: UnknownTask::Mean,
        }
    }
}

/// A selector's largest entry from which on its task is known: 1 of a known one, 1 / tasks of another.
const KNOWN: f64 = 0.999;

impl Score for TableScorer {
    /// Rows that pick a task, `[N, tasks]`, to its logits `[N, E]`.
    fn score(&self, tasks: Tensor<2>) -> Tensor<2> {
        let logits = tasks.clone().matmul(self.table.val());
        match self.unknown {
            UnknownTask::Mean => logits,
            UnknownTask::Zero => logits * tasks.max_dim(1).greater_elem(KNOWN).float(),
        }
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let [tasks, experts] = self.table.dims();
        vec![PartTensor::matrix(
            "router.table",
            ParameterKind::Routers,
            &mut self.table,
            &[Axis::Task.of(tasks)],
            &[Axis::Expert.of(experts)],
        )]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Granularity, RouteInput, RouterConfig, Scorer};
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn a_task_has_its_row_and_an_unknown_one_the_mean() {
        let device = molora_testkit::device();
        let config = RouterConfig {
            scorer: TableConfig::default().into(),
            granularity: Granularity::Task,
            temperature: 0.5,
            ..RouterConfig::default()
        };
        let mut router = config.init(7, 2, 2, Seed::new(0), &device);
        let table = Param::from_data([[1.0, 0.0], [0.0, 3.0]], &device);
        router.scorer = Scorer::Table(TableScorer::new(table));
        let routed = router.route(&RouteInput {
            features: Tensor::zeros([2, 3, 7], &device),
            mask: Tensor::ones([2, 3], &device),
            tasks: Some(Tensor::from_data([[1.0, 0.0], [0.5, 0.5]], &device)),
            columns: None,
        });
        assert_close(
            routed.logits,
            [[[2.0, 0.0]], [[1.0, 3.0]]],
            FORWARD,
            "logits",
        );
        assert_eq!(routed.weights.dims(), [2, 1, 2]);
    }

    #[test]
    fn or_an_unknown_one_has_no_preference() {
        let device = molora_testkit::device();
        let scorer = TableScorer {
            unknown: UnknownTask::Zero,
            ..TableScorer::new(Param::from_data([[1.0, 0.0], [0.0, 3.0]], &device))
        };
        let found = scorer.score(Tensor::from_data([[0.0, 1.0], [0.5, 0.5]], &device));
        assert_close(found, [[0.0, 3.0], [0.0, 0.0]], FORWARD, "logits");
    }

    #[test]
    fn decisions_that_are_not_by_task_are_refused() {
        let config = RouterConfig {
            scorer: TableConfig::default().into(),
            ..RouterConfig::default()
        };
        let error = config.validate(2).expect_err("by token").to_string();
        assert_eq!(
            error,
            "the scorer table reads which task a row belongs to, expected granularity = \"task\""
        );
    }
}
