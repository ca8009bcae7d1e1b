//! The squares of both projections.

use burn::tensor::Tensor;
use molora_adapters::ExpertBank;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SiteView, TermNumbers};
use crate::Reduction;

/// See [`l2`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct L2;

impl TermNumbers for L2 {
    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        Some(l2(site.bank, reduction))
    }
}

/// Sum of the squares of `A` and `B`, or their mean over all entries.
///
/// # Shapes
/// - returns `[1]`
pub fn l2(bank: &ExpertBank, reduction: Reduction) -> Tensor<1> {
    let (a, b) = (bank.a.val(), bank.b.val());
    let entries = a.shape().num_elements() + b.shape().num_elements();
    let total = a.square().sum() + b.square().sum();
    match reduction {
        Reduction::Mean => total.div_scalar(entries as f64),
        Reduction::Sum => total,
    }
}
