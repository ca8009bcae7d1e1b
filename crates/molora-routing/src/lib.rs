//! Routers: given hidden states, produce weights over experts.
//!
//! A [`Router`] is three steps, each a value of its [`RouterConfig`]:
//!
//! 1. a **scorer** turns features into logits: [`ScorerConfig::Linear`], [`ScorerConfig::Cosine`];
//! 2. a **softmax** with a temperature, in f32;
//! 3. a **selection** keeps some experts: [`Selection::Dense`], [`Selection::TopK`].
//!
//! [`Granularity`] says what one decision is taken for: a token, a sequence or a task. This crate
//! never sees a LoRA matrix: what goes in and out are tensors.
//!
//! | symbol | meaning |
//! |---|---|
//! | B, T | batch, tokens |
//! | F | width of the router's features |
//! | E, K | number of experts, of selected experts |
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
//! });
//! assert_eq!(routed.weights.dims(), [2, 5, 4]);
//! ```

mod error;
mod output;
mod router;
mod scorer;
mod select;

pub use error::RoutingError;
pub use output::RouterOutput;
pub use router::{Granularity, RouteFrom, RouteInput, Router, RouterConfig};
pub use scorer::{CosineScorer, LinearScorer, Scorer, ScorerConfig};
pub use select::Selection;
