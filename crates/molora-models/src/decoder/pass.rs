//! What the layers of one forward pass share.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use molora_kernels::AttentionOptions;
use molora_routing::{Granularity, LayerRule, RouterOutput};

use super::config::LayerConfig;
use super::group::Group;
use super::rope::Rotation;
use crate::observe::{Observation, observation};
use crate::scope::{decide, decide_feed_forward};
use crate::{FirstPass, ForwardContext, LayerRouter, MoLoraLinear, RouteTrace};

/// Decisions per sequence, by the number of the site.
pub(crate) type Decisions = BTreeMap<usize, RouterOutput>;

/// One forward pass: what every layer reads, and the routing decisions so far.
pub(crate) struct Pass<'a> {
    pub(crate) context: ForwardContext,
    /// The rotary positions of the layer that is being computed: where the tokens stand.
    pub(super) rotation: Option<Rotation>,
    /// Those that layers choose from.
    pub(super) rotations: Vec<Rotation>,
    /// Which keys a query may attend to.
    pub(crate) attention: AttentionOptions,
    /// The weight of every expert in a pass without routers; 0 for a pass of the base alone.
    pub(crate) fixed: Option<f64>,
    /// Decisions of the first pass of a cache, which hold for the whole sequence.
    pub(crate) kept: Option<&'a mut Decisions>,
    /// Decisions of the router of the layer that is being computed.
    pub(crate) shared: Option<RouterOutput>,
    /// The router of the next feed-forward part.
    pub(crate) feed_forward: Option<LayerRouter>,
    pub(crate) routes: Vec<RouteTrace>,
    /// What the sites read and added, if requested.
    pub(crate) observed: Option<Vec<Observation>>,
    /// The rows of several decoders, each of which has a pass of its own for what is attached to it.
    pub(super) groups: Vec<Group<'a>>,
}

impl Pass<'_> {
    /// The same pass for other layers, without the decisions so far.
    pub(crate) fn fork(&self) -> Pass<'static> {
        Pass {
            rotations: self.rotations.clone(),
            ..Pass::new(self.context.clone(), self.attention.clone())
        }
    }

    /// A pass with adapters, without rotary positions and kept decisions.
    pub(crate) fn new(context: ForwardContext, attention: AttentionOptions) -> Self {
        Self {
            context,
            rotation: None,
            rotations: Vec::new(),
            attention,
            fixed: None,
            kept: None,
            shared: None,
            feed_forward: None,
            routes: Vec::new(),
            observed: None,
            groups: Vec::new(),
        }
    }

    /// Takes what is a layer's own.
    pub(super) fn see(&mut self, layer: LayerConfig) {
        // A window of one token is the query's own: a distance of 0.
        self.attention.window = layer.window.map(|window| window - 1);
        self.rotation = layer.rope.map(|rope| self.rotations[rope].clone());
    }

    /// `[B, T, D]` to `[B, T, O]`, with the routing decision noted.
    pub(crate) fn apply(&mut self, linear: &MoLoraLinear, x: Tensor<3>) -> Tensor<3> {
        if !self.groups.is_empty() {
            return self.apply_groups(linear, x);
        }
        if let Some(weight) = self.fixed {
            return linear.with_weight(x, weight);
        }
        let y = linear.product(x.clone());
        self.adapt(linear, y, x)
    }

    /// As [`apply`](Self::apply) for the layer's product `y` `[B, T, O]`, which its adapter adds to.
    pub(super) fn adapt(&mut self, linear: &MoLoraLinear, y: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        let here = linear.adapter.as_ref();
        let Some(adapter) = here.filter(|adapter| !adapter.is_beside) else {
            let (y, route) = linear.adapt(y, x, &self.context, None);
            self.routes.extend(route);
            return y;
        };
        if let Some(observed) = &mut self.observed {
            observed.extend(observation(linear, &x, &self.context, self.shared.as_ref()));
        }
        let site = adapter.site();
        let is_own = adapter.router.is_some();
        if let Some(routed) = self.decided(site).filter(|_| is_own) {
            let y = linear.adapt_decided(y, x, &self.context, adapter, &routed);
            self.routes.push(RouteTrace::new(site, routed));
            return y;
        }
        let (y, route) = linear.adapt(y, x, &self.context, self.shared.as_ref());
        let granularity = adapter.router.as_ref().map(|router| router.granularity());
        self.keep(granularity, route.as_ref());
        self.routes.extend(route);
        y
    }

    /// The output `y` of a feed-forward part that read `x`, with what the adapter beside it adds, if its last
    /// linear layer has one.
    pub(crate) fn beside(&mut self, last: &MoLoraLinear, y: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        if !self.groups.is_empty() {
            return self.beside_groups(last, y, x);
        }
        let adapter = last.adapter.as_ref().filter(|adapter| adapter.is_beside);
        let Some(adapter) = adapter.filter(|_| self.fixed.is_none()) else {
            return y;
        };
        let site = adapter.site();
        let granularity = adapter.router.as_ref().map(|router| router.granularity());
        if let Some(routed) = self.decided(site).filter(|_| granularity.is_some()) {
            let y = adapter.add_decided(y, x, &self.context, &routed);
            self.routes.push(RouteTrace::new(site, routed));
            return y;
        }
        let (y, route) = last.beside(y, x, &self.context);
        self.keep(granularity, route.as_ref());
        self.routes.extend(route);
        y
    }

    /// Takes the decision of a layer's router for all its sites.
    pub(crate) fn enter(&mut self, layer: Option<&LayerRouter>, x: &Tensor<3>, rule: LayerRule) {
        self.shared = None;
        let Some(layer) = layer.and_then(LayerRouter::of_layer) else {
            return;
        };
        if let Some(routed) = self.decided(layer.site()) {
            self.shared = Some(routed.clone());
            let site = layer.site();
            self.routes.push(RouteTrace::new(site, routed));
            return;
        }
        let (context, routes) = (&mut self.context, &mut self.routes);
        self.shared = decide(Some(layer), x, rule, context, routes);
        let route = self.routes.last().cloned();
        self.keep(Some(layer.router.granularity()), route.as_ref());
    }

    /// Takes the decision of a first pass for all sites of a layer, where they share one.
    pub(crate) fn enter_after(&mut self, first: &FirstPass, is_first_layer: bool) {
        let found = first.decide(&mut self.context);
        let (Some(router), Some(found)) = (&first.router, found) else {
            return;
        };
        let routed = self.decided(0).unwrap_or(found);
        let route = RouteTrace::new(0, routed.clone());
        self.keep(Some(router.granularity()), Some(&route));
        if is_first_layer {
            self.routes.push(route);
        }
        self.shared = Some(routed);
    }

    /// The decision for the next feed-forward part, which reads `x` and whose first site is `site`, if it
    /// has a router.
    pub(crate) fn decide_feed_forward(
        &mut self,
        site: Option<usize>,
        x: &Tensor<3>,
    ) -> Option<(LayerRouter, RouterOutput)> {
        let router = self.feed_forward.take().filter(|_| self.fixed.is_none())?;
        let kept = self.decided(site?);
        let route = decide_feed_forward(&router, site?, x, &self.context, kept);
        self.keep(Some(router.router.granularity()), Some(&route));
        let routed = route.routed.clone();
        self.routes.push(route);
        Some((router, routed))
    }

    /// Whether decisions of an earlier pass hold.
    pub(crate) fn has_decided(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| !kept.is_empty())
    }

    fn decided(&self, site: usize) -> Option<RouterOutput> {
        self.kept.as_ref()?.get(&site).cloned()
    }

    fn keep(&mut self, granularity: Option<Granularity>, route: Option<&RouteTrace>) {
        if let (Some(kept), Some(Granularity::Sequence), Some(route)) =
            (&mut self.kept, granularity, route)
        {
            kept.insert(route.site, route.routed.clone());
        }
    }
}
