//! Tensor operations with their own backward pass, and seeded random draws, for molora.
//!
//! Each operation has a *portable definition* in burn's tensor operations, which runs on every
//! backend and whose gradient is burn's autodiff of it, and a *fast path* for the CPU backend
//! `flex` in f32 (feature `flex`): loops compiled for AVX-512, AVX2, NEON and plain code and chosen
//! at run time, on all cores, with a hand-written backward that keeps only what it needs. The
//! function looks at its tensors and picks; a caller writes the same code for every device, with
//! and without gradients, with any subset of the inputs tracked. On the CubeCL backends (features
//! `wgpu` and `cuda`) [`low_rank_mix`] and, without a bias, [`attention_with`] have kernels as well;
//! they are those that beat their portable definition on the device that there was to measure.
//!
//! | operation | computes | kept for the backward by the fast path |
//! |---|---|---|
//! | [`gelu`] | `x * P(X <= x)`, X standard normal | `x` |
//! | [`gelu_tanh`] | its tanh approximation | `x` |
//! | [`soft_cap`] | `cap * tanh(x / cap)` | `x` |
//! | [`silu_gate`] | `gate / (1 + exp(-gate)) * up` | `gate`, `up` |
//! | [`layer_norm`] | `(x - mean) / sqrt(var + eps) * gamma + beta` | `x` |
//! | [`rms_norm`] | `x / sqrt(mean(x^2) + eps) * weight` | `x` |
//! | [`rotary`] | pairs of a head turned by the angles of its token | the angles |
//! | [`attention`] | `softmax(q * k^T / sqrt(width)) * v` per head | `q`, `k`, `v` |
//! | [`attention_with`] | the same, causal, grouped, packed, with a bias | `q`, `k`, `v`, the bias |
//! | [`linear`] | `x * W + b` | nothing but `W` if it is frozen, else `x` |
//! | [`linear_transposed`] | `x * table^T + b` | nothing but a frozen `table` |
//! | [`linear_blocks`] | `x * W^T + b`, `W` of 8 or 4 bits | nothing but `W` |
//! | [`low_rank_mix`] | `y + sum_e w_e * (sigma o low_e) * B_e` | `low`, `w`, `B` |
//! | [`cosines`] | cosines of rows with rows | as the definition |
//! | [`task_gate`] | `sigmoid(selector * (embedding * weight) + bias)` | as the definition |
//! | [`top_k_mask`] | which entries are the `k` largest of their row | no gradient |
//! | [`dropout`] | `x * mask / (1 - p)`, the mask from a seed | nothing |
//! | [`dropout_linear`] | `dropout(x) * W` | `x`, `W` |
//! | [`softmax_cross_entropy`] | `-log softmax(logits)[target]` | `logits`, replaced by their gradient |
//!
//! Inside of [`saving_in_bf16`] the inputs of norms, activations, gates and attention are kept in bf16.
//!
//! Values are the same bits for any number of threads. Against an f64 evaluation the forward is
//! within 2e-6 and the backward within 1e-5 of the largest value. NaN goes through.
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Tensor};
//! use molora_kernels::{attention, layer_norm};
//!
//! let device = Device::flex().autodiff();
//! let x = Tensor::<3>::ones([2, 5, 8], &device).require_grad();
//! let (gamma, beta) = (Tensor::ones([8], &device), Tensor::zeros([8], &device));
//!
//! let normed = layer_norm(x.clone(), gamma, beta, 1e-5);
//! let mixed = attention(normed.clone(), normed.clone(), normed, None, 2);
//! let gradients = mixed.sum().backward();
//! assert_eq!(x.grad(&gradients).map(|grad| grad.dims()), Some([2, 5, 8]));
//! # }
//! ```

// The list of operations: modules, functions, definitions and tests. `flex` and `cube` are what the
// operations share.

#[cfg(feature = "allocator")]
pub mod allocator;
mod attention;
mod cosines;
mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
mod dropout;
#[cfg(feature = "flex")]
mod flex;
mod gelu;
mod layer_norm;
mod linear;
mod low_rank_mix;
pub mod random;
mod rms_norm;
mod rotary;
mod silu_gate;
mod soft_cap;
mod task_gate;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod top_k;

pub use attention::{AttentionOptions, attention, attention_with};
pub use cosines::cosines;
pub use cross_entropy::{smoothed_cross_entropy, softmax_cross_entropy};
pub use dropout::{dropout, dropout_linear};
pub use gelu::{gelu, gelu_tanh};
pub use layer_norm::layer_norm;
pub use linear::{BlockMatrix, linear, linear_blocks, linear_transposed};
pub use low_rank_mix::{LowRankMix, crossover, low_rank_mix};
pub use rms_norm::rms_norm;
pub use rotary::rotary;
pub use silu_gate::silu_gate;
pub use soft_cap::soft_cap;
pub use task_gate::task_gate;
pub use top_k::top_k_mask;

/// Runs `work`, whose operations are those of a token that is written: small, and many. Where a device is the processor
/// and its kernels share what they do between threads, these stay awake meanwhile.
pub fn together<T>(device: &burn::tensor::Device, work: impl FnOnce() -> T) -> T {
    #[cfg(feature = "flex")]
    if *device == burn::tensor::Device::flex() {
        return flex::team::together(work);
    }
    let _ = device;
    work()
}

/// Runs `work`, whose operations round to bf16 what they keep of their inputs for the backward, at half of the memory: the
/// inputs of norms, activations and gates, and queries, keys and values. What `work` computes is not rounded; gradients
/// have errors of about `2^-8` of their size. The fast path of the processor does so; on other backends nothing changes.
pub fn saving_in_bf16<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(feature = "flex")]
    return flex::saved::saving_in_bf16(work);
    #[cfg(not(feature = "flex"))]
    work()
}

/// The portable definitions, as oracles for tests and benches.
#[doc(hidden)]
pub mod portable {
    pub use crate::attention::portable::{attention, attention_with};
    pub use crate::cosines::portable::cosines;
    pub use crate::cross_entropy::portable::softmax_cross_entropy;
    pub use crate::dropout::portable::dropout_linear;
    pub use crate::gelu::portable::{gelu, gelu_tanh};
    pub use crate::layer_norm::portable::layer_norm;
    pub use crate::linear::portable::{linear, linear_transposed};
    pub use crate::low_rank_mix::portable::low_rank_mix;
    pub use crate::rms_norm::portable::rms_norm;
    pub use crate::rotary::portable::rotary;
    pub use crate::silu_gate::portable::silu_gate;
    pub use crate::soft_cap::portable::soft_cap;
    pub use crate::task_gate::portable::task_gate;
    pub use crate::top_k::portable::top_k_mask;
}

/// Every operation, for the tests that all of them go through.
#[cfg(test)]
const OPERATIONS: [&[testing::Case]; 14] = [
    attention::tests::CASES,
    cosines::tests::CASES,
    cross_entropy::tests::CASES,
    dropout::tests::CASES,
    gelu::tests::CASES,
    layer_norm::tests::CASES,
    linear::tests::CASES,
    low_rank_mix::tests::CASES,
    rms_norm::tests::CASES,
    rotary::tests::CASES,
    silu_gate::tests::CASES,
    soft_cap::tests::CASES,
    task_gate::tests::CASES,
    top_k::tests::CASES,
];

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
