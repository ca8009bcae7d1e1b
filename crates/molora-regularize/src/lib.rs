//! Auxiliary terms of an objective: given routing decisions or weights, produce a scalar.
//!
//! Three kinds of term, so that nothing has to be collected through side effects:
//!
//! - **routing losses** ([`load_balance`], [`balance_mass`], [`balance_literal`],
//!   [`mass_variation`], [`router_z_loss`], [`router_entropy`], [`token_gini`], [`sequence_gini`],
//!   [`divergence`], [`threshold_balance`], [`domain_cross_entropy`], [`task_information`]) read a [`RouterOutput`](molora_routing::RouterOutput), over real tokens
//!   only;
//! - **weight penalties** ([`orthogonality`], [`across_experts`], [`output_cosine`], [`l2`],
//!   [`key_matching`]) read an [`ExpertBank`](molora_adapters::ExpertBank) and a router's keys;
//! - **contrasts of outputs** ([`info_nce`]) read what selected experts make of some tokens.
//!
//! Beside them stands [`prediction_entropy`], the objective of learned merges, which reads predictions.
//!
//! An [`ObjectiveConfig`] is a weighted list of them; [`ObjectiveConfig::evaluate`] takes what each
//! adapted layer ("site") has to show and returns a [`LossBreakdown`]. This crate knows no model.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use molora_kernels::random::Seed;
//! use molora_regularize::{Reduction, load_balance};
//! use molora_routing::{RouteInput, RouterConfig};
//!
//! let device = Device::default();
//! let router = RouterConfig::default().init(16, 4, 0, Seed::new(0), &device);
//! let routed = router.route(&RouteInput {
//!     features: Tensor::zeros([2, 5, 16], &device),
//!     mask: Tensor::<2>::ones([2, 5], &device),
//!     tasks: None,
//!     columns: None,
//! });
//! // Zero features give uniform weights, for which the balance loss is 1.
//! let loss = load_balance(&routed, Reduction::Mean).into_scalar::<f32>();
//! assert!((loss - 1.0).abs() < 1e-5);
//! ```

mod objective;
mod output_cosine;
mod prediction_entropy;
mod term;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use objective::{LossBreakdown, ObjectiveConfig, Shown, TermConfig};
pub use output_cosine::output_cosine;
pub use prediction_entropy::prediction_entropy;
pub use term::*;

/// How the entries of a term are put together; papers and their released code often differ here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// The mean, which does not grow with rank, experts or tokens.
    #[default]
    Mean,
    /// The sum.
    Sum,
}

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
