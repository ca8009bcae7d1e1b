//! What the sites of a model read and add in a forward pass.

use burn::tensor::Tensor;
use molora_routing::RouterOutput;

use crate::{ForwardContext, MoLoraLinear};

/// What one site read and added in a forward pass.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Number of the site among the model's sites.
    pub site: usize,
    /// What the adapted layer read, `[B, T, D]`; arbitrary at padded positions.
    pub input: Tensor<3>,
    /// What the mixture added to the frozen layer's output, `[B, T, O]`.
    pub delta: Tensor<3>,
    /// 1 for real tokens, 0 for padding, `[B, T]`.
    pub mask: Tensor<2>,
}

/// The observation of an adapted layer; none of a layer without an adapter, or with one that reads what
/// another layer does.
pub(crate) fn observation(
    linear: &MoLoraLinear,
    x: &Tensor<3>,
    context: &ForwardContext,
    shared: Option<&RouterOutput>,
) -> Option<Observation> {
    let adapter = linear.adapter.as_ref();
    let adapter = adapter.filter(|adapter| !adapter.is_beside)?;
    let low = adapter.bank.down(x.clone(), None);
    let (delta, _) = adapter.mix(low, x.clone(), context, shared);
    Some(Observation {
        site: adapter.site(),
        input: x.clone(),
        delta,
        mask: context.mask.clone(),
    })
}
