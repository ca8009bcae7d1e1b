//! The gated mixture of low-rank experts.

#[cfg(any(feature = "flex", feature = "cube"))]
mod backend;
pub mod crossover;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
pub(crate) mod portable;
#[cfg(any(feature = "flex", feature = "cube"))]
mod shape;

#[cfg(any(feature = "flex", feature = "cube"))]
use burn::backend::{Dispatch, DispatchTensor};
use burn::tensor::Tensor;

#[cfg(any(feature = "flex", feature = "cube"))]
use self::backend::MixOps;
#[cfg(any(feature = "flex", feature = "cube"))]
use self::shape::MixShape;

/// The operands of [`low_rank_mix`].
///
/// Letters: B batch, T tokens, E experts, R rank, A low-rank codes (1 or E), O output width.
#[derive(Debug, Clone)]
pub struct LowRankMix {
    /// The low-rank code of each token, `[B, T, A * R]`: one for all experts, or one for each.
    pub low: Tensor<3>,
    /// The weight of each expert, `[1 or B, 1 or T, E]`; `None` = 1.
    pub weights: Option<Tensor<3>>,
    /// Whether a weight of 0 stands for an expert that was not selected: it gets no gradient, and
    /// where few of many are selected the fast path leaves out the others, and with them what NaN
    /// they might hold. Otherwise every weight has its gradient.
    pub is_selection: bool,
    /// A factor on each number of the code, `[A * R]`; `None` = 1.
    pub rank_scale: Option<Tensor<1>>,
    /// A constant factor.
    pub factor: f64,
    /// The up-projections one below the other, `[E * R, O]`.
    pub b: Tensor<2>,
}

/// Computes `factor * sum_e weights_e * (rank_scale o low_e) b_e`, added to `base` if there is one.
///
/// The weights multiply the code, which is smaller than the output, so that nothing of shape
/// `[B, T, E, O]` exists; `base` is changed in place if nobody else holds it.
///
/// # Shapes
/// - `base`: `[B, T, O]`
/// - returns `[B, T, O]`
///
/// # Panics
/// If the shapes disagree.
///
/// # Source
/// Hu et al., LoRA, arXiv:2106.09685, eq. 3, for one expert; Tian et al., HydraLoRA,
/// arXiv:2404.19245, eq. 5, for a mixture.
pub fn low_rank_mix(base: Option<Tensor<3>>, mix: LowRankMix) -> Tensor<3> {
    let sizes = mix.sizes(base.as_ref());
    #[cfg(any(feature = "flex", feature = "cube"))]
    if has_fast_path(base.as_ref(), &mix) {
        let ([base, low, weights, scale, b], shape) = mix.into_operands(base, sizes);
        let mixed = Dispatch::fast_low_rank_mix(base, low, weights, scale, b, shape);
        return Tensor::from_dispatch(mixed);
    }
    portable::mix(base, mix, sizes)
}

/// Whether one backend's fast path takes all operands that are there.
#[cfg(any(feature = "flex", feature = "cube"))]
fn has_fast_path(base: Option<&Tensor<3>>, mix: &LowRankMix) -> bool {
    macro_rules! supports_all {
        ($supports:path) => {{
            let threes = [Some(&mix.low), mix.weights.as_ref(), base];
            threes.into_iter().flatten().all($supports)
                && $supports(&mix.b)
                && mix.rank_scale.as_ref().is_none_or($supports)
        }};
    }
    #[cfg(feature = "flex")]
    if supports_all!(crate::flex::supports) {
        return true;
    }
    #[cfg(feature = "cube")]
    if supports_all!(crate::cube::supports) {
        return true;
    }
    false
}

/// Sizes that follow from the shapes.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    experts: usize,
    rank: usize,
}

impl LowRankMix {
    #[track_caller]
    fn sizes(&self, base: Option<&Tensor<3>>) -> Sizes {
        let [batch, tokens, code_width] = self.low.dims();
        let [rows, width] = self.b.dims();
        // Without weights a code that is as long as `b` is high counts as one expert's.
        let experts = match &self.weights {
            Some(weights) => weights.dims()[2],
            None => rows / code_width.max(1),
        };
        assert!(
            experts > 0 && rows.is_multiple_of(experts),
            "{experts} experts do not divide the {rows} rows of b"
        );
        let rank = rows / experts;
        assert!(
            code_width == rank || code_width == rows,
            "a code of width {code_width} for {experts} experts of rank {rank}"
        );
        if let Some(weights) = &self.weights {
            let [items, positions, _] = weights.dims();
            assert!(
                [1, batch].contains(&items) && [1, tokens].contains(&positions),
                "weights {:?} for {batch} rows of {tokens} tokens",
                weights.dims()
            );
        }
        if let Some(rank_scale) = &self.rank_scale {
            assert_eq!(rank_scale.dims(), [code_width], "rank scale");
        }
        if let Some(base) = base {
            assert_eq!(base.dims(), [batch, tokens, width], "base");
        }
        Sizes { experts, rank }
    }

    /// Base, code, weights, rank scale and `b` for a fast path, with stand-ins for what is absent: a
    /// factor of 1 changes no bit.
    #[cfg(any(feature = "flex", feature = "cube"))]
    fn into_operands(
        self,
        base: Option<Tensor<3>>,
        sizes: Sizes,
    ) -> ([DispatchTensor; 5], MixShape) {
        let (device, code_width) = (self.b.device(), self.low.dims()[2]);
        let shape = MixShape {
            rank: sizes.rank,
            factor: self.factor as f32,
            has_base: base.is_some(),
            is_selection: self.is_selection,
            sparse_ratio: crossover::sparse_ratio(),
        };
        let base = base.unwrap_or_else(|| Tensor::zeros([1; 3], &device));
        let weights = self.weights;
        let weights = weights.unwrap_or_else(|| Tensor::ones([1, 1, sizes.experts], &device));
        let scale = self.rank_scale;
        let scale = scale.unwrap_or_else(|| Tensor::ones([code_width], &device));
        let operands = [
            base.into_dispatch(),
            self.low.into_dispatch(),
            weights.into_dispatch(),
            scale.into_dispatch(),
            self.b.into_dispatch(),
        ];
        (operands, shape)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::tensor::{Bool, TensorData};
    use molora_testkit::{assert_close, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Input, Oracle};

    pub(crate) const CASES: &[Case] = &[
        Case {
            name: "low_rank_mix of 2",
            others: |[rows, width]| vec![[rows, 3], [rows, 2], [3 * 2, width]],
            fast: |t| select_two(low_rank_mix, t),
            plain: Some(|t| select_two(portable::low_rank_mix, t)),
            is_row_wise: false,
            tiny: None,
        },
        Case {
            name: "low_rank_mix of 16",
            others: |[rows, width]| vec![[rows, 3], [rows, 16], [3 * 16, width]],
            fast: |t| select_two(low_rank_mix, t),
            plain: Some(|t| select_two(portable::low_rank_mix, t)),
            is_row_wise: false,
            tiny: None,
        },
    ];

    /// Adds the two experts that each row selects, of rank 3: of two experts in one product, of many
    /// alone.
    fn select_two(
        run: fn(Option<Tensor<3>>, LowRankMix) -> Tensor<3>,
        t: &[Tensor<2>],
    ) -> Tensor<2> {
        let [rows, experts] = t[2].dims();
        let selected = (0..rows * experts).map(|index| {
            let (row, expert) = (index / experts, index % experts);
            f32::from((expert + experts - row % experts) % experts < 2)
        });
        let selected = TensorData::new(selected.collect::<Vec<f32>>(), [rows, experts]);
        let selected = Tensor::<2>::from_data(selected, &t[2].device());
        let mix = LowRankMix {
            low: t[1].clone().unsqueeze(),
            weights: Some((t[2].clone() * selected).unsqueeze()),
            is_selection: true,
            rank_scale: None,
            factor: 0.5,
            b: t[3].clone(),
        };
        run(Some(t[0].clone().unsqueeze()), mix).reshape(t[0].dims())
    }

    /// Two experts of rank 1 on a shared code, `b` of width 2.
    fn small() -> LowRankMix {
        LowRankMix {
            low: Tensor::from_floats([[[3.0], [5.0]]], &device()),
            weights: Some(Tensor::from_floats([[[1.0, 0.5], [0.0, 2.0]]], &device())),
            is_selection: false,
            rank_scale: Some(Tensor::from_floats([2.0], &device())),
            factor: 0.5,
            b: Tensor::from_floats([[1.0, 10.0], [2.0, -4.0]], &device()),
        }
    }

    #[test]
    fn known_values() {
        let expected = [[[6.0, 24.0], [20.0, -40.0]]];
        assert_close(low_rank_mix(None, small()), expected, 1e-6, "mix");
        assert_close(
            portable::low_rank_mix(None, small()),
            expected,
            1e-6,
            "portable mix",
        );
        let base = Tensor::<3>::ones([1, 2, 2], &device());
        let expected = [[[7.0, 25.0], [21.0, -39.0]]];
        let out = low_rank_mix(Some(base.clone()), small());
        assert_close(out, expected, 1e-6, "mix on a base");
        base.into_data()
            .assert_eq(&TensorData::from([[[1.0f32; 2]; 2]]), true);
    }

    #[test]
    fn nan_stays_in_its_token() {
        let mut mix = small();
        mix.low = Tensor::from_floats([[[f32::NAN], [5.0]]], &device());
        let out = low_rank_mix(None, mix)
            .into_data()
            .try_to_vec::<f32>()
            .unwrap();
        assert!(out[0].is_nan() && out[1].is_nan());
        assert_eq!(out[2..], [20.0, -40.0]);
    }

    #[test]
    #[should_panic(expected = "a code of width 3 for 2 experts of rank 1")]
    fn a_code_of_another_width_is_refused() {
        let mut mix = small();
        mix.low = Tensor::ones([1, 2, 3], &device());
        mix.rank_scale = None;
        low_rank_mix(None, mix);
    }

    #[test]
    #[should_panic(expected = "weights [1, 3, 2] for 1 rows of 2 tokens")]
    fn weights_for_other_tokens_are_refused() {
        let mut mix = small();
        mix.weights = Some(Tensor::ones([1, 3, 2], &device()));
        low_rank_mix(None, mix);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn equals_the_portable_definition(
            sizes in (1usize..4, 1usize..90, 1usize..20, 1usize..9, 1usize..80),
            is_shared: bool, per_item: bool, per_token: bool, given: [bool; 3], tracked: [bool; 5],
            top_k in proptest::option::of(1usize..3), seed: u64,
        ) {
            let (batch, tokens, experts, rank, width) = sizes;
            let codes = if is_shared { 1 } else { experts };
            let items = if per_item { batch } else { 1 };
            let positions = if per_token { tokens } else { 1 };
            let [with_base, with_weights, with_scale] = given;
            let mut oracle = Oracle::new(seed);
            let inputs = [
                oracle.tensor([batch * tokens, width], 1.0, with_base && tracked[0]),
                oracle.tensor([batch * tokens, codes * rank], 1.0, tracked[1]),
                oracle.tensor([items * positions, experts], 1.0, with_weights && tracked[2]),
                oracle.tensor([1, codes * rank], 1.0, with_scale && tracked[3]),
                oracle.tensor([experts * rank, width], 1.0, tracked[4]),
            ];
            let run = |run: fn(Option<Tensor<3>>, LowRankMix) -> Tensor<3>| move |t: &[Input]| {
                let base = t[0].matrix().reshape([batch, tokens, width]);
                let mut weights = t[2].matrix().reshape([items, positions, experts]);
                if let Some(top_k) = top_k {
                    // Any of the experts, up to `top_k` of them.
                    let chosen: Vec<bool> = (0..items * positions * experts)
                        .map(|i| (i % experts + i / experts) % experts < top_k)
                        .collect();
                    let chosen = TensorData::new::<bool, _>(chosen, [items, positions, experts]);
                    let chosen = Tensor::<3, Bool>::from_data(chosen, &weights.device());
                    weights = weights.mask_fill(chosen.bool_not(), 0.0);
                }
                let mix = LowRankMix {
                    low: t[1].matrix().reshape([batch, tokens, codes * rank]),
                    weights: with_weights.then_some(weights),
                    is_selection: top_k.is_some(),
                    rank_scale: with_scale.then(|| t[3].row()),
                    factor: 1.7,
                    b: t[4].matrix(),
                };
                run(with_base.then_some(base), mix).reshape([batch * tokens, width])
            };
            oracle.check(&inputs, run(low_rank_mix), run(portable::low_rank_mix));
        }
    }
}
