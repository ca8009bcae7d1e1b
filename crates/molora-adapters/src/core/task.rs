//! A matrix between `A` and `B` for each task. MTL-LoRA, arXiv:2410.09437, section 3.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::{Axis, Count, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CoreDims, CoreNumbers, Transforming};

/// `Lambda_t A x`, with one `Lambda_t` for each task and slice, initially the identity. That of an
/// unknown task is the mean over tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TaskConfig {
    /// Whether `Lambda_t` is a diagonal.
    pub diagonal: bool,
}

impl CoreNumbers for TaskConfig {
    type Core = TaskCore;

    fn init(&self, dims: CoreDims, _seed: Seed, device: &Device) -> TaskCore {
        let (slices, rank, tasks) = (dims.slices.size, dims.rank, dims.tasks);
        let identity = || {
            let one = Tensor::<2>::eye(rank, device).unsqueeze::<3>();
            one.repeat(&[tasks, slices, 1])
        };
        let ones = || Tensor::ones([tasks, slices * rank], device);
        TaskCore {
            full: (!self.diagonal).then(|| Param::from_tensor(identity())),
            diagonal: self.diagonal.then(|| Param::from_tensor(ones())),
            rank,
        }
    }

    fn reads_tasks(&self) -> bool {
        true
    }
}

/// A matrix or a diagonal for each task.
#[derive(Module, Debug)]
pub struct TaskCore {
    /// Matrices `Lambda_t` of all slices, one below the other, `[tasks, S*R, R]`.
    pub full: Option<Param<Tensor<3>>>,
    /// Diagonals, `[tasks, S*R]`, where there are no matrices.
    pub diagonal: Option<Param<Tensor<2>>>,
    rank: usize,
}

impl TaskCore {
    fn num_tasks(&self) -> usize {
        let of_full = self.full.as_ref().map(|full| full.dims()[0]);
        let of_diagonal = self.diagonal.as_ref().map(|diagonal| diagonal.dims()[0]);
        of_full.or(of_diagonal).unwrap_or_default()
    }
}

impl Transforming for TaskCore {
    fn apply(&self, low: Tensor<3>, tasks: Option<&Tensor<2>>) -> Tensor<3> {
        let ([batch, tokens, width], count) = (low.dims(), self.num_tasks());
        let unknown = || Tensor::full([1, count], 1.0 / count as f64, &low.device());
        let tasks = tasks.map_or_else(unknown, Tensor::clone);
        if let Some(diagonal) = &self.diagonal {
            return low * tasks.matmul(diagonal.val()).unsqueeze_dim(1);
        }
        let Some(full) = &self.full else {
            return low;
        };
        let (rows, slices) = (tasks.dims()[0], width / self.rank);
        let own = tasks.matmul(full.val().reshape([count, width * self.rank]));
        let own = own.reshape([rows, slices, self.rank, self.rank]);
        let own = own.expand([batch, slices, self.rank, self.rank]);
        let low_bstr = low
            .reshape([batch, tokens, slices, self.rank])
            .swap_dims(1, 2);
        let turned = low_bstr.matmul(own.swap_dims(2, 3));
        turned.swap_dims(1, 2).reshape([batch, tokens, width])
    }

    fn resized(&self, slices: Count, _experts: usize) -> Self {
        let (width, count) = (slices.size * self.rank, self.num_tasks());
        let full = self.full.as_ref().map(|full| {
            let zeros = Tensor::zeros([count, width, self.rank], &full.device());
            Param::from_tensor(zeros)
        });
        let diagonal = self.diagonal.as_ref().map(|diagonal| {
            let zeros = Tensor::zeros([count, width], &diagonal.device());
            Param::from_tensor(zeros)
        });
        Self {
            full,
            diagonal,
            rank: self.rank,
        }
    }

    fn reads_tasks(&self) -> bool {
        true
    }

    fn tensors(&mut self, slices: Axis) -> Vec<PartTensor<'_>> {
        let (kind, rank) = (ParameterKind::Adapters, Axis::Rank.of(self.rank));
        let full = self.full.iter_mut().map(|full| {
            let [tasks, width, _] = full.dims();
            let (tasks, slices) = (Axis::Task.of(tasks), slices.of(width / rank.size));
            let counts: [&[Count]; 3] = [&[tasks], &[slices, rank], &[rank]];
            PartTensor::cube("experts.task_core", kind, full, counts)
        });
        let diagonal = self.diagonal.iter_mut().map(|diagonal| {
            let [tasks, width] = diagonal.dims();
            let (tasks, slices) = (Axis::Task.of(tasks), slices.of(width / rank.size));
            PartTensor::matrix(
                "experts.task_core",
                kind,
                diagonal,
                &[tasks],
                &[slices, rank],
            )
        });
        full.chain(diagonal).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BankConfig, Core, SiteDims, Slices};
    use molora_kernels::random::uniform;
    use molora_testkit::{FORWARD, assert_close};

    fn low(device: &Device) -> Tensor<3> {
        Tensor::from_data([[[1.0, 2.0]], [[1.0, 2.0]], [[1.0, 2.0]]], device)
    }

    /// Rows of the first task, of the second and of an unknown one.
    fn tasks(device: &Device) -> Tensor<2> {
        Tensor::from_data([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], device)
    }

    #[test]
    fn every_task_has_a_matrix_of_its_own() {
        let device = molora_testkit::device();
        let core = TaskCore {
            full: Some(Param::from_data(
                [[[1.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [2.0, 0.0]]],
                &device,
            )),
            diagonal: None,
            rank: 2,
        };
        let found = core.apply(low(&device), Some(&tasks(&device)));
        let expected = [[[3.0, 2.0]], [[2.0, 2.0]], [[2.5, 2.0]]];
        assert_close(found, expected, FORWARD, "code");
        let unknown = core.apply(low(&device), None);
        assert_close(unknown, [[[2.5, 2.0]]; 3], FORWARD, "without tasks");
    }

    #[test]
    fn or_a_diagonal() {
        let device = molora_testkit::device();
        let core = TaskCore {
            full: None,
            diagonal: Some(Param::from_data([[3.0, 1.0], [1.0, 0.5]], &device)),
            rank: 2,
        };
        let found = core.apply(low(&device), Some(&tasks(&device)));
        let expected = [[[3.0, 2.0]], [[1.0, 1.0]], [[2.0, 1.5]]];
        assert_close(found, expected, FORWARD, "code");
    }

    #[test]
    fn a_fresh_core_changes_nothing() {
        let device = molora_testkit::device();
        for (diagonal, slices) in [
            (false, Slices::Shared),
            (true, Slices::Shared),
            (false, Slices::Independent),
            (true, Slices::Independent),
        ] {
            let config = BankConfig {
                num_experts: 3,
                rank: 2,
                slices,
                core: TaskConfig { diagonal }.into(),
                ..BankConfig::default()
            };
            let dims = SiteDims {
                d_input: 5,
                d_output: 4,
            };
            let bank = config.init_for(2, dims, Seed::new(1), &device);
            assert!(matches!(bank.core, Core::Task(_)));
            let x: Tensor<3> = uniform([3, 4, 5], 1.0, Seed::new(2), &device);
            let low = bank.down(x, None);
            let found = bank.core.apply(low.clone(), Some(&tasks(&device)));
            assert_close(found, low, FORWARD, "code");
        }
    }
}
