//! A mixture from the experts of another one and, where it grows, one that was trained alone.

use burn::module::Param;
use burn::tensor::Tensor;
use molora_adapters::{AdapterError, ExpertBank, TaskGate};
use molora_models::{Adaptable, Backbone};
use molora_routing::{Router, Scorer, WithinScorer};

use super::plan::Origins;
use crate::error::RunProblem;

/// An expert that was trained alone.
pub(super) struct Newcomer {
    /// The base model with the expert.
    pub(super) expert: Backbone,
    /// The base model with its gate, where the method trains one.
    pub(super) gate: Option<Backbone>,
}

/// Fills a fresh mixture with the experts and rows of an old one, bit by bit, and with the newcomer;
/// a new row of a router is the fresh one, or the newcomer's gate where rows are gates.
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
    let new_sites = newcomer.map(|newcomer| newcomer.expert.sites());
    let gates = newcomer.and_then(|newcomer| Some(newcomer.gate.as_ref()?.sites()));
    for (number, (path, site)) in mixture.sites_mut().into_iter().enumerate() {
        let from = old_sites[number].1;
        let new = new_sites.as_ref().map(|sites| &sites[number].1.bank);
        site.bank = bank(&from.bank, new, origins).map_err(|source| RunProblem::Unlike {
            site: path.clone(),
            source,
        })?;
        let gate = gates
            .as_ref()
            .and_then(|sites| sites[number].1.router.as_ref());
        if let (Some(router), Some(from)) = (&mut site.router, &from.router) {
            fill_router(router, from, origins, gate.map(prototype));
        }
        if let (Some(gate), Some(from)) = (&mut site.gate, &from.gate) {
            *gate = TaskGate {
                embedding: rows(&from.embedding, &gate.embedding, &origins.experts),
                ..from.clone()
            };
        }
    }
    let layers = old.layer_routers();
    for (number, (_, layer)) in mixture.layer_routers_mut().into_iter().enumerate() {
        fill_router(&mut layer.router, &layers[number].1.router, origins, None);
    }
    Ok(())
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

/// The trained gate of an expert, `[1, D]`.
fn prototype(gate: &Router) -> Tensor<2> {
    match &gate.scorer {
        Scorer::Linear(scorer) => scorer.weight.val(),
        _ => unreachable!("an expert behind a gate has a linear router"),
    }
}

/// Takes the rows of an old router over; `gate` is the row of a new expert where rows are gates.
fn fill_router(router: &mut Router, old: &Router, origins: &Origins, gate: Option<Tensor<2>>) {
    let experts = &origins.experts;
    match (&mut router.scorer, &old.scorer) {
        (Scorer::Linear(new), Scorer::Linear(old)) => {
            new.weight = rows(&old.weight, &new.weight, experts);
            if let (Some(bias), Some(old)) = (&mut new.bias, &old.bias) {
                *bias = rows(old, bias, experts);
            }
        }
        (Scorer::Cosine(new), Scorer::Cosine(old)) => {
            new.keys = rows(&old.keys, &new.keys, experts);
        }
        (Scorer::Prototype(new), Scorer::Prototype(old)) => {
            let fresh = gate.map_or_else(
                || new.prototypes.clone(),
                |gate| Param::from_tensor(gate.repeat_dim(0, experts.len()).detach()),
            );
            new.prototypes = rows(&old.prototypes, &fresh, experts);
        }
        (Scorer::Uniform(_), Scorer::Uniform(_)) => {}
        (Scorer::Grouped(new), Scorer::Grouped(old)) => {
            new.group = rows(&old.group, &new.group, &origins.groups);
            match (&mut new.within, &old.within) {
                (WithinScorer::Static(new), WithinScorer::Static(old)) => {
                    *new = rows(old, new, experts);
                }
                (WithinScorer::Token(new), WithinScorer::Token(old)) => {
                    *new = rows(old, new, experts);
                }
                _ => unreachable!("both are of one recipe"),
            }
        }
        _ => unreachable!("both are of one recipe"),
    }
    if let (Some(table), Some(old)) = (&mut router.task_embedding, &old.task_embedding) {
        *table = rows(old, table, experts);
    }
}

/// Rows of an old tensor, bit by bit, and rows of a fresh one where there was none.
fn rows<const D: usize>(
    old: &Param<Tensor<D>>,
    fresh: &Param<Tensor<D>>,
    origins: &[Option<usize>],
) -> Param<Tensor<D>> {
    let row = |(place, origin): (usize, &Option<usize>)| match *origin {
        Some(index) => old.val().slice_dim(0, index..index + 1),
        None => fresh.val().slice_dim(0, place..place + 1),
    };
    let parts = origins.iter().enumerate().map(row).collect();
    Param::from_tensor(Tensor::cat(parts, 0).detach())
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_kernels::random::{Seed, uniform};
    use molora_routing::{
        GroupedConfig, GroupedScorer, Guidance, RouteInput, RouterConfig, ScorerConfig, WithinGroup,
    };
    use molora_testkit::assert_close;

    fn origins(experts: &[Option<usize>]) -> Origins {
        Origins {
            old_experts: 3,
            experts: experts.to_vec(),
            groups: Vec::new(),
        }
    }

    fn router(experts: usize, seed: u64) -> Router {
        let config = RouterConfig {
            scorer: ScorerConfig::Linear { bias: true },
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
        };
        router.route_guided(&input, &Guidance::default()).weights
    }

    #[test]
    fn a_row_that_is_never_chosen_changes_no_weight() {
        let old = router(3, 1);
        let mut grown = router(4, 2);
        let places = [Some(0), Some(1), Some(2), None];
        fill_router(&mut grown, &old, &origins(&places), None);
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
        fill_router(&mut smaller, &old, &origins(&[Some(0), Some(2)]), None);
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
                within: WithinGroup::Token,
                group_temperature: 1.0,
                within_temperature: 1.0,
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
        let places = Origins {
            groups: vec![Some(0), None, Some(1)],
            ..origins(&[Some(0), Some(1), Some(2), None])
        };
        fill_router(&mut grown, &old, &places, None);
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
