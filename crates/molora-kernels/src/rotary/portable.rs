//! Rotary position embedding in burn's tensor operations.

use burn::tensor::Tensor;

/// The definition on the two halves of what turns.
pub fn rotary(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    let ([.., width], [.., pairs]) = (x.dims(), cos.dims());
    let rest = (2 * pairs < width).then(|| x.clone().narrow(3, 2 * pairs, width - 2 * pairs));
    let (first, second) = (x.clone().narrow(3, 0, pairs), x.narrow(3, pairs, pairs));
    let mut turned = vec![
        first.clone() * cos.clone() - second.clone() * sin.clone(),
        second * cos + first * sin,
    ];
    turned.extend(rest);
    Tensor::cat(turned, 3)
}
