//! What a guard reads of a step: it stays on the device until the step is over.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use molora_models::{Adaptable, ParameterKind, RouteTrace, TaskModel};
use molora_routing::RouterOutput;

use super::balance::plain;
use crate::recipe::{GuardRule, Watched};

/// A value of something that is watched, and where it was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// What it is.
    pub watch: Watched,
    /// Number of the site, or of the first one of the layer whose router it is; none where it is of all.
    pub site: Option<usize>,
    /// The expert.
    pub expert: Option<usize>,
    /// The value.
    pub value: f64,
}

/// Sums over the decisions of a batch, by site: entropies, decisions and experts' weights, `[2 + E]`.
#[derive(Default)]
pub(super) struct Watch {
    pub(super) sums: BTreeMap<usize, Tensor<1>>,
    pub(super) gradients: Option<Tensor<1>>,
}

impl Watch {
    /// The decisions of one pass.
    pub(super) fn of(routes: &[RouteTrace]) -> Self {
        let routes = routes.iter().filter(|route| route.routed.num_experts() > 1);
        let mut watch = Self::default();
        for route in routes {
            watch.add_sums(route.site, sums(&route.routed));
        }
        watch
    }

    /// Adds the decisions of another pass.
    pub(super) fn add(&mut self, other: Self) {
        for (site, sums) in other.sums {
            self.add_sums(site, sums);
        }
    }

    fn add_sums(&mut self, site: usize, sums: Tensor<1>) {
        let sums = match self.sums.remove(&site) {
            Some(before) => before + sums,
            None => sums,
        };
        self.sums.insert(site, sums);
    }

    /// Keeps the share of the routers in a gradient.
    pub(super) fn weigh(&mut self, gradients: &GradientsParams, model: &TaskModel) {
        let mut squares = Squares {
            routers: Vec::new(),
            others: Vec::new(),
            gradients,
            kinds: model.kinds(),
        };
        model.visit(&mut squares);
        let sum =
            |squares: Vec<Tensor<1>>| (!squares.is_empty()).then(|| Tensor::cat(squares, 0).sum());
        let (routers, others) = (sum(squares.routers), sum(squares.others));
        self.gradients = routers.map(|routers| {
            let all = others.map_or(routers.clone(), |others| others + routers.clone());
            (routers / all.clamp_min(f32::MIN_POSITIVE)).sqrt()
        });
    }

    /// What the rules watch, with the experts of the model as they are now.
    pub(super) fn read(self, model: &TaskModel, rules: &[GuardRule]) -> Vec<Found> {
        let is_watched = |watch| rules.iter().any(|rule| rule.watch == watch);
        let mut found = Vec::new();
        for (site, sums) in self.sums {
            let sums: Vec<f64> = sums.into_data().iter::<f64>().collect();
            let (experts, decisions) = (sums.len() - 2, sums[1].max(1.0));
            let at = |watch, expert, value| Found {
                watch,
                site: Some(site),
                expert,
                value,
            };
            let entropy = sums[0] / decisions / (experts as f64).ln();
            found.push(at(Watched::Entropy, None, entropy));
            let total: f64 = sums[2..].iter().sum();
            let shares = sums[2..].iter().enumerate().map(|(expert, weight)| {
                at(
                    Watched::LoadShare,
                    Some(expert),
                    weight / total.max(f64::MIN_POSITIVE),
                )
            });
            found.extend(shares);
        }
        let sites = model.backbone.sites().into_iter();
        for (_, adapter) in sites.filter(|_| is_watched(Watched::ExpertSimilarity)) {
            let cosines = adapter.bank.cosines();
            let pairs = (0..cosines.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
            found.extend(pairs.map(|(i, j)| Found {
                watch: Watched::ExpertSimilarity,
                site: Some(adapter.site()),
                expert: Some(i),
                value: cosines[i][j],
            }));
        }
        found.extend(self.gradients.map(|share| Found {
            watch: Watched::RouterGradientShare,
            site: None,
            expert: None,
            value: share.into_data().iter::<f64>().sum(),
        }));
        found
    }
}

/// Sums over the decisions that count.
fn sums(routed: &RouterOutput) -> Tensor<1> {
    let probs = routed.probs.clone();
    // A probability of 0 adds nothing.
    let entropy = (probs.clone() * probs.clamp_min(1e-30).log()).neg();
    let entropy = routed.sum_counted(entropy).sum();
    let decisions = routed.counted.clone().sum();
    let weights = routed.sum_counted(routed.weights.clone().abs());
    let sums = [entropy, decisions, weights].map(plain);
    Tensor::cat(sums.to_vec(), 0)
}

struct Squares<'a> {
    routers: Vec<Tensor<1>>,
    others: Vec<Tensor<1>>,
    gradients: &'a GradientsParams,
    kinds: BTreeMap<burn::module::ParamId, ParameterKind>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.get::<D>(param.id) else {
            return;
        };
        let square = gradient.square().sum();
        match self.kinds.get(&param.id) {
            Some(ParameterKind::Routers) => self.routers.push(square),
            _ => self.others.push(square),
        }
    }
}
