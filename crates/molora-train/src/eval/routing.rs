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

    pub(super) fn add(&mut self, task: &str, routes: &[RouteTrace]) {
        for route in routes {
            let [batch, tokens, experts] = route.routed.weights.dims();
            debug_assert_eq!(route.routed.counted.dims(), [batch, tokens]);
            let sum = route.routed.sum_counted(route.routed.weights.clone());
            let values = host(Tensor::cat(
                vec![sum, route.routed.counted.clone().sum()],
                0,
            ));
            let zero = || (vec![0.0; experts], 0.0);
            let entry = self
                .sums
                .entry((route.site, task.into()))
                .or_insert_with(zero);
            entry
                .0
                .iter_mut()
                .zip(&values)
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
