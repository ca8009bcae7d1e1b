//! The mix in burn's tensor operations.

use burn::tensor::Tensor;

use super::{LowRankMix, Sizes};

/// The definition by products with broadcast factors.
///
/// # Panics
/// If the shapes disagree.
pub fn low_rank_mix(base: Option<Tensor<3>>, mix: LowRankMix) -> Tensor<3> {
    let sizes = mix.sizes(base.as_ref());
    self::mix(base, mix, sizes)
}

/// The same, of sizes that are known.
pub(super) fn mix(base: Option<Tensor<3>>, mix: LowRankMix, sizes: Sizes) -> Tensor<3> {
    let [batch, tokens, width] = mix.low.dims();
    let Sizes { experts, rank, .. } = sizes;
    let mut low = mix.low;
    if let Some(rank_scale) = mix.rank_scale {
        low = low * rank_scale.reshape([1, 1, width]);
    }
    if mix.factor != 1.0 {
        low = low.mul_scalar(mix.factor);
    }
    let low = low.reshape([batch, tokens, width / rank, rank]);
    let code = match mix.weights {
        Some(weights) => {
            // What was not selected gets no gradient.
            let weights = match mix.is_selection {
                true => weights.clone().mask_fill(weights.equal_elem(0.0), 0.0),
                false => weights,
            };
            low * weights.unsqueeze_dim(3)
        }
        None => low.expand([batch, tokens, experts, rank]),
    };
    let code = code.reshape([batch, tokens, experts * rank]);
    let delta = crate::linear(code, mix.b, None);
    match base {
        Some(base) => base + delta,
        None => delta,
    }
}
