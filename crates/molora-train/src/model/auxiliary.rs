//! The auxiliary terms of a step on a model.

use burn::tensor::{Device, Tensor};
use molora_models::{Adaptable, AdapterSpec, ForwardContext, RouteTrace, TaskModel};
use molora_regularize::{LossBreakdown, ObjectiveConfig, SiteView};

/// The auxiliary terms of a step, and what they need to know of its mixture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Auxiliary<'a> {
    /// The terms, if there are any.
    pub(crate) objective: Option<&'a ObjectiveConfig>,
    /// The specification of the mixture.
    pub(crate) spec: &'a AdapterSpec,
}

impl Auxiliary<'_> {
    /// The terms on the routes of a pass in this context.
    pub(crate) fn evaluate(
        &self,
        model: &TaskModel,
        routes: &[RouteTrace],
        context: &ForwardContext,
    ) -> Option<LossBreakdown> {
        let objective = self.objective?;
        Some(self.with_views(model, routes, Some(context), |views| {
            objective.evaluate(&views)
        }))
    }

    /// The weighted sum of the terms that read weights alone.
    pub(crate) fn of_weights(&self, model: &TaskModel) -> Option<Tensor<1>> {
        let objective = self.objective?.part(false);
        self.with_views(model, &[], None, |views| objective.evaluate(&views).total)
    }

    /// What every site lends to the terms; without a context what its weights do.
    pub(crate) fn with_views<T>(
        &self,
        model: &TaskModel,
        routes: &[RouteTrace],
        context: Option<&ForwardContext>,
        read: impl FnOnce(Vec<SiteView<'_>>) -> T,
    ) -> T {
        let has_keys = self.spec.has_rank_keys();
        let sites = model.backbone.sites();
        let view = |(_, adapter): &(String, &'_ molora_models::Adapter)| {
            let keys = adapter.router.as_ref().filter(|_| has_keys);
            let route = routes.iter().find(|route| route.site == adapter.site());
            (keys.and_then(|router| router.keys()), route)
        };
        let lent: Vec<_> = sites.iter().map(view).collect();
        let views = sites.iter().zip(lent).map(|((_, adapter), (keys, route))| {
            let of_rows = |known: Tensor<2>| match route {
                Some(route) => route.of_rows(known),
                None => known,
            };
            let labels = context.and_then(|context| context.guidance.labels.clone());
            let tasks = context.and_then(|context| context.tasks.clone());
            SiteView {
                bank: &adapter.bank,
                keys,
                routed: route.map(|route| &route.routed),
                labels: labels.map(of_rows),
                tasks: tasks.map(of_rows),
                code: route.and_then(|route| route.code.clone()),
            }
        });
        read(views.collect())
    }
}

/// The losses of tasks as one, `[1]`: each example has the same share, times the weight of its task where
/// there are `weights`, by task number.
pub(crate) fn sum_of(
    tasks: &[(usize, Tensor<1>)],
    examples: f64,
    weights: &[f64],
    device: &Device,
) -> Tensor<1> {
    let losses = tasks.iter().map(|(task, loss)| {
        let loss = loss.clone().div_scalar(examples);
        match weights.get(*task) {
            Some(&weight) => loss.mul_scalar(weight),
            None => loss,
        }
    });
    losses.fold(Tensor::zeros([1], device), |total, loss| total + loss)
}
