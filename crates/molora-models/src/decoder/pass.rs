//! What the layers of one forward pass share.

use burn::tensor::{Int, Tensor};
use molora_kernels::AttentionOptions;

use super::rope::Rotation;
use crate::{ForwardContext, MoLoraLinear, RouteTrace};

/// One forward pass: what every layer reads, and the routing decisions so far.
pub(super) struct Pass<'a> {
    pub(super) context: &'a ForwardContext,
    /// Where the tokens stand, `[B, T]`.
    pub(super) positions: Tensor<2, Int>,
    /// The same as angles, for rotary positions.
    pub(super) rotation: Option<Rotation>,
    /// Which keys a query may attend to.
    pub(super) attention: AttentionOptions,
    pub(super) routes: Vec<RouteTrace>,
}

impl Pass<'_> {
    /// `[B, T, D]` to `[B, T, O]`, with the routing decision noted.
    pub(super) fn apply(&mut self, linear: &MoLoraLinear, x: Tensor<3>) -> Tensor<3> {
        let (y, route) = linear.forward(x, self.context, None);
        self.routes.extend(route);
        y
    }
}
