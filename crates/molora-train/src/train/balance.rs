//! What a step moves by how often experts were chosen, and not by a gradient.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use molora_models::{Adaptable, RouteTrace, TaskModel};
use molora_routing::Router;

/// For each site whose router is balanced after steps: the number of decisions that chose each expert,
/// `[E]`, and the number of all, `[1]`. They stay on the device.
#[derive(Default)]
pub(super) struct SelectionCounts(pub(super) BTreeMap<usize, (Tensor<1>, Tensor<1>)>);

impl SelectionCounts {
    /// What was chosen in one pass.
    pub(super) fn of(model: &TaskModel, routes: &[RouteTrace]) -> Self {
        let sites = model.backbone.sites();
        let own = sites
            .iter()
            .filter_map(|(_, site)| Some((site.site(), site.router.as_ref()?)));
        let layers = model.backbone.layer_routers();
        let layers = layers
            .iter()
            .map(|(_, layer)| (layer.site(), &layer.router));
        let balanced: Vec<usize> = own
            .chain(layers)
            .filter(|(_, router)| router.scorer.is_balanced())
            .map(|(site, _)| site)
            .collect();
        let routes = routes.iter().filter(|route| balanced.contains(&route.site));
        let counts = routes.map(|route| {
            let counts = route.routed.selection_counts();
            (
                route.site,
                (plain(counts), plain(route.routed.num_decisions())),
            )
        });
        Self(counts.collect())
    }

    /// Adds those of another part of the same batch.
    pub(super) fn add(&mut self, other: Self) {
        for (site, (counts, decisions)) in other.0 {
            let sum = match self.0.remove(&site) {
                None => (counts, decisions),
                Some((before, all)) => (before + counts, all + decisions),
            };
            self.0.insert(site, sum);
        }
    }

    /// Balances the routers.
    pub(super) fn balance(self, model: &mut TaskModel) {
        let mut choices = self.0;
        if choices.is_empty() {
            return;
        }
        let mut balance = |site: usize, router: &mut Router| {
            if let Some((counts, decisions)) = choices.remove(&site) {
                let [counts, decisions] = [counts, decisions].map(Tensor::from_inner);
                router.scorer.balance(counts, decisions);
            }
        };
        for (_, site) in model.backbone.sites_mut() {
            let number = site.site();
            if let Some(router) = &mut site.router {
                balance(number, router);
            }
        }
        for (_, layer) in model.backbone.layer_routers_mut() {
            balance(layer.site(), &mut layer.router);
        }
    }
}

/// A tensor without the graph, as a pass without gradients has it.
pub(super) fn plain(tensor: Tensor<1>) -> Tensor<1> {
    match tensor.is_autodiff() {
        true => tensor.inner(),
        false => tensor,
    }
}
