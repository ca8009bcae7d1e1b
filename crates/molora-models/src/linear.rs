//! A frozen linear layer with an optional mixture of experts: the heart of the project.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use molora_adapters::SiteDims;
use molora_kernels::random::Seed;
use molora_routing::{Guidance, RouterOutput};

use crate::Adapter;

/// What every site of a forward pass reads beside its input.
#[derive(Debug, Clone)]
pub struct ForwardContext {
    /// 1 for real tokens, 0 for padding, `[B, T]`.
    pub mask: Tensor<2>,
    /// Rows that pick each sequence's task, `[B, tasks]`, from
    /// [`task_selector`](molora_adapters::task_selector).
    pub tasks: Option<Tensor<2>>,
    /// Key of this step's dropout masks; `None` in evaluation.
    pub dropout: Option<Seed>,
    /// What tells the routers about whole sequences, besides their features.
    pub guidance: Guidance,
}

impl ForwardContext {
    /// The context of an evaluation without tasks or guidance, for a mask `[B, T]`.
    pub fn new(mask: Tensor<2>) -> Self {
        Self {
            mask,
            tasks: None,
            dropout: None,
            guidance: Guidance::default(),
        }
    }
}

/// The decisions of one router in one forward pass.
#[derive(Debug, Clone)]
pub struct RouteTrace {
    /// Number of the site whose router it is; of the first site in the layer for a layer's router.
    pub site: usize,
    /// What was decided.
    pub routed: RouterOutput,
}

/// `y = x W + b + delta(x)`, with `W` and `b` frozen and `delta` from the adapter, if any.
#[derive(Module, Debug)]
pub struct MoLoraLinear {
    /// Frozen weight, `[D, O]`.
    pub weight: Param<Tensor<2>>,
    /// Frozen bias, `[O]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The trainable part.
    pub adapter: Option<Adapter>,
}

impl MoLoraLinear {
    /// A layer without an adapter.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        let frozen = |bias| Param::from_tensor(bias).set_require_grad(false);
        Self {
            weight: Param::from_tensor(weight).set_require_grad(false),
            bias: bias.map(frozen),
            adapter: None,
        }
    }

    /// Input and output width.
    pub fn dims(&self) -> SiteDims {
        let [d_input, d_output] = self.weight.dims();
        SiteDims { d_input, d_output }
    }

    /// `x W + b` without the adapter, `[B, T, D]` to `[B, T, O]`.
    pub fn base(&self, x: Tensor<3>) -> Tensor<3> {
        let bias = self.bias.as_ref().map(Param::val);
        molora_kernels::linear(x, self.weight.val(), bias)
    }

    /// `[B, T, D]` to `[B, T, O]`, and the routing decisions if the adapter has a router of its own;
    /// `shared` are those of the layer's router for an adapter that has none.
    pub fn forward(
        &self,
        x: Tensor<3>,
        context: &ForwardContext,
        shared: Option<&RouterOutput>,
    ) -> (Tensor<3>, Option<RouteTrace>) {
        let y = self.base(x.clone());
        let Some(adapter) = &self.adapter else {
            return (y, None);
        };
        let (y, routed) = adapter.add_delta(y, x, context, shared);
        (
            y,
            routed.map(|routed| RouteTrace {
                site: adapter.site(),
                routed,
            }),
        )
    }
}
