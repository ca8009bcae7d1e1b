//! How routers shared a task among the experts.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use molora_models::{Adaptable, RouteTrace, TaskModel};

use crate::report::{RoutingReport, SCHEMA_VERSION, SiteRouting};

/// Sums of expert weights by site and task.
pub(super) struct RoutingSums {
    sites: Vec<String>,
    sums: BTreeMap<(usize, String), (Vec<f64>, f64)>,
}

impl RoutingSums {
    pub(super) fn new(model: &TaskModel) -> Self {
        Self {
            sites: model.backbone.route_names(),
            sums: BTreeMap::new(),
        }
    }

    /// Adds the sums of a batch of a task.
    pub(super) fn add(&mut self, task: &str, sums: &[SiteSums]) {
        for (site, values) in sums {
            let experts = values.len() - 1;
            let zero = || (vec![0.0; experts], 0.0);
            let entry = self.sums.entry((*site, task.into())).or_insert_with(zero);
            entry
                .0
                .iter_mut()
                .zip(values)
                .for_each(|(total, value)| *total += value);
            entry.1 += values[experts];
        }
    }

    pub(super) fn report(self) -> RoutingReport {
        let mut sites: BTreeMap<usize, SiteRouting> = BTreeMap::new();
        for ((site, task), (sums, count)) in self.sums {
            let path = &self.sites[site];
            let routing = sites.entry(site).or_insert_with(|| SiteRouting {
                site: path.clone(),
                layer: layer_of(path),
                weights: BTreeMap::new(),
            });
            let mean = sums.into_iter().map(|sum| sum / count.max(1.0)).collect();
            routing.weights.insert(task, mean);
        }
        RoutingReport {
            version: SCHEMA_VERSION,
            sites: sites.into_values().collect(),
            has_general: false,
        }
    }
}

/// A site, and the sums of its experts' weights over the decisions of a batch, with the number of decisions behind them.
pub(super) type SiteSums = (usize, Vec<f64>);

/// The sums of one pass, on the host.
pub(super) fn site_sums(routes: &[RouteTrace]) -> Vec<SiteSums> {
    let sums = routes.iter().map(|route| {
        let routed = &route.routed;
        let [batch, tokens, _] = routed.weights.dims();
        debug_assert_eq!(routed.counted.dims(), [batch, tokens]);
        let sum = routed.sum_counted(routed.weights.clone());
        let values = Tensor::cat(vec![sum, routed.counted.clone().sum()], 0);
        (route.site, host(values))
    });
    sums.collect()
}

/// The values of a tensor on the host.
pub(super) fn host(tensor: Tensor<1>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The first number in a path, as in `encoder.layer.3.attention.self.query`.
pub(crate) fn layer_of(path: &str) -> usize {
    path.split('.')
        .find_map(|part| part.parse().ok())
        .unwrap_or(0)
}
