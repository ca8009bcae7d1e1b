//! A part of one's own: it lists its tensors once, and its values go from one mixture to another with
//! other experts.
//!
//! `cargo run -p molora-parts --example part`
#![allow(clippy::print_stdout, reason = "an example shows what it computes")]

use burn::module::Param;
use burn::tensor::{Device, Int, Tensor};
use molora_parts::{Axis, Origins, ParameterKind, PartTensor, fill};

/// A score for each expert and task.
struct Scores {
    values: Param<Tensor<2>>,
}

impl Scores {
    fn new(experts: usize, tasks: usize, device: &Device) -> Self {
        let values = Tensor::<1, Int>::arange(0..(experts * tasks) as i64, device).float();
        Self {
            values: Param::from_tensor(values.reshape([experts, tasks])),
        }
    }

    /// Every tensor, with what its dimensions count.
    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let [experts, tasks] = self.values.dims();
        let (rows, columns) = ([Axis::Expert.of(experts)], [Axis::Task.of(tasks)]);
        let (name, kind) = ("scores", ParameterKind::Routers);
        vec![PartTensor::matrix(
            name,
            kind,
            &mut self.values,
            &rows,
            &columns,
        )]
    }
}

fn main() {
    let device = Device::default();
    let (mut old, mut new) = (Scores::new(2, 3, &device), Scores::new(3, 3, &device));
    // The new mixture has the old experts in another order and a third one, which stays as it is.
    let origins = Origins::default().with(Axis::Expert, vec![Some(1), Some(0), None]);
    fill(new.tensors(), &old.tensors(), &origins);
    for tensor in new.tensors() {
        println!(
            "{} {:?}: {:?}",
            tensor.name(),
            tensor.shape(),
            tensor.values()
        );
    }
}
