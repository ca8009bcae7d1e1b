//! Scaled-dot-product attention over several heads.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
mod options;
pub(crate) mod portable;

#[cfg(any(feature = "flex", feature = "cube"))]
use burn::backend::Dispatch;
use burn::tensor::{Bool, Tensor};

#[cfg(feature = "cube")]
use self::cube::CubeAttention;
#[cfg(feature = "flex")]
use self::flex::FlexAttention;
pub use self::options::AttentionOptions;

/// Computes `softmax(q * k^T / sqrt(W)) * v` for each head, where a head is a slice of `W`
/// adjacent numbers of the width and `mask` says which keys may be attended to.
///
/// Without an allowed key the output is zero, and so is the gradient. Values of keys that are not
/// allowed must be finite: a weight of 0 does not hide NaN.
///
/// # Shapes
/// B batch, T queries, S keys, H heads, W width of a head.
/// - `query`: `[B, T, H * W]`
/// - `key`, `value`: `[B, S, H * W]`
/// - `mask`: `[B, S]`, `true` = may be attended to; `None` = all
/// - returns `[B, T, H * W]`
///
/// # Panics
/// If the shapes disagree, or `num_heads` does not divide the width.
///
/// # Source
/// Vaswani et al., Attention Is All You Need, arXiv:1706.03762, eq. 1 and section 3.2.2.
pub fn attention(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    mask: Option<Tensor<2, Bool>>,
    num_heads: usize,
) -> Tensor<3> {
    let options = AttentionOptions::new(num_heads).with_mask(mask);
    attention_with(query, key, value, &options)
}

/// Computes `softmax(scale * q * k^T + bias) * v` for each query head over the keys that `options`
/// allow; several query heads may share a key head, and the scores may be bounded.
///
/// Without an allowed key the output is zero, and so is the gradient. Values of keys that are not
/// allowed must be finite: a weight of 0 does not hide NaN.
///
/// # Shapes
/// B batch, T queries, S keys, H query heads, G key heads, W width of a head; T and S may differ.
/// - `query`: `[B, T, H * W]`
/// - `key`, `value`: `[B, S, G * W]`
/// - returns `[B, T, H * W]`
///
/// # Panics
/// If the shapes disagree with each other or with the options.
///
/// # Source
/// Vaswani et al., Attention Is All You Need, arXiv:1706.03762, eq. 1 and section 3.2.2; Ainslie et
/// al., GQA, arXiv:2305.13245, section 2.2.
pub fn attention_with(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    options: &AttentionOptions,
) -> Tensor<3> {
    options.check(&query, &key, &value);
    #[cfg(any(feature = "flex", feature = "cube"))]
    let width = query.dims()[2] / options.num_heads;
    #[cfg(feature = "flex")]
    if [&query, &key, &value]
        .into_iter()
        .all(crate::flex::supports)
        && options.bias.as_ref().is_none_or(crate::flex::supports)
    {
        let rules = flex::Rules::new(options, options.scale_of(width));
        let bias = options.bias.clone();
        let bias = bias.unwrap_or_else(|| Tensor::zeros([1; 4], &query.device()));
        return Tensor::from_dispatch(Dispatch::fast_attention(
            query.into_dispatch(),
            key.into_dispatch(),
            value.into_dispatch(),
            bias.into_dispatch(),
            rules,
        ));
    }
    #[cfg(feature = "cube")]
    if [&query, &key, &value]
        .into_iter()
        .all(crate::cube::supports)
        && cube::is_able(options, width)
    {
        let rules = cube::Rules::new(options, options.scale_of(width));
        let none = || Tensor::zeros([1, 1], &query.device());
        let mask = options.mask.clone().map_or_else(none, |x| x.float());
        let segments = options.segments.clone().map_or_else(none, |x| x.float());
        return Tensor::from_dispatch(Dispatch::cube_attention(
            query.into_dispatch(),
            key.into_dispatch(),
            value.into_dispatch(),
            mask.into_dispatch(),
            segments.into_dispatch(),
            rules,
        ));
    }
    portable::attention_with(query, key, value, options)
}

#[cfg(test)]
pub(crate) mod tests {
    use molora_testkit::{assert_close, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Oracle};

    pub(crate) const CASES: &[Case] = &[
        Case {
            name: "attention",
            others: |shape| vec![shape; 2],
            fast: |t| of_three(attention, t),
            plain: Some(|t| of_three(portable::attention, t)),
            is_row_wise: false,
            tiny: Some((mean_of_equals, 1.0)),
        },
        Case {
            name: "attention_with",
            others: |[rows, width]| {
                vec![
                    [rows, width / 3],
                    [rows, width / 3],
                    [rows / 2 * 3, rows / 2],
                ]
            },
            fast: |t| causal(t),
            plain: None,
            is_row_wise: false,
            tiny: None,
        },
    ];

    type Attend = fn(Tensor<3>, Tensor<3>, Tensor<3>, Option<Tensor<2, Bool>>, usize) -> Tensor<3>;

    /// Two batch items of three heads.
    fn of_three(attend: Attend, t: &[Tensor<2>]) -> Tensor<2> {
        let [rows, width] = t[0].dims();
        let halves = |x: Tensor<2>| x.reshape([2, rows / 2, width]);
        let [key, value] = [1, 2].map(|i| halves(t[0].clone() * t[i].clone()));
        attend(halves(t[0].clone()), key, value, None, 3).reshape([rows, width])
    }

    /// The same with one key head, a bias, and later keys hidden.
    fn causal(t: &[Tensor<2>]) -> Tensor<2> {
        let [rows, width] = t[0].dims();
        let half = rows / 2;
        let options = AttentionOptions::new(3)
            .with_num_kv_heads(1)
            .with_causal(0)
            .with_bias(Some(t[3].clone().reshape([1, 3, half, half])));
        let [query, key, value] = [0, 1, 2].map(|i| t[i].clone().reshape([2, half as i64, -1]));
        attention_with(query, key, value, &options).reshape([rows, width])
    }

    /// The mean of four equal values, as all scores are equal.
    fn mean_of_equals(x: Tensor<2>) -> Tensor<2> {
        let ones = Tensor::<2>::ones_like(&x);
        let [query, value] = [ones, x].map(|row| row.expand([4, 4]).unsqueeze::<3>());
        let mean = attention(query.clone(), query, value, None, 1);
        mean.narrow(1, 0, 1).reshape([1, 4])
    }

    #[test]
    fn known_values() {
        // One head of width 1 and scores 0 and ln 3: weights 1/4 and 3/4.
        let query = Tensor::<3>::from_floats([[[1.0]]], &device());
        let key = Tensor::<3>::from_floats([[[0.0], [1.098_612_3]]], &device());
        let value = Tensor::<3>::from_floats([[[4.0], [8.0]]], &device());
        let out = attention(query.clone(), key.clone(), value.clone(), None, 1);
        assert_close(out, [[[7.0]]], 1e-6, "attention");
        let mask = Tensor::<2, Bool>::from_data([[true, false]], &device());
        assert_close(
            attention(query, key, value, Some(mask), 1),
            [[[4.0]]],
            1e-6,
            "masked",
        );
    }

    #[test]
    fn without_an_allowed_key_output_and_gradients_are_zero() {
        let device = device().autodiff();
        let mask = Tensor::<2, Bool>::from_data([[false; 3], [true, false, true]], &device);
        for run in [attention, portable::attention] {
            let x = Tensor::<3>::from_floats([[[1.0, -2.0]; 3]; 2], &device).require_grad();
            let out = run(x.clone(), x.clone(), x.clone(), Some(mask.clone()), 2);
            let masked = out
                .clone()
                .narrow(0, 0, 1)
                .into_data()
                .try_to_vec::<f32>()
                .unwrap();
            assert_eq!(masked, [0.0; 6]);
            let grad = x.grad(&out.square().sum().backward()).unwrap();
            assert_eq!(
                grad.narrow(0, 0, 1)
                    .into_data()
                    .try_to_vec::<f32>()
                    .unwrap(),
                [0.0; 6]
            );
        }
    }

    #[test]
    fn nan_reaches_the_queries_that_see_it() {
        let query = Tensor::<3>::ones([2, 1, 1], &device());
        let key = Tensor::<3>::from_floats([[[1.0], [f32::NAN]], [[1.0], [1.0]]], &device());
        let out = attention(query, key, Tensor::ones([2, 2, 1], &device()), None, 1);
        let out = out.into_data().try_to_vec::<f32>().unwrap();
        assert!(out[0].is_nan() && out[1] == 1.0);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let x = Tensor::<3>::from_floats([[[1e4], [-1e4], [1.0]]], &device());
        let out = attention(x.clone(), x.clone(), x, None, 1);
        assert_close(out, [[[1e4], [-1e4], [1e4]]], 1e-6, "attention");
    }

    #[test]
    #[should_panic(expected = "3 heads do not divide 4")]
    fn heads_that_do_not_divide_the_width_are_refused() {
        let x = Tensor::<3>::ones([1, 2, 4], &device());
        attention(x.clone(), x.clone(), x, None, 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn equals_the_portable_definition(
            batch in 1usize..4, queries in 1usize..140, keys in 1usize..70, heads in 1usize..5,
            width in 1usize..36, masked: bool, tracked: [bool; 3], seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let query = oracle.tensor([batch * queries, heads * width], 2.0, tracked[0]);
            let key = oracle.tensor([batch * keys, heads * width], 1.0, tracked[1]);
            let value = oracle.tensor([batch * keys, heads * width], 1.0, tracked[2]);
            let mask = masked.then(|| oracle.mask(batch, keys));
            type Run = fn(
                Tensor<3>, Tensor<3>, Tensor<3>, Option<Tensor<2, Bool>>, usize,
            ) -> Tensor<3>;
            let run = |attend: Run| {
                let mask = mask.clone();
                move |t: &[crate::testing::Input]| {
                    let device = t[0].matrix().device();
                    let mask = mask.as_ref().map(|mask| crate::testing::moved(mask, &device));
                    let split = |i: usize| t[i].matrix().reshape([batch as i32, -1, (heads * width) as i32]);
                    attend(split(0), split(1), split(2), mask, heads)
                        .reshape([batch * queries, heads * width])
                }
            };
            oracle.check(&[query, key, value], run(attention), run(portable::attention));
        }
    }
}
