//! What an operation keeps of its inputs for the backward: as they are, or rounded to bf16.

use std::cell::Cell;

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::ops::{Backward, OpsPrep, Tracked};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{TensorData, bf16};

use super::buffer::{FlexTensor, contiguous, elements, from_values, map_numbers};
use super::simd::vectorised;

thread_local! {
    static IS_ROUNDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, whose operations round to bf16 what they keep by [`save`].
pub(crate) fn saving_in_bf16<T>(work: impl FnOnce() -> T) -> T {
    let _before = Before(IS_ROUNDED.replace(true));
    work()
}

/// Puts back what was before, also after a panic.
struct Before(bool);

impl Drop for Before {
    fn drop(&mut self) {
        IS_ROUNDED.set(self.0);
    }
}

/// An input of an operation, for its backward.
#[derive(Debug, Clone)]
pub(crate) enum Saved {
    /// The output of a node of the graph.
    Node(NodeId),
    /// Its numbers in bf16.
    Rounded(FlexTensor),
}

/// Keeps an input for the backward.
///
/// An operation keeps in this way what no other keeps: a node's output is there once for all, and a rounded copy is
/// each operation's own.
pub(crate) fn save<O, S, C, const N: usize>(
    prepared: &mut OpsPrep<O, Flex, S, C, N, Tracked>,
    input: &FloatTensor<Autodiff<Flex, C>>,
) -> Saved
where
    C: CheckpointStrategy,
    S: Clone + Send + std::fmt::Debug + 'static,
    O: Backward<Flex, N, State = S>,
{
    match IS_ROUNDED.get() {
        true => Saved::Rounded(rounded(input.primitive().clone())),
        false => Saved::Node(prepared.checkpoint(input)),
    }
}

impl Saved {
    /// What was kept.
    pub(crate) fn find(self, saved: &mut Checkpointer) -> Kept {
        Kept(contiguous(match self {
            Self::Node(node) => saved.retrieve_node_output(node),
            Self::Rounded(numbers) => numbers,
        }))
    }
}

/// An input of an operation as it was kept: a contiguous tensor of f32 or bf16.
#[derive(Debug)]
pub(crate) struct Kept(FlexTensor);

impl Kept {
    /// All numbers in f32.
    pub(crate) fn whole(&self) -> FlexTensor {
        match self.rounded() {
            Some(numbers) => {
                let widened = map_numbers(numbers, wide);
                from_values(widened, self.0.layout().shape().clone())
            }
            None => self.0.clone(),
        }
    }

    /// Some numbers in f32, from `first` on; `place` has room for them.
    pub(crate) fn part<'a>(
        &'a self,
        first: usize,
        count: usize,
        place: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let Some(numbers) = self.rounded() else {
            return &elements(&self.0)[first..first + count];
        };
        place.resize(count, 0.0);
        let numbers = &numbers[first..first + count];
        vectorised(
            #[inline(always)]
            || {
                for (place, &number) in place.iter_mut().zip(numbers) {
                    *place = wide(number);
                }
            },
        );
        place
    }

    fn rounded(&self) -> Option<&[bf16]> {
        self.0.as_slice()
    }
}

fn rounded(tensor: FlexTensor) -> FlexTensor {
    let tensor = contiguous(tensor);
    let shape = tensor.layout().shape().clone();
    let numbers = map_numbers(
        elements(&tensor),
        #[inline(always)]
        |number| bf16::from_bits(bits_of(number)),
    );
    FlexTensor::from_data(TensorData::new(numbers, shape))
}

#[inline(always)]
fn wide(number: bf16) -> f32 {
    f32::from_bits(u32::from(number.to_bits()) << 16)
}

/// The nearest bf16, of two the even one, without a branch; NaN stays NaN.
#[inline(always)]
fn bits_of(number: f32) -> u16 {
    let bits = number.to_bits();
    let odd = bits >> 16 & 1;
    let nearest = bits.wrapping_add(0x7fff + odd) >> 16;
    let quiet = bits >> 16 | 0x40;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    (if is_nan { quiet } else { nearest }) as u16
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use burn::tensor::Shape;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_that_bf16_has_come_back_as_they_were() {
        let every = (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32());
        let every: Vec<f32> = every.collect();
        let shape = Shape::from([256, 256]);
        let kept = Kept(rounded(from_values(every.clone(), shape.clone())));
        let found = kept.whole();
        assert_eq!(found.layout().shape(), &shape);
        let mut place = Vec::new();
        let part = kept.part(700, 500, &mut place);
        let parts = [(elements(&found), &every[..]), (part, &every[700..1200])];
        for (found, expected) in parts.iter().flat_map(|(a, b)| a.iter().zip(*b)) {
            let is_same = found.to_bits() == expected.to_bits();
            assert!(is_same || found.is_nan() && expected.is_nan(), "{expected}");
        }
    }

    #[test]
    fn the_scope_ends_with_the_work_also_by_a_panic() {
        saving_in_bf16(|| {
            saving_in_bf16(|| ());
            assert!(IS_ROUNDED.get(), "the outer scope goes on");
        });
        assert!(!IS_ROUNDED.get());
        let panics = || saving_in_bf16(|| panic!("on purpose"));
        catch_unwind(AssertUnwindSafe(panics)).expect_err("a panic");
        assert!(!IS_ROUNDED.get());
    }

    proptest! {
        #[test]
        fn any_number_is_rounded_to_the_nearest(bits: u32) {
            let number = f32::from_bits(bits);
            let (found, expected) = (bf16::from_bits(bits_of(number)), bf16::from_f32(number));
            prop_assert!(found == expected || found.is_nan() && expected.is_nan());
        }
    }
}
