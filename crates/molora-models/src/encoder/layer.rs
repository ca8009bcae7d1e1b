//! A layer: attention and a feed-forward part, each added to what it reads.

use burn::module::Module;
use burn::tensor::Tensor;
use molora_routing::RouterOutput;

use super::attention::{Attention, Surroundings};
use super::convolution::Convolution;
use crate::feed_forward::FeedForwardParts;
use crate::layers::Activation;
use crate::scope::{Decides, decide_feed_forward};
use crate::{ForwardContext, LayerNorm, LayerRouter, MoLoraLinear, RouteTrace};

/// One layer of an encoder.
#[derive(Module, Debug)]
pub(super) struct Layer {
    pub(super) router: Option<LayerRouter>,
    pub(super) attention: Attention,
    /// The first layer may have none, where normalisation comes first.
    pub(super) attention_norm: Option<LayerNorm>,
    pub(super) gate: Option<MoLoraLinear>,
    pub(super) up: MoLoraLinear,
    pub(super) down: MoLoraLinear,
    pub(super) feed_forward_norm: LayerNorm,
    /// Beside the whole layer.
    pub(super) convolution: Option<Convolution>,
    /// Whether normalisation stands in front of each part rather than behind its sum.
    pub(super) norm_first: bool,
    #[module(skip)]
    pub(super) activation: Activation,
}

/// What all sites of a layer read beside their input.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) around: &'a Surroundings,
    pub(super) context: &'a ForwardContext,
    pub(super) shared: Option<&'a RouterOutput>,
    /// The router of the feed-forward part.
    pub(super) feed_forward: Option<&'a LayerRouter>,
}

/// Looks at a linear layer, its input and what the layer's sites share.
pub(super) type See<'a> = dyn FnMut(&MoLoraLinear, &Tensor<3>, &Pass<'_>) + 'a;

impl Layer {
    /// `[B, T, D]` to `[B, T, D]`.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        pass: &Pass<'_>,
        routes: &mut Vec<RouteTrace>,
        see: &mut See<'_>,
    ) -> Tensor<3> {
        let mut apply = |linear: &MoLoraLinear, x, shared: Option<&RouterOutput>| {
            see(linear, &x, &Pass { shared, ..*pass });
            linear.forward(x, pass.context, shared)
        };
        let input = x.clone();
        let tokens = |linear: &MoLoraLinear, x| {
            let (y, route) = apply(linear, x, pass.shared);
            routes.extend(route);
            y
        };
        let positions = |linear: &MoLoraLinear, rows| {
            linear.forward_undecided(rows, pass.context, pass.shared.is_some())
        };
        let x = self.attend(x, pass.around, tokens, positions);
        let parts = self.feed_forward();
        let read = self.read(Some(&self.feed_forward_norm), &x);
        let decided = pass.feed_forward.zip(parts.first_site());
        let decided = decided.map(|(router, site)| {
            let route = decide_feed_forward(router, site, &read, pass.context, None);
            routes.push(route.clone());
            (router, route.routed)
        });
        let y = match decided {
            Some((router, routed)) if router.decides == Decides::FeedForward => {
                let slots = router.router.most_selected(routed.num_experts());
                parts.mixed(read, &routed, slots, pass.context)
            }
            decided => {
                let routed = decided.map(|(_, routed)| routed);
                let shared = routed.as_ref().or(pass.shared);
                let y = parts.compute(read.clone(), |linear, x| {
                    let (y, route) = apply(linear, x, shared);
                    routes.extend(route);
                    y
                });
                let (y, route) = parts.down.beside(y, read, pass.context);
                routes.extend(route);
                y
            }
        };
        let y = self.joined(Some(&self.feed_forward_norm), y, x);
        self.convolved(input, y, pass.around)
    }

    /// The layer with its linear layers computed by `apply`.
    pub(super) fn compute(
        &self,
        x: Tensor<3>,
        around: &Surroundings,
        apply: &dyn Fn(&MoLoraLinear, Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let input = x.clone();
        let x = self.attend(x, around, apply, apply);
        let read = self.read(Some(&self.feed_forward_norm), &x);
        let y = self.feed_forward().compute(read, apply);
        let y = self.joined(Some(&self.feed_forward_norm), y, x);
        self.convolved(input, y, around)
    }

    /// Attention, added to what it reads.
    fn attend(
        &self,
        x: Tensor<3>,
        around: &Surroundings,
        apply: impl FnMut(&MoLoraLinear, Tensor<3>) -> Tensor<3>,
        apart: impl Fn(&MoLoraLinear, Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let norm = self.attention_norm.as_ref();
        let read = self.read(norm, &x);
        let y = self.attention.forward(read, around, apply, apart);
        self.joined(norm, y, x)
    }

    /// What a part reads.
    fn read(&self, norm: Option<&LayerNorm>, x: &Tensor<3>) -> Tensor<3> {
        match norm.filter(|_| self.norm_first) {
            Some(norm) => norm.forward(x.clone()),
            None => x.clone(),
        }
    }

    /// The output `y` of a part and its input `x`.
    fn joined(&self, norm: Option<&LayerNorm>, y: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        match norm.filter(|_| !self.norm_first) {
            Some(norm) => norm.forward(y + x),
            None => y + x,
        }
    }

    fn convolved(&self, x: Tensor<3>, y: Tensor<3>, around: &Surroundings) -> Tensor<3> {
        match &self.convolution {
            Some(convolution) => convolution.forward(x, y, &around.mask),
            None => y,
        }
    }

    fn feed_forward(&self) -> FeedForwardParts<'_> {
        FeedForwardParts {
            gate: self.gate.as_ref(),
            up: &self.up,
            down: &self.down,
            activation: self.activation,
        }
    }
}
