//! Routers: given hidden states, produce weights over experts.
//!
//! A [`Router`] is three steps, each a value of its [`RouterConfig`]:
//!
//! 1. a [**scorer**](scorer) turns features into logits: linear, cosine, prototypes (PHATGOOSE), Arrow's
//!    directions, groups (AT-MoE's two levels), uniform;
//! 2. a **selection** keeps some experts: [`Selection::Dense`], [`Selection::TopK`],
//!    [`Selection::TopP`], [`Selection::Argmax`], [`Selection::StraightThrough`];
//! 3. a [**normaliser**](normaliser) turns the logits of those into weights in f32: softmax, sigmoid, the
//!    probability as it is, what exceeds a learned threshold.
//!
//! Scorers and normalisers are axes: each choice is a file that describes itself, and a line in the
//! list of its axis.
//!
//! What is known of a sequence from outside its features enters as [`Guidance`]: a bias on the
//! logits (GLIDER's global score, or a ban) and labels that replace the selection
//! (Mixture-of-LoRAs' training). [`LayerRule`] reconciles the choices of several layers' routers.
//!
//! [`Granularity`] says what one decision is taken for: a token, a sequence ([`Pooling`] sums up its
//! tokens) or a task. This crate never sees a LoRA matrix: what goes in and out are tensors.
//!
//! | symbol | meaning |
//! |---|---|
//! | B, T | batch, tokens |
//! | F | width of the router's features |
//! | E, K | number of experts, of selected experts |
//! | G, L | number of groups of experts, of layers |
//! | V | width of a text vector |
//!
//! ```
//! use burn::tensor::{Bool, Device, Tensor};
//! use molora_kernels::random::Seed;
//! use molora_routing::{RouteInput, RouterConfig, Selection};
//!
//! let device = Device::default();
//! let config = RouterConfig { selection: Selection::TopK(2), ..RouterConfig::default() };
//! let router = config.init(16, 4, 0, Seed::new(0), &device);
//! let routed = router.route(&RouteInput {
//!     features: Tensor::ones([2, 5, 16], &device),
//!     mask: Tensor::<2>::ones([2, 5], &device),
//!     tasks: None,
//!     columns: None,
//! });
//! assert_eq!(routed.weights.dims(), [2, 5, 4]);
//! ```

mod error;
mod guidance;
pub mod normaliser;
mod output;
mod pool;
mod router;
pub mod scorer;
mod select;
mod vote;

pub use error::RoutingError;
pub use guidance::{Guidance, expert_labels, text_cosines};
pub use normaliser::{Normaliser, NormaliserConfig, Weighed};
pub use output::{RoutedPart, RouterOutput};
pub use pool::Pooling;
pub use router::{Granularity, RouteFrom, RouteInput, Router, RouterConfig};
pub use scorer::{Scorer, ScorerConfig};
pub use select::{Selected, Selection};
pub use vote::{LayerRule, count_votes};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
