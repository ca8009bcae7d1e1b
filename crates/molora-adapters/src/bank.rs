//! Banks of low-rank experts and their mixing in two matrix products.
//!
//! `A` is stored as `[D, A*R]` and `B` as `[E*R, O]`, where `A` is 1 (shared) or `E` (independent).
//! Mixing gates the low-rank code and multiplies once by the concatenated `B`:
//!
//! ```text
//! low  = dropout(x) A                      [N, A*R]
//! code = w_e * s * sigma o low             [N, E*R]
//! y    = code B                            [N, O]
//! ```
//!
//! so that nothing of shape `[N, E, O]` exists and no loop runs over experts; the last two lines are
//! one operation, [`low_rank_mix`]. In training, weight
//! dropout replaces `A` by `F o A` with random factors `F` (see [`ExpertBank::weight_factors`]).

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::{Seed, dropout_mask, uniform};
use molora_kernels::{LowRankMix, linear, low_rank_mix};
use serde::{Deserialize, Serialize};

use crate::{AdapterError, Scaling};

/// Which matrices the experts have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// Each expert has its own `A` and `B`.
    Independent,
    /// One `A` serves all experts, each has its own `B` (HydraLoRA, arXiv:2404.19245; MoSLD; SAMoRA).
    SharedA,
}

/// Input and output width of an adapted layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteDims {
    /// Input width D.
    pub d_input: usize,
    /// Output width O.
    pub d_output: usize,
}

/// Numbers of an [`ExpertBank`]; widths come with [`init`](Self::init).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BankConfig {
    /// Which matrices are shared.
    pub sharing: Sharing,
    /// Number of experts E.
    pub num_experts: usize,
    /// Rank R of each expert.
    pub rank: usize,
    /// Constant factor on the delta.
    pub scaling: Scaling,
    /// Whether a learned vector `sigma` (initially ones) scales the low-rank code (SAMoRA).
    pub rank_scale: bool,
    /// Probability of dropping an input activation in training.
    pub dropout: f64,
    /// Probability of dropping an entry of `A` in training, in `[0, 1)` (MoSLD's DropConnect).
    pub weight_dropout: f64,
}

impl Default for BankConfig {
    /// A plain LoRA: one expert of rank 8, alpha 16, no dropout.
    fn default() -> Self {
        Self {
            sharing: Sharing::Independent,
            num_experts: 1,
            rank: 8,
            scaling: Scaling::AlphaOverRank(16.0),
            rank_scale: false,
            dropout: 0.0,
            weight_dropout: 0.0,
        }
    }
}

impl BankConfig {
    /// Checks every number that does not depend on a site.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), AdapterError> {
        for (field, value) in [("num_experts", self.num_experts), ("rank", self.rank)] {
            if value == 0 {
                return Err(AdapterError::Zero { field });
            }
        }
        let probabilities = [
            ("dropout", self.dropout),
            ("weight_dropout", self.weight_dropout),
        ];
        for (field, value) in probabilities {
            if !(0.0..1.0).contains(&value) {
                return Err(AdapterError::Probability { field, value });
            }
        }
        self.scaling.validate()
    }

    /// Checks that the rank fits into a site.
    ///
    /// # Errors
    /// [`AdapterError::RankTooLarge`] if it exceeds the smaller width.
    pub fn validate_for(&self, dims: SiteDims) -> Result<(), AdapterError> {
        let limit = dims.d_input.min(dims.d_output);
        if self.rank > limit {
            return Err(AdapterError::RankTooLarge {
                rank: self.rank,
                limit,
            });
        }
        Ok(())
    }

    /// A bank for one site: `A` from U(-1/sqrt(D), 1/sqrt(D)), `B` zero, `sigma` one.
    ///
    /// The bound of `A` is PyTorch's `kaiming_uniform(a = sqrt 5)`, which PEFT and the reference
    /// codes of HydraLoRA and SAMoRA use.
    pub fn init(&self, dims: SiteDims, seed: Seed, device: &Device) -> ExpertBank {
        let num_a = match self.sharing {
            Sharing::Independent => self.num_experts,
            Sharing::SharedA => 1,
        };
        let bound = 1.0 / (dims.d_input as f64).sqrt();
        let a = uniform(
            [dims.d_input, num_a * self.rank],
            bound,
            seed.child("a"),
            device,
        );
        let b = Tensor::zeros([self.num_experts * self.rank, dims.d_output], device);
        let sigma = || Param::from_tensor(Tensor::ones([num_a * self.rank], device));
        ExpertBank {
            a: Param::from_tensor(a),
            b: Param::from_tensor(b),
            rank_scale: self.rank_scale.then(sigma),
            num_experts: self.num_experts,
            rank: self.rank,
            factor: self.scaling.factor(self.rank),
            dropout: self.dropout,
            weight_dropout: self.weight_dropout,
        }
    }
}

/// `E` low-rank experts of one site.
#[derive(Module, Debug)]
pub struct ExpertBank {
    /// Down-projections side by side, `[D, A*R]` with `A` = 1 (shared) or `E`.
    pub a: Param<Tensor<2>>,
    /// Up-projections one below the other, `[E*R, O]`.
    pub b: Param<Tensor<2>>,
    /// Learned scale of the low-rank code, `[A*R]`.
    pub rank_scale: Option<Param<Tensor<1>>>,
    pub(crate) num_experts: usize,
    pub(crate) rank: usize,
    pub(crate) factor: f64,
    pub(crate) dropout: f64,
    pub(crate) weight_dropout: f64,
}

impl ExpertBank {
    /// Number of experts E.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Rank R of each expert.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of down-projections: 1 if shared, else E.
    pub fn num_a(&self) -> usize {
        self.a.dims()[1] / self.rank
    }

    /// Probability of dropping an entry of `A` in training.
    pub fn weight_dropout(&self) -> f64 {
        self.weight_dropout
    }

    /// The low-rank code before any scale: `dropout(x) A`.
    ///
    /// With a `dropout` seed (training) and positive probabilities, input activations are dropped by
    /// a mask drawn from that seed, and entries of `A` by [`weight_factors`](Self::weight_factors) of
    /// its child `weight`; without a seed (evaluation) nothing is.
    ///
    /// # Shapes
    /// - `x`: `[B, T, D]`
    /// - returns `[B, T, A*R]`
    pub fn down(&self, x: Tensor<3>, dropout: Option<Seed>) -> Tensor<3> {
        let Some(seed) = dropout else {
            return linear(x, self.a.val(), None);
        };
        let a = match self.weight_dropout > 0.0 {
            true => self.a.val() * self.weight_factors(seed.child("weight")),
            false => self.a.val(),
        };
        match self.dropout > 0.0 {
            true => molora_kernels::dropout_linear(x, a, self.dropout, seed),
            false => linear(x, a, None),
        }
    }

    /// The low-rank code with every entry of `A` multiplied by a factor: `x (F o A)`.
    ///
    /// This is weight dropout with an explicit mask; [`down`](Self::down) draws the factors.
    ///
    /// # Shapes
    /// - `x`: `[B, T, D]`
    /// - `factors`: `[D, A*R]`, 0 for an entry that is dropped, else `1 / (1 - p)`
    /// - returns `[B, T, A*R]`
    ///
    /// # Source
    /// Wan et al., DropConnect, ICML 2013, with inverted scaling; MoSLD, arXiv:2412.08946.
    pub fn down_masked(&self, x: Tensor<3>, factors: Tensor<2>) -> Tensor<3> {
        linear(x, self.a.val() * factors, None)
    }

    /// Factors of weight dropout drawn from `seed`: 0 with the bank's probability p, else
    /// `1 / (1 - p)`, `[D, A*R]`. One draw serves all tokens and, if `A` is shared, all experts.
    pub fn weight_factors(&self, seed: Seed) -> Tensor<2> {
        dropout_mask(self.a.dims(), self.weight_dropout, seed, &self.a.device())
    }

    /// The mixture of the experts' deltas: `s * sum_e w_e B_e (sigma o low_e)`.
    ///
    /// # Shapes
    /// - `low`: `[B, T, A*R]` from [`down`](Self::down)
    /// - `weights`: `[B, T, E]`, or with size 1 in the first two axes to be broadcast; `None` weighs
    ///   every expert by 1
    /// - returns `[B, T, O]`
    pub fn up(&self, low: Tensor<3>, weights: Option<Tensor<3>>) -> Tensor<3> {
        low_rank_mix(None, self.operands(low, weights))
    }

    /// As [`up`](Self::up), added to the frozen layer's output `base` `[B, T, O]`.
    ///
    /// With `is_selection` a weight of 0 stands for an expert that was not selected: it gets no
    /// gradient, and its work may be left out.
    pub fn up_onto(
        &self,
        base: Tensor<3>,
        low: Tensor<3>,
        weights: Option<Tensor<3>>,
        is_selection: bool,
    ) -> Tensor<3> {
        let operands = LowRankMix {
            is_selection,
            ..self.operands(low, weights)
        };
        low_rank_mix(Some(base), operands)
    }

    fn operands(&self, low: Tensor<3>, weights: Option<Tensor<3>>) -> LowRankMix {
        LowRankMix {
            low,
            weights,
            is_selection: false,
            rank_scale: self.rank_scale.as_ref().map(Param::val),
            factor: self.factor,
            b: self.b.val(),
        }
    }

    /// `A` of every expert apart, `[A, D, R]`.
    pub fn a_by_expert(&self) -> Tensor<3> {
        let [d_input, width] = self.a.dims();
        self.a
            .val()
            .reshape([d_input, width / self.rank, self.rank])
            .swap_dims(0, 1)
    }

    /// `B` of every expert apart, `[E, R, O]`.
    pub fn b_by_expert(&self) -> Tensor<3> {
        self.b
            .val()
            .reshape([self.num_experts, self.rank, self.b.dims()[1]])
    }

    /// The weight delta of a static mixture: `s * sum_e w_e A_e diag(sigma) B_e`, to be added to a
    /// base weight `[D, O]`.
    ///
    /// # Shapes
    /// - `weights`: `[E]`
    /// - returns `[D, O]`
    pub fn weight_delta(&self, weights: Tensor<1>) -> Tensor<2> {
        let [d_input, width] = self.a.dims();
        let low = self.a.val().reshape([1, d_input, width]);
        let weights = weights.reshape([1, 1, self.num_experts]);
        self.up(low, Some(weights)).squeeze_dim(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    fn bank(sharing: Sharing, num_experts: usize, device: &Device) -> ExpertBank {
        let config = BankConfig {
            sharing,
            num_experts,
            rank: 2,
            ..BankConfig::default()
        };
        let mut bank = config.init(
            SiteDims {
                d_input: 5,
                d_output: 4,
            },
            Seed::new(3),
            device,
        );
        let shape = [num_experts * 2, 4];
        bank.b = Param::from_tensor(uniform(shape, 1.0, Seed::new(4), device));
        bank
    }

    fn input(device: &Device) -> Tensor<3> {
        uniform([2, 3, 5], 1.0, Seed::new(5), device)
    }

    /// The mixture written as the papers do: a loop over experts.
    fn looped(bank: &ExpertBank, x: Tensor<3>, weights: Tensor<3>) -> Tensor<3> {
        let (a, b) = (bank.a_by_expert(), bank.b_by_expert());
        let one = |t: &Tensor<3>, e: usize| -> Tensor<2> {
            let e = e.min(t.dims()[0] - 1);
            t.clone().slice_dim(0, e..e + 1).squeeze_dim(0)
        };
        let terms = (0..bank.num_experts()).map(|e| {
            let delta = x
                .clone()
                .matmul(one(&a, e).unsqueeze())
                .matmul(one(&b, e).unsqueeze());
            delta.mul_scalar(bank.factor) * weights.clone().slice([0..2, 0..3, e..e + 1])
        });
        terms
            .reduce(|sum, term| sum + term)
            .expect("at least one expert")
    }

    #[test]
    fn two_products_equal_the_loop_over_experts() {
        let device = molora_testkit::device();
        for sharing in [Sharing::Independent, Sharing::SharedA] {
            let bank = bank(sharing, 3, &device);
            let weights = uniform([2, 3, 3], 1.0, Seed::new(6), &device);
            let mixed = bank.up(bank.down(input(&device), None), Some(weights.clone()));
            assert_close(
                mixed,
                looped(&bank, input(&device), weights),
                FORWARD,
                "mixture",
            );
        }
    }

    #[test]
    fn a_static_mixture_merges_into_the_weight() {
        let device = molora_testkit::device();
        for sharing in [Sharing::Independent, Sharing::SharedA] {
            let mut bank = bank(sharing, 2, &device);
            let sigma = uniform([bank.a.dims()[1]], 1.0, Seed::new(8), &device);
            bank.rank_scale = Some(Param::from_tensor(sigma));
            let weights = Tensor::<1>::from_data([0.25, 0.75], &device);
            let merged = input(&device).matmul(bank.weight_delta(weights.clone()).unsqueeze());
            let routed = bank.up(bank.down(input(&device), None), Some(weights.unsqueeze()));
            assert_close(merged, routed, FORWARD, "merged delta");
        }
    }

    #[test]
    fn a_new_bank_changes_nothing() {
        let device = molora_testkit::device();
        let dims = SiteDims {
            d_input: 5,
            d_output: 4,
        };
        let bank = BankConfig::default().init(dims, Seed::new(0), &device);
        let delta = bank.up(bank.down(input(&device), None), None);
        assert_eq!(delta.abs().max().into_scalar::<f32>(), 0.0);
        assert!(bank.a.val().abs().max().into_scalar::<f32>() <= 1.0 / 5f32.sqrt());
    }

    #[test]
    fn dropout_acts_in_training_only_and_repeats_by_seed() {
        let device = molora_testkit::device();
        let mut bank = bank(Sharing::SharedA, 2, &device);
        bank.dropout = 0.5;
        let code = |seed: Option<Seed>| -> Vec<f32> {
            bank.down(input(&device), seed)
                .into_data()
                .try_to_vec()
                .expect("f32")
        };
        assert_eq!(code(Some(Seed::new(1))), code(Some(Seed::new(1))));
        assert_ne!(code(Some(Seed::new(1))), code(Some(Seed::new(2))));
        assert_ne!(code(Some(Seed::new(1))), code(None));
    }

    /// A of 2 x 4 and its mask from the MoSLD notes' worked example, p 0.1.
    #[test]
    fn weight_dropout_of_the_worked_example() {
        let device = molora_testkit::device();
        let config = BankConfig {
            sharing: Sharing::SharedA,
            rank: 2,
            weight_dropout: 0.1,
            ..BankConfig::default()
        };
        let dims = SiteDims {
            d_input: 4,
            d_output: 3,
        };
        let mut bank = config.init(dims, Seed::new(0), &device);
        bank.a = Param::from_data([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 1.0]], &device);
        let keep = Tensor::<2>::from_data([[1., 1.], [1., 0.], [0., 1.], [1., 1.]], &device);
        let x = Tensor::<3>::from_data([[[1.0, 2.0, 0.5, -1.0]]], &device);
        let low = bank.down_masked(x, keep.div_scalar(1.0 - bank.weight_dropout()));
        // [1 + 1, 0.5 - 1] / 0.9
        assert_close(low, [[[2.222222, -0.555556]]], FORWARD, "low-rank code");
    }

    #[test]
    fn weight_dropout_acts_in_training_only_and_repeats_by_seed() {
        let device = molora_testkit::device();
        let mut bank = bank(Sharing::SharedA, 2, &device);
        bank.weight_dropout = 0.5;
        let seed = Seed::new(1);
        let drawn = bank.weight_factors(seed.child("weight"));
        let explicit = bank.down_masked(input(&device), drawn.clone());
        let found = bank.down(input(&device), Some(seed));
        assert_close(found, explicit.clone(), 0.0, "the drawn mask");
        let other = bank.down(input(&device), Some(Seed::new(2)));
        let gap = (other - explicit).abs().max().into_scalar::<f32>();
        assert!(gap > 0.0, "another seed drops other entries");
        let kept = bank.down(input(&device), None);
        let all = input(&device).matmul(bank.a.val().unsqueeze());
        assert_close(kept, all, FORWARD, "evaluation drops nothing");
        let drawn: Vec<f32> = drawn.into_data().try_to_vec().expect("f32");
        assert!(drawn.iter().all(|&factor| factor == 0.0 || factor == 2.0));
    }

    #[test]
    fn a_configuration_without_weight_dropout_reads_as_zero() {
        let text = r#"{"num_experts": 3, "rank": 4, "dropout": 0.05}"#;
        let config: BankConfig = serde_json::from_str(text).expect("an older file");
        assert_eq!(config.weight_dropout, 0.0);
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let check = |config: BankConfig, text: &str| {
            assert_eq!(config.validate().expect_err(text).to_string(), text);
        };
        check(
            BankConfig {
                rank: 0,
                ..Default::default()
            },
            "rank is 0, expected at least 1",
        );
        check(
            BankConfig {
                dropout: 1.0,
                ..Default::default()
            },
            "dropout is 1, expected at least 0 and less than 1",
        );
        check(
            BankConfig {
                weight_dropout: f64::NAN,
                ..Default::default()
            },
            "weight_dropout is NaN, expected at least 0 and less than 1",
        );
        let dims = SiteDims {
            d_input: 5,
            d_output: 4,
        };
        assert!(
            BankConfig {
                rank: 5,
                ..Default::default()
            }
            .validate_for(dims)
            .is_err()
        );
    }
}
