//! One row of logits per task, whatever the text. MTL-LoRA, arXiv:2410.09437; the row of an unknown
//! task is the mean over tasks.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::{Axis, ParameterKind, PartTensor};
use serde::{Deserialize, Serialize};

use super::{Reads, Score, ScorerDims, ScorerNumbers, draw};

/// A logit for every task and expert, from U(-1/sqrt(E), 1/sqrt(E)) as in MTL-LoRA's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableConfig;

impl ScorerNumbers for TableConfig {
    type Scorer = TableScorer;

    fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> TableScorer {
        let shape = [dims.tasks, dims.experts];
        TableScorer {
            table: draw(shape, dims.experts, seed.child("table"), device),
        }
    }

    fn reads(&self) -> Reads {
        Reads::Tasks
    }
}

/// A logit for every task and expert.
#[derive(Module, Debug)]
pub struct TableScorer {
    /// One row per task, `[tasks, E]`.
    pub table: Param<Tensor<2>>,
}

impl Score for TableScorer {
    /// Rows that pick a task, `[N, tasks]`, to its logits `[N, E]`.
    fn score(&self, tasks: Tensor<2>) -> Tensor<2> {
        tasks.matmul(self.table.val())
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
            scorer: TableConfig.into(),
            granularity: Granularity::Task,
            temperature: 0.5,
            ..RouterConfig::default()
        };
        let mut router = config.init(7, 2, 2, Seed::new(0), &device);
        router.scorer = Scorer::Table(TableScorer {
            table: Param::from_data([[1.0, 0.0], [0.0, 3.0]], &device),
        });
        let routed = router.route(&RouteInput {
            features: Tensor::zeros([2, 3, 7], &device),
            mask: Tensor::ones([2, 3], &device),
            tasks: Some(Tensor::from_data([[1.0, 0.0], [0.5, 0.5]], &device)),
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
    fn decisions_that_are_not_by_task_are_refused() {
        let config = RouterConfig {
            scorer: TableConfig.into(),
            ..RouterConfig::default()
        };
        let error = config.validate(2).expect_err("by token").to_string();
        assert_eq!(
            error,
            "the scorer table reads which task a row belongs to, expected granularity = \"task\""
        );
    }
}
