//! Entropy of the routers' softmax.

use burn::tensor::{Tensor, activation::log_softmax};
use molora_routing::RouterOutput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// See [`router_entropy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct RouterEntropy;

impl TermNumbers for RouterEntropy {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router]
    }

    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        site.routed.map(|routed| router_entropy(routed, reduction))
    }
}

/// Entropy `-sum_e p_e ln p_e` of the routers' softmax in nats: the mean over the decisions that
/// count, or their sum. Between 0 (one expert has it all) and `ln E` (uniform).
///
/// # Shapes
/// - returns `[1]`
pub fn router_entropy(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    let surprise = log_softmax(routed.logits.clone(), 2).neg();
    let total = routed.sum_counted(routed.probs.clone() * surprise).sum();
    match reduction {
        Reduction::Mean => total / routed.num_decisions(),
        Reduction::Sum => total,
    }
}
