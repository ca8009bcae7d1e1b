//! Orthogonality between experts. O-LoRA, arXiv:2310.14152.

use burn::tensor::Tensor;
use molora_adapters::ExpertBank;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SiteView, TermNumbers};
use crate::Reduction;
use crate::output_cosine::off_diagonal;

/// See [`across_experts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct AcrossExperts;

impl TermNumbers for AcrossExperts {
    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        Some(across_experts(site.bank, reduction))
    }
}

/// Orthogonality between the subspaces of different experts: `sum_{i<j} sum |A_i A_j^T|`.
///
/// [`Reduction::Mean`] takes the mean over pairs and entries. 0 for a shared `A`, which is one
/// subspace.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// O-LoRA, Wang et al., arXiv:2310.14152, eq. 5, between the experts of one bank.
pub fn across_experts(bank: &ExpertBank, reduction: Reduction) -> Tensor<1> {
    let (experts, rank) = (bank.num_a(), bank.rank());
    let a = bank.a_matrix();
    let gram = a.clone().transpose().matmul(a).abs();
    let blocks = gram
        .reshape([experts, rank, experts, rank])
        .sum_dim(3)
        .sum_dim(1)
        .reshape([experts, experts]);
    let total = off_diagonal(blocks.unsqueeze()).sum().div_scalar(2.0);
    match reduction {
        Reduction::Mean => {
            let pairs = experts * experts.saturating_sub(1) / 2;
            total.div_scalar((pairs * rank * rank).max(1) as f64)
        }
        Reduction::Sum => total,
    }
}
