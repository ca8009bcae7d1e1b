//! Routers that serve a whole layer, and how layers that disagree are reconciled.

use burn::module::Module;
use burn::tensor::Tensor;
use molora_routing::{LayerRule, RouteInput, Router, RouterOutput};

use crate::{ForwardContext, RouteTrace};

/// What a layer's router reads, and what its decision is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decides {
    /// The layer's input; the experts of all its sites.
    Layer,
    /// The input of the feed-forward part; its sites' experts.
    FeedForwardSites,
    /// The same; experts that are whole feed-forward parts.
    FeedForward,
}

/// The router of one layer, which reads the input of the layer or of its feed-forward part.
#[derive(Module, Debug)]
pub struct LayerRouter {
    /// How the experts are weighed.
    pub router: Router,
    pub(crate) site: usize,
    #[module(skip)]
    pub(crate) decides: Decides,
}

impl LayerRouter {
    /// The router, if it decides for a feed-forward part.
    pub(crate) fn of_feed_forward(&self) -> Option<&Self> {
        (self.decides != Decides::Layer).then_some(self)
    }

    /// The router, if it decides for all sites of a layer.
    pub(crate) fn of_layer(&self) -> Option<&Self> {
        (self.decides == Decides::Layer).then_some(self)
    }

    /// Number of the first site that it decides for, under which the decisions are reported.
    pub fn site(&self) -> usize {
        self.site
    }

    /// The decisions for an input `[B, T, D]`.
    pub(crate) fn route(&self, hidden: Tensor<3>, context: &ForwardContext) -> RouterOutput {
        let input = RouteInput {
            features: hidden,
            mask: context.mask.clone(),
            tasks: context.tasks.clone(),
            columns: None,
        };
        let key = context.dropout.map(|seed| seed.index(self.site as u64));
        let key = key.map(|key| key.child("layer"));
        self.router
            .route_in_training(&input, &context.guidance, key)
    }
}

/// The decision on the input `x` of a feed-forward part whose first site is `site`; `kept` is one that
/// was taken before.
pub(crate) fn decide_feed_forward(
    router: &LayerRouter,
    site: usize,
    x: &Tensor<3>,
    context: &ForwardContext,
    kept: Option<RouterOutput>,
) -> RouteTrace {
    RouteTrace::new(
        site,
        kept.unwrap_or_else(|| router.route(x.clone(), context)),
    )
}

/// The path under which the decisions of a site's or layer's router are reported, by the number of
/// the site: that of the site, or of the layer for the first site of a layer with a router.
pub(crate) fn route_names(sites: Vec<String>, routers: Vec<(String, &LayerRouter)>) -> Vec<String> {
    let mut names = sites;
    for (path, router) in routers {
        names[router.site] = path;
    }
    names
}

/// Takes the decision of a layer's router, if it has one, and notes it in `routes`.
///
/// Under [`LayerRule::First`] the first decision of a pass becomes the label that all later layers
/// follow: `context` is that of the pass.
pub(crate) fn decide(
    router: Option<&LayerRouter>,
    hidden: &Tensor<3>,
    rule: LayerRule,
    context: &mut ForwardContext,
    routes: &mut Vec<RouteTrace>,
) -> Option<RouterOutput> {
    let router = router.and_then(LayerRouter::of_layer)?;
    let routed = router.route(hidden.clone(), context);
    if rule == LayerRule::First {
        let [batch, _, experts] = routed.weights.dims();
        let chosen = routed.weights.clone().detach().reshape([batch, experts]);
        context.guidance.labels = Some(chosen);
    }
    routes.push(RouteTrace::new(router.site, routed.clone()));
    Some(routed)
}

/// Labels `[B, E]` for all layers by a vote of their routers' logits, each `[B, 1, E]`; rows that
/// have a label keep it.
pub(crate) fn vote(logits: Vec<Tensor<3>>, labels: Option<Tensor<2>>) -> Tensor<2> {
    let [batch, _, experts] = logits[0].dims();
    let voted = LayerRule::Vote.decide(Tensor::cat(logits, 1));
    let voted = voted.narrow(1, 0, 1).reshape([batch, experts]);
    match labels {
        None => voted,
        Some(labels) => {
            let is_free = labels.clone().sum_dim(1).lower_elem(0.5);
            labels.mask_where(is_free.expand([batch, experts]), voted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::assert_close;

    #[test]
    fn a_vote_leaves_labelled_rows_alone() {
        let device = molora_testkit::device();
        let layer = |rows: [[[f32; 3]; 1]; 2]| Tensor::<3>::from_data(rows, &device);
        let logits = vec![
            layer([[[2.0, 0.5, 0.1]], [[2.0, 0.5, 0.1]]]),
            layer([[[0.2, 1.5, 0.3]], [[0.2, 1.5, 0.3]]]),
            layer([[[0.1, 1.2, 1.1]], [[0.1, 1.2, 1.1]]]),
        ];
        let second = [0.0, 1.0, 0.0];
        let voted = vote(logits.clone(), None);
        assert_close(voted, [second, second], 0.0, "all rows vote");
        let labels = Tensor::from_data([[0.0; 3], [0.0, 0.0, 1.0]], &device);
        let voted = vote(logits, Some(labels));
        assert_close(voted, [second, [0.0, 0.0, 1.0]], 0.0, "one has a label");
    }
}
