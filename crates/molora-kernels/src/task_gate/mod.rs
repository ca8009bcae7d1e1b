//! A gate for each task.

#[cfg(feature = "flex")]
mod flex;
pub(crate) mod portable;

use burn::tensor::Tensor;

/// How strongly something acts for each row's task: `sigmoid(selector * (embedding * weight) + bias)`.
///
/// The fast path is for tensors without gradients, as while a text is written.
///
/// # Shapes
/// - `selector`: `[B, tasks]`
/// - `embedding`: `[tasks, width]`
/// - `weight`: `[width, 1]`
/// - `bias`: `[1]`
/// - returns `[B, 1]`
///
/// # Panics
/// If the shapes disagree.
///
/// # Source
/// Shi et al., SAMoRA, arXiv:2604.19048.
pub fn task_gate(
    selector: Tensor<2>,
    embedding: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<2> {
    let ([_, tasks], [embedded, width]) = (selector.dims(), embedding.dims());
    assert_eq!(tasks, embedded, "tasks of the selector and the embedding");
    assert_eq!(weight.dims(), [width, 1], "shape of the weight");
    assert!(bias.as_ref().is_none_or(|bias| bias.dims() == [1]), "bias");
    #[cfg(feature = "flex")]
    if [&selector, &embedding, &weight]
        .into_iter()
        .all(crate::flex::supports)
        && bias.as_ref().is_none_or(crate::flex::supports)
    {
        let tensors = [&selector, &embedding, &weight];
        let tensors = tensors.map(|tensor| crate::flex::untracked(tensor.clone().into_dispatch()));
        let shift = match bias.clone() {
            Some(bias) => crate::flex::untracked(bias.into_dispatch()).map(Some),
            None => Some(None),
        };
        if let ([Some(selector), Some(embedding), Some(weight)], Some(shift)) = (tensors, shift) {
            let gates = flex::gates([selector, embedding, weight], shift);
            return crate::flex::tensor(gates);
        }
    }
    portable::task_gate(selector, embedding, weight, bias)
}

#[cfg(test)]
pub(crate) mod tests {
    use molora_testkit::{assert_close, autodiff_device, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Oracle};

    pub(crate) const CASES: &[Case] = &[Case {
        name: "task_gate",
        others: |[_, width]| vec![[width, 3], [3, 1]],
        fast: |t| task_gate(t[0].clone(), t[1].clone(), t[2].clone(), None),
        plain: Some(|t| portable::task_gate(t[0].clone(), t[1].clone(), t[2].clone(), None)),
        is_row_wise: false,
        tiny: None,
    }];

    #[test]
    fn known_values() {
        for device in [device(), autodiff_device()] {
            // Logits 0 and ln 3, and their mean for an unknown task.
            let selector = Tensor::<2>::from_floats([[1.0, 0.0], [0.0, 1.0]], &device);
            let embedding = Tensor::from_floats([[1.0, -1.0], [3.0f32.ln(), 0.0]], &device);
            let weight = Tensor::from_floats([[1.0], [1.0]], &device);
            let gates = task_gate(selector.clone(), embedding.clone(), weight.clone(), None);
            assert_close(gates, [[0.5], [0.75]], 1e-6, "gates");
            let bias = Tensor::from_floats([-(3.0f32.ln())], &device);
            let gates = task_gate(selector, embedding, weight, Some(bias));
            assert_close(gates, [[0.25], [0.5]], 1e-6, "with a bias");
        }
    }

    #[test]
    #[should_panic(expected = "tasks of the selector")]
    fn other_tasks_are_refused() {
        let ones = |shape: [usize; 2]| Tensor::<2>::ones(shape, &device());
        task_gate(ones([1, 2]), ones([3, 4]), ones([4, 1]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn equals_the_portable_definition(
            rows in 1usize..20, tasks in 1usize..30, width in 1usize..40, has_bias: bool, tracked: [bool; 4],
            seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let inputs = [
                oracle.tensor([rows, tasks], 1.0, tracked[0]),
                oracle.tensor([tasks, width], 1.0, tracked[1]),
                oracle.tensor([width, 1], 1.0, tracked[2]),
                oracle.tensor([1, 1], 1.0, has_bias && tracked[3]),
            ];
            oracle.check(
                &inputs,
                |t| task_gate(t[0].matrix(), t[1].matrix(), t[2].matrix(), has_bias.then(|| t[3].row())),
                |t| portable::task_gate(t[0].matrix(), t[1].matrix(), t[2].matrix(), has_bias.then(|| t[3].row())),
            );
            let plain = inputs.each_ref().map(|input| input.matrix().inner());
            let run = |gate: fn(Tensor<2>, Tensor<2>, Tensor<2>, Option<Tensor<1>>) -> Tensor<2>| {
                let [selector, embedding, weight, bias] = plain.clone();
                gate(selector, embedding, weight, has_bias.then(|| bias.reshape([1])))
            };
            assert_close(run(task_gate), run(portable::task_gate), 2e-6, "without gradients");
        }
    }
}
