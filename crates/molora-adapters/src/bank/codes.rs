//! Mixing experts that read inputs of their own.

use burn::tensor::Tensor;
use molora_kernels::{LowRankMix, low_rank_mix};

use super::ExpertBank;

impl ExpertBank {
    /// The mixture of experts of which each reads one of K inputs of a token, added to `base`:
    /// `base + s * sum_k sum_e w_ke B_e core(low_k)_e`. The weighed codes are summed before the one
    /// product with `B`.
    ///
    /// # Shapes
    /// - `base`: `[B, T, O]`
    /// - `low`: `[K*B, T, S*R]`, the codes of the first inputs of all rows first
    /// - `weights`: `[K*B, T, E]`, or with size 1 in the middle; 0 for an expert that does not read the
    ///   input
    /// - `tasks`: `[K*B, tasks]`, for a core that depends on tasks
    /// - returns `[B, T, O]`
    pub fn mix_codes(
        &self,
        base: Tensor<3>,
        low: Tensor<3>,
        weights: Tensor<3>,
        tasks: Option<&Tensor<2>>,
    ) -> Tensor<3> {
        let ([batch, tokens, _], [all, ..]) = (base.dims(), low.dims());
        let (rows, inputs) = (batch * tokens, all / batch);
        let (experts, rank) = (self.num_experts, self.rank);
        let code = self.core.apply(low, tasks);
        let code = match self.core.scale() {
            Some(scale) => code * scale.unsqueeze(),
            None => code,
        };
        let code = code
            .reshape([inputs, rows, self.num_a(), rank])
            .expand([inputs, rows, experts, rank]);
        let weights = weights
            .expand([all, tokens, experts])
            .reshape([inputs, rows, experts, 1]);
        let low = (code * weights).sum_dim(0);
        let mix = LowRankMix {
            low: low.reshape([batch, tokens, experts * rank]),
            weights: None,
            is_selection: false,
            rank_scale: None,
            factor: self.factor,
            b: self.b.val(),
        };
        low_rank_mix(Some(base), mix)
    }
}
