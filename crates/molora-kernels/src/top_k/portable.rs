//! The largest entries in burn's tensor operations.

use burn::tensor::{Bool, Tensor};

/// The definition by one comparison of all pairs.
pub fn top_k_mask<const D: usize>(scores: Tensor<D>, k: usize) -> Tensor<D, Bool> {
    let shape = scores.dims();
    let width = shape[D - 1];
    let rows = shape[..D - 1].iter().product();
    let pairs = [rows, width, width];
    let scores = scores.detach();
    let own = scores.clone().reshape([rows, width, 1]).expand(pairs);
    let other = scores.reshape([rows, 1, width]).expand(pairs);
    // Row e, column j: is j < e, so that a tie counts against the higher index.
    let earlier = Tensor::<2>::ones([width, width], &own.device())
        .tril(-1)
        .bool();
    let earlier = earlier.unsqueeze::<3>().expand(pairs);
    let tie_lost = other.clone().equal(own.clone()).bool_and(earlier);
    let before = other.greater(own).bool_or(tie_lost);
    let rank = before.float().sum_dim(2).reshape(shape);
    rank.lower_scalar(k as f32 - 0.5)
}
