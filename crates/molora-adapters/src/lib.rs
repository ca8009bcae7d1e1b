//! Low-rank experts: given weights, produce the delta of an adapted linear layer.
//!
//! One adapted layer ("site") with a frozen base `W0` computes
//!
//! ```text
//! y = W0 x + gate(task) * s * sum_e w_e B_e core(A_e x)
//! ```
//!
//! where `w` are expert weights from anywhere (a router, labels, constants): this crate never sees
//! a logit. A plain LoRA is the bank of one expert with weight 1.
//!
//! | symbol | meaning |
//! |---|---|
//! | B, T, N | batch, tokens, `N = B * T` |
//! | D, O | input and output width of the site |
//! | R, E | rank, number of experts |
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use molora_adapters::{BankConfig, Scaling, SiteDims, Slices};
//! use molora_kernels::random::Seed;
//!
//! let device = Device::default();
//! let bank = BankConfig {
//!     slices: Slices::Shared,
//!     num_experts: 3,
//!     rank: 8,
//!     scaling: Scaling::AlphaOverRank(16.0),
//!     ..BankConfig::default()
//! }
//! .init(SiteDims { d_input: 32, d_output: 48 }, Seed::new(0), &device);
//!
//! let x_btd = Tensor::<3>::ones([2, 5, 32], &device);
//! let weights_bte = Tensor::<3>::full([2, 5, 3], 1.0 / 3.0, &device);
//! let delta_bto = bank.up(bank.down(x_btd, None), Some(weights_bte));
//! assert_eq!(delta_bto.dims(), [2, 5, 48]);
//! ```

mod assemble;
mod bank;
pub mod combine;
pub mod core;
pub mod down;
mod error;
mod gate;
mod general;
mod given;
pub mod merge;
mod precondition;
mod qr;
mod scaling;
mod start;
mod svd;

pub use bank::{BankConfig, ExpertBank, GateGradient, Mixing, Site, SiteDims, Slices};
pub use combine::Combine;
pub use core::{Core, CoreConfig};
pub use down::{Down, DownConfig};
pub use error::AdapterError;
pub use gate::{GateConfig, TaskGate, task_selector};
pub use general::GeneralExpert;
pub use merge::{LowRank, MergeMethod, truncated};
pub use precondition::{precondition_down, precondition_up};
pub use qr::qr;
pub use scaling::Scaling;
pub use start::{Residual, SegmentStart, Start};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
