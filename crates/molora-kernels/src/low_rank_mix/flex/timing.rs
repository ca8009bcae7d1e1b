//! The two ways of the mix against each other.

use std::time::{Duration, Instant};

use burn::tensor::Shape;

use super::{MixShape, backward, forward};
use crate::flex::buffer::{FlexTensor, from_values};

const TOKENS: usize = 512;
const WIDTH: usize = 512;
const RANK: usize = 8;
/// Experts that each token selects.
const SELECTED: usize = 2;
/// The least time of so many runs counts: what else the machine does only adds.
const RUNS: usize = 7;

/// Times of a forward and backward pass over all experts, and over the selected ones alone, with
/// `ratio` experts for each that is selected.
pub(in crate::low_rank_mix) fn time_mix(ratio: usize) -> [Duration; 2] {
    let experts = ratio * SELECTED;
    let tensor = |shape: [usize; 3], value: &dyn Fn(usize) -> f32| {
        let shape = Shape::from(shape);
        from_values((0..shape.num_elements()).map(value).collect(), shape)
    };
    let weight = |index: usize| {
        let (token, expert) = (index / experts, index % experts);
        let is_selected = (expert + experts - token * 7 % experts) % experts < SELECTED;
        if is_selected { 0.5 } else { 0.0 }
    };
    let flat = |tensor: FlexTensor, shape: Vec<usize>| tensor.reshape(Shape::from(shape));
    let operands = [
        tensor([1, TOKENS, RANK], &|i| (i % 13) as f32 - 6.0),
        tensor([1, TOKENS, experts], &weight),
        flat(tensor([1, 1, RANK], &|_| 1.0), vec![RANK]),
        flat(
            tensor([1, experts * RANK, WIDTH], &|i| (i % 11) as f32 - 5.0),
            vec![experts * RANK, WIDTH],
        ),
    ];
    let base = tensor([1, TOKENS, WIDTH], &|i| (i % 7) as f32);
    [usize::MAX, 1].map(|sparse_ratio| {
        let shape = MixShape {
            rank: RANK,
            factor: 1.0,
            has_base: true,
            is_selection: true,
            sparse_ratio,
        };
        let run = |_| {
            let start = Instant::now();
            let out = forward(base.clone(), operands.clone(), shape);
            std::hint::black_box(backward(operands.clone(), shape, out, true));
            start.elapsed()
        };
        (0..RUNS).map(run).min().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flex::buffer::elements;
    use crate::testing::values;

    fn close(left: &FlexTensor, right: &FlexTensor) {
        let (left, right) = (elements(left), elements(right));
        let largest = left
            .iter()
            .fold(1.0_f32, |most, value| most.max(value.abs()));
        for (left, right) in left.iter().zip(right) {
            assert!((left - right).abs() <= 1e-5 * largest, "{left} and {right}");
        }
    }

    #[test]
    fn both_ways_give_the_same_values_and_gradients() {
        let (tokens, experts, rank, width) = (201, 7, 3, 70);
        let random = |shape: [usize; 2], seed| {
            from_values(values(shape[0] * shape[1], seed), Shape::from(shape))
        };
        let three = |tensor: FlexTensor| {
            let shape = tensor.layout().shape();
            let shape = Shape::from([1, shape[0], shape[1]]);
            tensor.reshape(shape)
        };
        let mut weights = values(tokens * experts, 3);
        for (index, weight) in weights.iter_mut().enumerate() {
            // None to all of the experts.
            if index % experts > index / experts % (experts + 1) {
                *weight = 0.0;
            }
        }
        let operands = [
            three(random([tokens, experts * rank], 1)),
            three(from_values(weights, Shape::from([tokens, experts]))),
            random([1, experts * rank], 4).reshape(Shape::from([experts * rank])),
            random([experts * rank, width], 5),
        ];
        let base = three(random([tokens, width], 6));
        let run = |sparse_ratio| {
            let shape = MixShape {
                rank,
                factor: 0.7,
                has_base: true,
                is_selection: true,
                sparse_ratio,
            };
            let out = forward(base.clone(), operands.clone(), shape);
            let gradients = backward(operands.clone(), shape, base.clone(), true);
            (out, gradients)
        };
        let ((dense, dense_gradients), (sparse, sparse_gradients)) = (run(usize::MAX), run(0));
        close(&dense, &sparse);
        for (dense, sparse) in dense_gradients.iter().zip(&sparse_gradients) {
            let gradients = dense.as_ref().zip(sparse.as_ref());
            let (dense, sparse) = gradients.expect("all were wanted");
            close(dense, sparse);
        }
    }
}
