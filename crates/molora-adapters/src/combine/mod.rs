//! How weighed experts become the delta. One file each, and one line in the list below.
//!
//! | combine | delta of x | a weight for each | from |
//! |---|---|---|---|
//! | `sum` | `s sum_e w_e B_e z_e` | expert | nearly all |
//! | `rank_groups` | `s sum_e B_e (w_e o z_e)`, a weight for every group of ranks | group of ranks and expert | MoDE |
//! | `output_groups` | block g of `s sum_e w_eg B_e z_e` | block of outputs and expert | mtLoRA |
//! | `grid` | `s sum_j b_j sum_i w_ij z_i` | rank i and up-vector j | MoR1E, conditional mixture of LoRA |
//! | `factors` | `s (sum_e w_e B_e) (sum_e w_e A_e) x` | block of inputs and outputs, and expert | Poly, MHR |
//! | `sizes` | `s sum_c w_c B_c A_c x`, experts of different ranks | expert, or none | Duo-LLM |
//! | `orthogonal` | `s sum_e w_e q_e`, q the experts' outputs made orthogonal | expert | OMoE |
//!
//! Where there are G groups, the router takes G decisions for each token. They lie one after another in
//! the second axis of its weights, `[B, T'*G, E]`; a single one counts for all groups.

use burn::tensor::Tensor;

use crate::{AdapterError, BankConfig, ExpertBank, SiteDims};

/// What is combined.
#[derive(Debug, Clone)]
pub struct Weighed {
    /// The low-rank code behind the core with its scale, `[B, T, S*R]`; the input `[B, T, D]` where
    /// the choice [reads inputs](Combining::reads_inputs).
    pub code: Tensor<3>,
    /// Weights `[B, T'*G, E]`, or with size 1 in the first two axes to be broadcast; `None` weighs every
    /// expert by 1.
    pub weights: Option<Tensor<3>>,
    /// Whether a weight of 0 stands for an expert that was not selected.
    pub is_selection: bool,
}

/// A way to combine experts.
pub trait Combining {
    /// Number of decisions that weigh the experts of one token.
    fn groups(&self, _rank: usize) -> usize {
        1
    }

    /// Number of experts that a router decides among, in a bank of so many.
    fn choices(&self, num_experts: usize) -> usize {
        num_experts
    }

    /// What each of them costs relative to the largest, where they differ; in a bank of this rank.
    fn costs(&self, _rank: usize) -> Option<Vec<f64>> {
        None
    }

    /// Rows of `B` that an expert of this rank has.
    fn rows(&self, rank: usize) -> usize {
        rank
    }

    /// Whether matrices are combined before they meet the input, and not codes.
    fn reads_inputs(&self) -> bool {
        false
    }

    /// Whether the delta under fixed weights is linear in the input, so that a LoRA holds it.
    fn is_linear(&self) -> bool {
        true
    }

    /// The most experts of a token that take part, where that is not all of them.
    fn most_selected(&self) -> Option<usize> {
        None
    }

    /// Whether one down-projection has to serve all experts.
    fn needs_shared_slice(&self) -> bool {
        false
    }

    /// Whether an expert is a vector of outputs that any coordinate of the code may have a weight for.
    fn weighs_vectors(&self) -> bool {
        false
    }

    /// Why a trained bank cannot get one more expert, where it cannot.
    fn is_full(&self) -> Option<&'static str> {
        None
    }

    /// Checks the numbers against the bank's.
    ///
    /// # Errors
    /// The first that does not fit.
    fn validate(&self, _bank: &BankConfig) -> Result<(), AdapterError> {
        Ok(())
    }

    /// Checks the numbers against the widths of a site.
    ///
    /// # Errors
    /// [`AdapterError::Groups`] for a width that does not divide.
    fn validate_for(&self, _dims: SiteDims) -> Result<(), AdapterError> {
        Ok(())
    }

    /// `A` `[D, R]` and `B` `[R, O]` under fixed weights `[1, G, E]`, where they are mixed before they meet the
    /// input; `None` where codes are.
    fn factors(&self, _bank: &ExpertBank, _weights: Tensor<3>) -> Option<(Tensor<2>, Tensor<2>)> {
        None
    }

    /// The delta `[B, T, O]`, added to `base` if there is one.
    fn mix(&self, bank: &ExpertBank, base: Option<Tensor<3>>, weighed: Weighed) -> Tensor<3>;
}

/// Makes the enum of the axis and hands every call on.
macro_rules! combines {
    ($($(#[$doc:meta])* $name:literal => $file:ident::$Variant:ident($Numbers:ident)),* $(,)?) => {
        $(
            mod $file;
            pub use $file::$Numbers;
        )*

        molora_parts::choices! {
            /// How weighed experts become the delta.
            pub enum Combine {
                $($(#[$doc])* $name => $Variant($Numbers),)*
            }
        }

        /// The same call for whatever it is.
        macro_rules! each {
            ($combine:expr, $numbers:ident => $call:expr) => {
                match $combine {
                    $(Combine::$Variant($numbers) => $call,)*
                }
            };
        }
    };
}

combines! {
    "sum" => sum::Sum(SumConfig),
    "rank_groups" => rank_groups::RankGroups(RankGroupsConfig),
    "output_groups" => output_groups::OutputGroups(OutputGroupsConfig),
    "grid" => grid::Grid(GridConfig),
    "factors" => factors::Factors(FactorsConfig),
    "sizes" => sizes::Sizes(SizesConfig),
    "orthogonal" => orthogonal::Orthogonal(OrthogonalConfig),
}

impl Default for Combine {
    fn default() -> Self {
        SumConfig.into()
    }
}

impl Combine {
    /// Whether experts' outputs are summed.
    pub fn is_sum(&self) -> bool {
        *self == Self::default()
    }

    /// See [`Combining::groups`].
    pub fn groups(&self, rank: usize) -> usize {
        each!(self, numbers => numbers.groups(rank))
    }

    /// See [`Combining::most_selected`].
    pub fn most_selected(&self) -> Option<usize> {
        each!(self, numbers => numbers.most_selected())
    }

    /// See [`Combining::choices`].
    pub fn choices(&self, num_experts: usize) -> usize {
        each!(self, numbers => numbers.choices(num_experts))
    }

    /// See [`Combining::costs`].
    pub fn costs(&self, rank: usize) -> Option<Vec<f64>> {
        each!(self, numbers => numbers.costs(rank))
    }

    /// See [`Combining::rows`].
    pub fn rows(&self, rank: usize) -> usize {
        each!(self, numbers => numbers.rows(rank))
    }

    /// See [`Combining::reads_inputs`].
    pub fn reads_inputs(&self) -> bool {
        each!(self, numbers => numbers.reads_inputs())
    }

    /// See [`Combining::is_linear`].
    pub fn is_linear(&self) -> bool {
        each!(self, numbers => numbers.is_linear())
    }

    /// See [`Combining::weighs_vectors`].
    pub fn weighs_vectors(&self) -> bool {
        each!(self, numbers => numbers.weighs_vectors())
    }

    /// See [`Combining::needs_shared_slice`].
    pub fn needs_shared_slice(&self) -> bool {
        each!(self, numbers => numbers.needs_shared_slice())
    }

    /// See [`Combining::is_full`].
    pub fn is_full(&self) -> Option<&'static str> {
        each!(self, numbers => numbers.is_full())
    }

    /// See [`Combining::validate`].
    ///
    /// # Errors
    /// The first number that does not fit the bank.
    pub fn validate(&self, bank: &BankConfig) -> Result<(), AdapterError> {
        each!(self, numbers => numbers.validate(bank))
    }

    /// See [`Combining::validate_for`].
    ///
    /// # Errors
    /// [`AdapterError::Groups`] for a width that does not divide.
    pub fn validate_for(&self, dims: SiteDims) -> Result<(), AdapterError> {
        each!(self, numbers => numbers.validate_for(dims))
    }

    /// See [`Combining::factors`].
    pub(crate) fn factors(
        &self,
        bank: &ExpertBank,
        weights: Tensor<3>,
    ) -> Option<(Tensor<2>, Tensor<2>)> {
        each!(self, numbers => numbers.factors(bank, weights))
    }

    /// See [`Combining::mix`].
    pub(crate) fn mix(
        &self,
        bank: &ExpertBank,
        base: Option<Tensor<3>>,
        weighed: Weighed,
    ) -> Tensor<3> {
        each!(self, numbers => numbers.mix(bank, base, weighed))
    }
}

/// Weights `[B, T'*G, E]` by group, `[B, T', G, E]`; a single decision is that of all groups.
fn by_group(weights: Tensor<3>, groups: usize) -> Tensor<4> {
    let [batch, decisions, experts] = weights.dims();
    match decisions {
        1 => {
            let shape = [batch, 1, groups, experts];
            weights.unsqueeze_dim::<4>(2).expand(shape)
        }
        _ => weights.reshape([batch, decisions / groups, groups, experts]),
    }
}

/// `base + delta`.
fn added(base: Option<Tensor<3>>, delta: Tensor<3>) -> Tensor<3> {
    match base {
        Some(base) => base + delta,
        None => delta,
    }
}
