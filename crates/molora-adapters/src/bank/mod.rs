//! Banks of low-rank experts and their mixing in two matrix products.
//!
//! `A` is stored as `[D, S*R]` and `B` as `[E*R, O]`, where the slices `S` are 1 (shared) or `E`
//! (independent). Mixing gates the low-rank code and multiplies once by the concatenated `B`:
//!
//! ```text
//! low  = dropout(x) A                      [N, S*R]      slices, down, start, dropout
//! code = w_e * s * core(low)[slice of e]   [N, E*R]      core, scaling
//! y    = code B                            [N, O]        combine
//! ```
//!
//! so that nothing of shape `[N, E, O]` exists and no loop runs over experts; the last two lines are
//! one operation, [`low_rank_mix`](molora_kernels::low_rank_mix). Other ways than the sum to combine
//! experts are in [`combine`](crate::combine). In training, weight
//! dropout replaces `A` by `F o A` with random factors `F` (see [`ExpertBank::weight_factors`]).

mod codes;
mod config;
mod similarity;
#[cfg(test)]
mod tests;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use molora_kernels::linear;
use molora_kernels::random::{Seed, dropout_mask};
use molora_parts::{Axis, ParameterKind, PartTensor};

use crate::Residual;
use crate::combine::{Combine, Weighed};
use crate::core::Core;
use crate::down::Down;
pub use config::{BankConfig, GateGradient, Site, SiteDims, Slices};

/// `E` low-rank experts of one site.
#[derive(Module, Debug)]
pub struct ExpertBank {
    /// Down-projections side by side, `[D, S*R]` with S = 1 (shared) or `E`; of a factored one the
    /// shared factor.
    pub a: Param<Tensor<2>>,
    /// Up-projections one below the other, `[E*R, O]`; a row for each expert where
    /// [`combine`](Self::combine) says so.
    pub b: Param<Tensor<2>>,
    /// What follows the first matrix of the down-projection.
    pub down: Down,
    /// What happens to the low-rank code in between.
    pub core: Core,
    /// What experts started as and the layer loses, where they start as parts of its weight.
    pub residual: Option<Residual>,
    #[module(skip)]
    pub(crate) slices: Slices,
    #[module(skip)]
    pub(crate) combine: Combine,
    pub(crate) num_experts: usize,
    pub(crate) rank: usize,
    pub(crate) factor: f64,
    pub(crate) dropout: f64,
    pub(crate) weight_dropout: f64,
    #[module(skip)]
    pub(crate) gate_gradient: GateGradient,
}

impl ExpertBank {
    /// Every tensor.
    pub fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let kind = ParameterKind::Adapters;
        let ([d_input, _], [rows, d_output]) = (self.a.dims(), self.b.dims());
        let (slices, rank) = (
            self.slices.count(self.num_experts),
            Axis::Rank.of(self.rank),
        );
        let experts = Axis::Expert.of(self.num_experts);
        let (input, output) = ([Axis::Input.of(d_input)], [Axis::Output.of(d_output)]);
        // In mathematical layout: A [S, R, D] and B [E, O, R].
        let a = match self.down.shared_width() {
            Some(width) => {
                let columns = [Axis::Unit.of(width)];
                let name = "experts.shared_A";
                PartTensor::matrix(name, kind, &mut self.a, &input, &columns).stored(&[1, 0])
            }
            None => {
                let (kind, columns) = (self.down.kind(), [slices, rank]);
                let name = "experts.lora_A";
                PartTensor::matrix(name, kind, &mut self.a, &input, &columns).stored(&[1, 2, 0])
            }
        };
        let rows = [experts, Axis::Rank.of(rows / self.num_experts)];
        let b = PartTensor::matrix("experts.lora_B", kind, &mut self.b, &rows, &output);
        let mut tensors = vec![a, b.stored(&[0, 2, 1]).up_projection()];
        tensors.extend(self.down.tensors(slices.axis));
        tensors.extend(self.residual.iter_mut().flat_map(Residual::tensors));
        tensors.extend(self.core.tensors(slices.axis));
        tensors
    }

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
        self.slices.count(self.num_experts).size
    }

    /// Which down-projection an expert reads.
    pub fn slices(&self) -> Slices {
        self.slices
    }

    /// How weighed experts become the delta.
    pub fn combine(&self) -> &Combine {
        &self.combine
    }

    /// Whether the delta under fixed weights is linear in the input, so that a LoRA holds it.
    pub fn is_linear(&self) -> bool {
        self.combine.is_linear() && self.core.is_linear()
    }

    /// Number of experts that a router decides among.
    pub fn choices(&self) -> usize {
        self.combine.choices(self.num_experts)
    }

    /// What each expert costs relative to the largest, where they differ.
    pub fn costs(&self) -> Option<Vec<f64>> {
        self.combine.costs(self.rank)
    }

    /// Number of decisions that weigh the experts of one token.
    pub fn groups(&self) -> usize {
        self.combine.groups(self.rank)
    }

    /// Whether experts have parameters in common.
    pub fn shares(&self) -> bool {
        self.slices == Slices::Shared || self.down.shared_width().is_some() || self.core.is_common()
    }

    /// Number of the down-projection that an expert reads.
    pub fn slice_of(&self, expert: usize) -> usize {
        match self.slices {
            Slices::Independent => expert,
            Slices::Shared => 0,
        }
    }

    /// Probability of dropping an entry of `A` in training.
    pub fn weight_dropout(&self) -> f64 {
        self.weight_dropout
    }

    /// What [`mix`](Self::mix) reads: the low-rank code before any core, `dropout(x) A`, or
    /// `dropout(x)` itself where [`combine`](Self::combine) mixes matrices and not codes.
    ///
    /// With a `dropout` seed (training) and positive probabilities, input activations are dropped by
    /// a mask drawn from that seed, and entries of `A` by [`weight_factors`](Self::weight_factors) of
    /// its child `weight`; without a seed (evaluation) nothing is.
    ///
    /// # Shapes
    /// - `x`: `[B, T, D]`
    /// - returns `[B, T, A*R]`
    pub fn down(&self, x: Tensor<3>, dropout: Option<Seed>) -> Tensor<3> {
        let x = match self.down.is_detached() {
            true => x.detach(),
            false => x,
        };
        if self.combine.reads_inputs() {
            return self.dropped(x, dropout);
        }
        let Some(seed) = dropout else {
            return self.down.apply(linear(x, self.a.val(), None));
        };
        let a = match self.weight_dropout > 0.0 {
            true => self.a.val() * self.weight_factors(seed.child("weight")),
            false => self.a.val(),
        };
        self.down.apply(match self.dropout > 0.0 {
            true => molora_kernels::dropout_linear(x, a, self.dropout, seed),
            false => linear(x, a, None),
        })
    }

    /// The inputs `[B, T, D]` as [`down`](Self::down) reads them under the same seed: with those that
    /// are dropped set to zero.
    pub fn dropped(&self, x: Tensor<3>, dropout: Option<Seed>) -> Tensor<3> {
        match dropout.filter(|_| self.dropout > 0.0) {
            Some(seed) => molora_kernels::dropout(x, self.dropout, seed),
            None => x,
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
        self.down.apply(linear(x, self.a.val() * factors, None))
    }

    /// Factors of weight dropout drawn from `seed`: 0 with the bank's probability p, else
    /// `1 / (1 - p)`, `[D, A*R]`. One draw serves all tokens and, if `A` is shared, all experts.
    pub fn weight_factors(&self, seed: Seed) -> Tensor<2> {
        dropout_mask(self.a.dims(), self.weight_dropout, seed, &self.a.device())
    }

    /// The mixture of the experts' deltas for rows of unknown tasks:
    /// `s * sum_e w_e B_e core(low)_e`.
    ///
    /// # Shapes
    /// - `low`: `[B, T, S*R]` from [`down`](Self::down)
    /// - `weights`: `[B, T, E]`, or with size 1 in the first two axes to be broadcast; `None` weighs
    ///   every expert by 1
    /// - returns `[B, T, O]`
    pub fn up(&self, low: Tensor<3>, weights: Option<Tensor<3>>) -> Tensor<3> {
        self.mix(
            None,
            low,
            Mixing {
                weights,
                ..Mixing::default()
            },
        )
    }

    /// The mixture of the experts' deltas, as [`up`](Self::up), added to the frozen layer's output
    /// `base` `[B, T, O]` if that is given.
    pub fn mix(&self, base: Option<Tensor<3>>, low: Tensor<3>, mixing: Mixing<'_>) -> Tensor<3> {
        let code = match self.combine.reads_inputs() {
            true => low,
            false => self.core.apply(low, mixing.tasks),
        };
        // The sum multiplies by the core's scale in its own products.
        let scale = self.core.scale();
        let code = match scale.filter(|_| self.scales_codes()) {
            Some(scale) => code * scale.unsqueeze(),
            None => code,
        };
        let weighed = Weighed {
            code,
            weights: self.scaled(mixing.weights),
            is_selection: mixing.is_selection,
        };
        match (self.gate_gradient, &weighed.weights) {
            // Without gradients the plain mix has the same value.
            (GateGradient::SquareRoot, Some(weights)) if weighed.code.is_autodiff() => {
                let roots = weights.clone().detach().clamp_min(0.0).sqrt();
                self.square_root_mix(base, weighed, roots)
            }
            _ => self.combine.mix(self, base, weighed),
        }
    }

    /// The mix whose experts' outputs `o_e` get the gradient `sqrt(w_e) dy` in place of `w_e dy`, and whose
    /// weights get `<dy, o_e>` as ever; the value is that of the plain mix:
    ///
    /// ```text
    /// sum_e w_e stop(o_e)  +  d - stop(d),   d = sum_e stop(sqrt(w_e)) o_e
    /// ```
    ///
    /// Two mixes, so that a mixture costs three matrix products. arXiv:2502.15828, section 3.
    fn square_root_mix(
        &self,
        base: Option<Tensor<3>>,
        weighed: Weighed,
        roots: Tensor<3>,
    ) -> Tensor<3> {
        let fixed = Weighed {
            code: weighed.code.clone().detach(),
            ..weighed.clone()
        };
        let learned = Weighed {
            weights: Some(roots),
            ..weighed
        };
        let learned = self.combine.mix(self, None, learned);
        let frozen = self.clone().no_grad();
        self.combine.mix(&frozen, base, fixed) + (learned.clone() - learned.detach())
    }

    /// Weights times the core's factor for each expert, where it has one.
    fn scaled(&self, weights: Option<Tensor<3>>) -> Option<Tensor<3>> {
        let Some(scale) = self.core.expert_scale() else {
            return weights;
        };
        let scale = scale.reshape([1, 1, self.num_experts]);
        Some(match weights {
            Some(weights) => weights * scale,
            None => scale,
        })
    }

    /// Whether the code is multiplied by the core's scale before experts are combined.
    fn scales_codes(&self) -> bool {
        !self.combine.is_sum() && self.combine.is_linear()
    }

    /// What the layer loses for `[B, T, D]` because experts started as parts of its weight, added to
    /// `base` if that is given; without such a start `base` as it is.
    pub fn less_start(&self, base: Option<Tensor<3>>, x: &Tensor<3>) -> Option<Tensor<3>> {
        let Some(residual) = &self.residual else {
            return base;
        };
        let delta = residual.delta(x.clone());
        Some(match base {
            Some(base) => base + delta,
            None => delta,
        })
    }

    /// The output of every expert apart, `s B_e code_e`: `[N, E, O]`. A mixture never needs it; terms
    /// that compare outputs take it for some tokens.
    ///
    /// # Shapes
    /// - `code`: `[N, S*R]` behind the core but for its [`scale`](Core::scale)
    pub fn outputs(&self, code: Tensor<2>) -> Tensor<3> {
        let ([rows, _], experts) = (code.dims(), self.num_experts);
        let code = match self.core.scale() {
            Some(scale) => code * scale.unsqueeze(),
            None => code,
        };
        let code_snr = code
            .reshape([rows, self.num_a(), self.rank])
            .swap_dims(0, 1);
        let code_enr = code_snr.expand([experts, rows, self.rank]);
        let outputs_eno = code_enr.matmul(self.b_by_expert());
        let outputs_eno = match self.core.expert_scale() {
            Some(scale) => outputs_eno * scale.reshape([experts, 1, 1]),
            None => outputs_eno,
        };
        outputs_eno.swap_dims(0, 1).mul_scalar(self.factor)
    }

    /// `A` with what the core does to its code, `[D, S*R]`: the products with it are the codes that
    /// `B` reads. `task` `[1, tasks]` picks the task of a core that depends on it, see
    /// [`task_selector`](crate::task_selector); without it the task is unknown.
    pub fn a_with_core(&self, task: Option<&Tensor<2>>) -> Tensor<2> {
        let a = self.a_matrix();
        let [d_input, width] = a.dims();
        let a = self.core.apply(a.unsqueeze(), task);
        let a = a.reshape([d_input, width]);
        match self.core.scale() {
            Some(scale) => a * scale.unsqueeze(),
            None => a,
        }
    }

    /// `A` of all slices side by side, `[D, S*R]`, put together where it has factors.
    pub fn a_matrix(&self) -> Tensor<2> {
        self.down.apply(self.a.val().unsqueeze()).squeeze_dim(0)
    }

    /// `A` of every expert apart, `[A, D, R]`.
    pub fn a_by_expert(&self) -> Tensor<3> {
        let a = self.a_matrix();
        let [d_input, width] = a.dims();
        a.reshape([d_input, width / self.rank, self.rank])
            .swap_dims(0, 1)
    }

    /// `B` of every expert apart, `[E, R, O]`.
    pub fn b_by_expert(&self) -> Tensor<3> {
        let ([rows, d_output], experts) = (self.b.dims(), self.num_experts);
        let b = self.b.val().reshape([experts, rows / experts, d_output]);
        b.expand([experts, self.rank, d_output])
    }

    /// The weight delta of a static mixture, `s * sum_e w_e A_e core B_e` less what the layer loses at
    /// the start, to be added to a base weight `[D, O]`; a core that depends on tasks is that of an
    /// unknown one. Where experts are combined otherwise than by a sum, what that gives.
    ///
    /// # Shapes
    /// - `weights`: `[E]`
    /// - returns `[D, O]`
    pub fn weight_delta(&self, weights: Tensor<1>) -> Tensor<2> {
        let low = match self.combine.reads_inputs() {
            true => Tensor::eye(self.a.dims()[0], &self.a.device()),
            false => self.a_matrix(),
        };
        let weights = weights.reshape([1, 1, self.choices()]);
        let delta = self.up(low.unsqueeze(), Some(weights)).squeeze_dim(0);
        match &self.residual {
            Some(residual) => {
                let start = residual.a.val().matmul(residual.b.val());
                delta - start.mul_scalar(residual.factor)
            }
            None => delta,
        }
    }

    /// `A` `[D, K]` and `B` `[K, O]` of the mixture under fixed weights `[1, G, E]` or `[1, 1, E]`, without
    /// the bank's factor, where experts are combined otherwise than by a sum; `task` as in
    /// [`a_with_core`](Self::a_with_core).
    ///
    /// # Panics
    /// If no LoRA holds the mixture: [`is_linear`](Self::is_linear) says so.
    pub fn factors(&self, weights: Tensor<3>, task: Option<&Tensor<2>>) -> (Tensor<2>, Tensor<2>) {
        assert!(self.is_linear(), "no LoRA holds the mixture");
        if let Some(mixed) = self.combine.factors(self, weights.clone()) {
            return mixed;
        }
        let a = self.a_with_core(task);
        let width = a.dims()[1];
        // Codes with a single one each read the rows of B under these weights.
        let code = Tensor::<2>::eye(width, &a.device()).unsqueeze::<3>();
        let weighed = Weighed {
            code: code.div_scalar(self.factor),
            weights: Some(weights),
            is_selection: false,
        };
        (a, self.combine.mix(self, None, weighed).squeeze_dim(0))
    }

    /// `A` `[D, K]` and `B` `[K, O]` of what the layer loses because experts started as parts of its
    /// weight, without the bank's factor; none without such a start.
    pub fn lost(&self) -> Option<(Tensor<2>, Tensor<2>)> {
        let residual = self.residual.as_ref()?;
        let b = residual.b.val().mul_scalar(-residual.factor / self.factor);
        Some((residual.a.val(), b))
    }
}

/// How experts are mixed.
#[derive(Debug, Clone, Default)]
pub struct Mixing<'a> {
    /// Weights of the experts, `[B, T*G, E]` for G [groups](ExpertBank::groups), or with size 1 in the
    /// first two axes to be broadcast; `None` weighs every expert by 1.
    pub weights: Option<Tensor<3>>,
    /// Whether a weight of 0 stands for an expert that was not selected: it gets no gradient, and
    /// its work may be left out.
    pub is_selection: bool,
    /// Rows that pick each sequence's task, `[B, tasks]`, for a core that depends on tasks.
    pub tasks: Option<&'a Tensor<2>>,
}
