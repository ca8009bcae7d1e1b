//! A mixture from the experts of another one and, where it grows, one that was trained alone.

use burn::tensor::Tensor;
use molora_adapters::{AdapterError, ExpertBank};
use molora_models::{Adaptable, Backbone};
use molora_parts::Axis;
use molora_routing::Router;
use molora_routing::scorer::RowsFrom;

use super::plan::Origins;
use crate::error::RunProblem;

/// An expert that was trained alone.
pub(super) struct Newcomer {
    /// The base model with the expert.
    pub(super) expert: Backbone,
    /// The base model with its gate, where the method trains one.
    pub(super) gate: Option<Backbone>,
    /// Where the mixture's routers have the rows of experts from.
    pub(super) rows_from: Option<RowsFrom>,
}

impl Newcomer {
    /// The row of the expert in the router of a site, `[1, D]`, where that is not trained with the
    /// others.
    fn row(&self, site: usize) -> Option<Tensor<2>> {
        match self.rows_from? {
            RowsFrom::Training => None,
            RowsFrom::Gates => self.gate.as_ref()?.sites()[site].1.router.as_ref()?.rows(),
            RowsFrom::Experts => Some(self.expert.sites()[site].1.bank.directions()),
        }
    }
}

/// Fills a fresh mixture with the experts and rows of an old one, bit by bit, and with the newcomer;
/// a new row of a router is the fresh one, or what the newcomer brings where rows are not trained
/// together.
///
/// # Errors
/// Names the site where the newcomer differs from the others, and how.
pub(super) fn fill(
    mixture: &mut Backbone,
    old: &Backbone,
    origins: &Origins,
    newcomer: Option<&Newcomer>,
) -> Result<(), RunProblem> {
    let old_sites = old.sites();
    let places = molora_parts::Origins::default()
        .with(Axis::Expert, origins.experts.clone())
        .with(Axis::Task, origins.experts.clone())
        .with(Axis::Group, origins.groups.clone());
    for (number, (path, site)) in mixture.sites_mut().into_iter().enumerate() {
        let from = old_sites[number].1;
        let new = newcomer.map(|newcomer| newcomer.expert.sites()[number].1.bank.clone());
        site.bank =
            bank(&from.bank, new.as_ref(), origins).map_err(|source| RunProblem::Unlike {
                site: path.clone(),
                source,
            })?;
        if let (Some(router), Some(from)) = (&mut site.router, &from.router) {
            if let Some(row) = newcomer.and_then(|newcomer| newcomer.row(number)) {
                router.set_rows(row.repeat_dim(0, origins.experts.len()).detach());
            }
            fill_router(router, from, &places);
        }
        if let (Some(gate), Some(from)) = (&mut site.gate, &from.gate) {
            molora_parts::fill(gate.tensors(), &from.clone().tensors(), &places);
        }
    }
    let layers = old.layer_routers();
    for (number, (_, layer)) in mixture.layer_routers_mut().into_iter().enumerate() {
        fill_router(&mut layer.router, &layers[number].1.router, &places);
    }
    if let (Some(part), Some(from)) = (mixture.part_mut(), old.part()) {
        let mut from = from.clone();
        for ((_, to), (_, from)) in part.tensors().into_iter().zip(from.tensors()) {
            molora_parts::fill(to, &from, &places);
        }
    }
    Ok(())
}

/// Takes the entries of an old router over.
fn fill_router(router: &mut Router, old: &Router, places: &molora_parts::Origins) {
    molora_parts::fill(router.tensors(), &old.clone().tensors(), places);
}

/// The experts in their new order; a general one, which is not routed, stays the last.
fn bank(
    old: &ExpertBank,
    new: Option<&ExpertBank>,
    origins: &Origins,
) -> Result<ExpertBank, AdapterError> {
    let expert = |origin: &Option<usize>| match (origin, new) {
        (Some(index), _) => old.expert(*index),
        (None, Some(new)) => new.clone(),
        (None, None) => unreachable!("without a newcomer every expert was there before"),
    };
    let general = (origins.old_experts..old.num_experts()).map(|index| old.expert(index));
    let parts: Vec<_> = origins.experts.iter().map(expert).chain(general).collect();
    ExpertBank::assemble(&parts.iter().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Param;
    use molora_kernels::random::{Seed, uniform};
    use molora_routing::scorer::{GroupedConfig, GroupedScorer, LinearConfig, WithinScorer};
    use molora_routing::{Guidance, RouteInput, RouterConfig, Scorer, ScorerConfig};
    use molora_testkit::assert_close;

    fn places(experts: &[Option<usize>]) -> molora_parts::Origins {
        molora_parts::Origins::default().with(Axis::Expert, experts.to_vec())
    }

    fn router(experts: usize, seed: u64) -> Router {
        let config = RouterConfig {
            scorer: LinearConfig { bias: true }.into(),
            ..RouterConfig::default()
        };
        config.init(5, experts, 0, Seed::new(seed), &molora_testkit::device())
    }

    fn weights(router: &Router) -> Tensor<3> {
        let device = molora_testkit::device();
        let input = RouteInput {
            features: uniform([2, 3, 5], 1.0, Seed::new(9), &device),
            mask: Tensor::ones([2, 3], &device),
            tasks: None,
            columns: None,
        };
        router.route_guided(&input, &Guidance::default()).weights
    }

    #[test]
    fn a_row_that_is_never_chosen_changes_no_weight() {
        let old = router(3, 1);
        let mut grown = router(4, 2);
        fill_router(
            &mut grown,
            &old,
            &places(&[Some(0), Some(1), Some(2), None]),
        );
        if let Scorer::Linear(scorer) = &mut grown.scorer {
            let bias = scorer.bias.as_ref().expect("there is a bias").val();
            let never = Tensor::from_data([f32::NEG_INFINITY], &molora_testkit::device());
            let bias = Tensor::cat(vec![bias.slice_dim(0, 0..3), never], 0);
            scorer.bias = Some(Param::from_tensor(bias));
        }
        let found = weights(&grown);
        assert_close(
            found.clone().narrow(2, 0, 3),
            weights(&old),
            0.0,
            "old experts",
        );
        assert_close(
            found.narrow(2, 3, 1),
            Tensor::<3>::zeros([2, 3, 1], &molora_testkit::device()),
            0.0,
            "new expert",
        );
    }

    #[test]
    fn a_row_that_is_taken_out_leaves_the_others() {
        let old = router(3, 1);
        let mut smaller = router(2, 2);
        fill_router(&mut smaller, &old, &places(&[Some(0), Some(2)]));
        let weight = |router: &Router| match &router.scorer {
            Scorer::Linear(scorer) => scorer.weight.val(),
            _ => unreachable!("made as a linear one"),
        };
        let (found, whole) = (weight(&smaller), weight(&old));
        let row = |rows: &Tensor<2>, index| rows.clone().narrow(0, index, 1);
        assert_close(row(&found, 0), row(&whole, 0), 0.0, "first");
        assert_close(row(&found, 1), row(&whole, 2), 0.0, "last");
    }

    #[test]
    fn a_new_group_leaves_the_rows_of_the_others() {
        let device = molora_testkit::device();
        let grouped = |groups: &[&[usize]]| {
            let config = ScorerConfig::Grouped(GroupedConfig {
                groups: groups.iter().map(|group| group.to_vec()).collect(),
                ..GroupedConfig::default()
            });
            let config = RouterConfig {
                scorer: config,
                ..RouterConfig::default()
            };
            let experts = groups.iter().map(|group| group.len()).sum();
            config.init(5, experts, 0, Seed::new(1), &device)
        };
        let parts = |router: &Router| match &router.scorer {
            Scorer::Grouped(GroupedScorer {
                group,
                within: WithinScorer::Token(within),
                ..
            }) => (group.val(), within.val()),
            _ => unreachable!("made as a grouped one"),
        };
        let mut old = grouped(&[&[0, 2], &[1]]);
        if let Scorer::Grouped(scorer) = &mut old.scorer {
            let random = |rows, seed| uniform([rows, 5], 1.0, Seed::new(seed), &device);
            scorer.group = Param::from_tensor(random(2, 4));
            scorer.within = WithinScorer::Token(Param::from_tensor(random(3, 5)));
        }
        let mut grown = grouped(&[&[0, 2], &[3], &[1]]);
        let experts = places(&[Some(0), Some(1), Some(2), None]);
        let places = experts.with(Axis::Group, vec![Some(0), None, Some(1)]);
        fill_router(&mut grown, &old, &places);
        let ((groups, within), (old_groups, old_within)) = (parts(&grown), parts(&old));
        let zero = Tensor::<2>::zeros([1, 5], &device);
        let with_zero = |before: Tensor<2>, after: Option<Tensor<2>>| {
            let rows = [Some(before), Some(zero.clone()), after];
            Tensor::cat(rows.into_iter().flatten().collect(), 0)
        };
        let (first, second) = (
            old_groups.clone().narrow(0, 0, 1),
            old_groups.narrow(0, 1, 1),
        );
        assert_close(groups, with_zero(first, Some(second)), 0.0, "groups");
        assert_close(within, with_zero(old_within, None), 0.0, "inside");
    }
}
