//! The task gate: how strongly a site's adapter acts for each task.
//!
//! SAMoRA, arXiv:2604.19048: `a = sigmoid(<w, e_task> (+ b))`, one scalar per sequence and site. The
//! released code has no bias; we follow it by default. A row of an unknown task gets the sigmoid of
//! the mean logit over all tasks, as in the released code, but decided row by row where the code
//! switches a whole batch.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use molora_kernels::random::{Seed, normal, uniform};
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::AdapterError;

/// Numbers of a [`TaskGate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// Width of the task embedding.
    pub width: usize,
    /// Whether the logit has a bias (the paper has one, the released code has none).
    pub bias: bool,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            width: 8,
            bias: false,
        }
    }
}

impl GateConfig {
    /// Checks the width.
    ///
    /// # Errors
    /// [`AdapterError::Zero`] if it is 0.
    pub fn validate(&self) -> Result<(), AdapterError> {
        match self.width {
            0 => Err(AdapterError::Zero { field: "width" }),
            _ => Ok(()),
        }
    }

    /// A gate for `num_tasks` tasks: embeddings from N(0, 1), weights from U(-1, 1), bias 0.
    pub fn init(&self, num_tasks: usize, seed: Seed, device: &Device) -> TaskGate {
        let embedding = normal(
            [num_tasks, self.width],
            1.0,
            seed.child("embedding"),
            device,
        );
        let weight = uniform([self.width, 1], 1.0, seed.child("weight"), device);
        TaskGate {
            embedding: Param::from_tensor(embedding),
            weight: Param::from_tensor(weight),
            bias: self
                .bias
                .then(|| Param::from_tensor(Tensor::zeros([1], device))),
        }
    }
}

/// A learned scalar gate per task.
#[derive(Module, Debug)]
pub struct TaskGate {
    /// Task embeddings, `[tasks, width]`.
    pub embedding: Param<Tensor<2>>,
    /// Gate vector, `[width, 1]`.
    pub weight: Param<Tensor<2>>,
    /// Gate bias, `[1]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl TaskGate {
    /// Every tensor.
    pub fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let kind = ParameterKind::Gates;
        let [tasks, width] = self.embedding.dims();
        let (tasks, units) = ([Axis::Task.of(tasks)], [Axis::Unit.of(width)]);
        let one = [Axis::Unit.of(1)];
        let embedding = &mut self.embedding;
        let bias = self.bias.iter_mut();
        let mut tensors = vec![
            PartTensor::matrix("gate.task_embedding", kind, embedding, &tasks, &units),
            PartTensor::matrix("gate.weight", kind, &mut self.weight, &units, &one),
        ];
        tensors.extend(bias.map(|bias| PartTensor::vector("gate.bias", kind, bias, &one)));
        tensors
    }

    /// The gate of each row, in (0, 1).
    ///
    /// # Shapes
    /// - `selector`: `[B, tasks]` from [`task_selector`]
    /// - returns `[B, 1, 1]`, to be multiplied with expert weights
    pub fn forward(&self, selector: Tensor<2>) -> Tensor<3> {
        let (embedding, weight) = (self.embedding.val(), self.weight.val());
        let bias = self.bias.as_ref().map(Param::val);
        molora_kernels::task_gate(selector, embedding, weight, bias).unsqueeze_dim(2)
    }
}

/// Rows that pick a task by a matrix product: one-hot for a known task, uniform `1 / num_tasks` for
/// an unknown one, so that `selector @ per_task` is the task's own value or the mean over tasks.
///
/// # Shapes
/// - `tasks`: one entry per row, `None` for an unknown task
/// - returns `[B, tasks]`
///
/// # Errors
/// [`AdapterError::TaskOutOfRange`] if a task number is not below `num_tasks`.
pub fn task_selector(
    tasks: &[Option<usize>],
    num_tasks: usize,
    device: &Device,
) -> Result<Tensor<2>, AdapterError> {
    let mut rows = vec![0.0f32; tasks.len() * num_tasks];
    for (row, task) in rows.chunks_exact_mut(num_tasks.max(1)).zip(tasks) {
        match *task {
            None => row.fill(1.0 / num_tasks as f32),
            Some(task) if task < num_tasks => row[task] = 1.0,
            Some(task) => return Err(AdapterError::TaskOutOfRange { task, num_tasks }),
        }
    }
    Ok(Tensor::from_data(
        TensorData::new(rows, [tasks.len(), num_tasks]),
        device,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the worked example of the SAMoRA notes: unknown tasks take the sigmoid of the
    /// mean logit (0.625392), not the mean of the sigmoids (0.620519).
    #[test]
    fn unknown_tasks_take_the_mean_logit_row_by_row() {
        let device = molora_testkit::device();
        let embedding = [
            [0.1, -0.2, 0.3, 0.4, -0.5, 0.6, -0.7, 0.8],
            [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0],
        ];
        let weight = [[0.5], [-0.5], [0.25], [0.25], [0.1], [0.2], [-0.3], [0.4]];
        let gate = TaskGate {
            embedding: Param::from_data(embedding, &device),
            weight: Param::from_data(weight, &device),
            bias: None,
        };
        let rows = [Some(0), None, Some(1)];
        let selector = task_selector(&rows, 2, &device).expect("tasks in range");
        let gates = gate
            .forward(selector)
            .into_data()
            .try_to_vec::<f32>()
            .expect("f32");
        for (found, expected) in gates.iter().zip([0.716060, 0.625392, 0.524979]) {
            assert!((found - expected).abs() < 1e-6, "{gates:?}");
        }
    }

    #[test]
    fn a_task_out_of_range_is_an_error() {
        let device = molora_testkit::device();
        let error = task_selector(&[Some(0), Some(5)], 2, &device).expect_err("5 is not below 2");
        assert_eq!(
            error,
            AdapterError::TaskOutOfRange {
                task: 5,
                num_tasks: 2
            }
        );
    }
}
