//! Rotary position embedding.

#[cfg(feature = "flex")]
mod backend;
#[cfg(feature = "flex")]
mod flex;
pub(crate) mod portable;

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use self::backend::RotaryOps;

/// Turns pairs of numbers of each head by the angles of its token: with `P` pairs, numbers `a` at `i` and `b` at `P + i`
/// of a head become `a cos_i - b sin_i` and `b cos_i + a sin_i`; numbers behind the pairs stay as they are.
///
/// # Shapes
/// B batch, T tokens, H heads, W width of a head, P pairs with `2 P <= W`.
/// - `x`: `[B, T, H, W]`
/// - `cos`, `sin`: `[B, T, 1, P]`; they have no gradient here
/// - returns `[B, T, H, W]`
///
/// # Panics
/// If the shapes disagree.
///
/// # Source
/// Su et al., RoFormer, arXiv:2104.09864, eq. 34, with the pairs of GPT-NeoX and Llama: the two halves of what turns.
pub fn rotary(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let ([batch, tokens, heads, width], [.., pairs]) = (x.dims(), cos.dims());
    let shape = [batch, tokens, 1, pairs];
    assert_eq!(cos.dims(), shape, "shapes of x and the cosines");
    assert_eq!(sin.dims(), shape, "shapes of cosines and sines");
    assert!(2 * pairs <= width, "{pairs} pairs in {width} numbers");
    #[cfg(feature = "flex")]
    if [&x, &cos, &sin].into_iter().all(crate::flex::supports) {
        let rows = batch * tokens;
        let out = Dispatch::fast_rotary(
            x.reshape([rows, heads * width]).into_dispatch(),
            cos.detach().reshape([rows, pairs]).into_dispatch(),
            sin.detach().reshape([rows, pairs]).into_dispatch(),
            width,
        );
        return Tensor::<2>::from_dispatch(out).reshape([batch, tokens, heads, width]);
    }
    #[cfg(not(feature = "flex"))]
    let _ = heads;
    portable::rotary(x, cos, sin)
}

#[cfg(test)]
pub(crate) mod tests {
    use molora_testkit::{assert_close, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Input, Oracle};

    type Turn = fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>;

    pub(crate) const CASES: &[Case] = &[Case {
        name: "rotary",
        others: |[rows, width]| vec![[rows, width / 3]; 2],
        fast: |t| of_matrices(rotary, t, 1),
        plain: Some(|t| of_matrices(portable::rotary, t, 1)),
        is_row_wise: true,
        tiny: None,
    }];

    /// Of one token a row, with angles that have no gradient.
    fn of_matrices(turn: Turn, t: &[Tensor<2>], heads: usize) -> Tensor<2> {
        let [rows, width] = t[0].dims();
        let pairs = t[1].dims()[1];
        let angles = |index: usize| t[index].clone().detach().reshape([rows, 1, 1, pairs]);
        let x = t[0].clone().reshape([rows, 1, heads, width / heads]);
        turn(x, angles(1), angles(2)).reshape([rows, width])
    }

    #[test]
    fn known_values() {
        let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 3.0, 4.0, 9.0]]]], &device());
        let cos = Tensor::from_floats([[[[0.0, 1.0]]]], &device());
        let sin = Tensor::from_floats([[[[1.0, 0.0]]]], &device());
        let expected = [[-3.0, 2.0, 1.0, 4.0, 9.0]];
        let out = rotary(x.clone(), cos.clone(), sin.clone());
        let row = |out: Tensor<4>| out.reshape([1, 5]);
        assert_close(row(out), expected, 0.0, "a quarter turn of the first pair");
        let out = portable::rotary(x, cos, sin);
        assert_close(row(out), expected, 0.0, "portable");
    }

    #[test]
    #[should_panic(expected = "3 pairs in 5 numbers")]
    fn more_pairs_than_there_are_numbers_for_are_refused() {
        let angles = Tensor::<4>::ones([1, 1, 1, 3], &device());
        rotary(
            Tensor::ones([1, 1, 2, 5], &device()),
            angles.clone(),
            angles,
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn equals_the_portable_definition(
            rows in 1usize..60, heads in 1usize..6, pairs in 1usize..70, rest in 0usize..9, tracked: bool,
            seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let x = oracle.tensor([rows, heads * (2 * pairs + rest)], 2.0, tracked);
            let cos = oracle.tensor([rows, pairs], 1.0, false);
            let sin = oracle.tensor([rows, pairs], 1.0, false);
            let all = |t: &[Input]| [t[0].matrix(), t[1].matrix(), t[2].matrix()];
            oracle.check(
                &[x, cos, sin],
                |t| of_matrices(rotary, &all(t), heads),
                |t| of_matrices(portable::rotary, &all(t), heads),
            );
        }
    }
}
