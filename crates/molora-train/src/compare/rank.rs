//! The rank that brings a recipe nearest to a budget of trainable parameters.

use molora_kernels::random::Seed;
use molora_models::{Adaptable, AdapterSpec, Backbone, ModelPart, TaskModel};

use std::ops::RangeInclusive;

use burn::tensor::Device;
use molora_adapters::Start;

use crate::TrainError;
use crate::model::count;

/// The largest rank that is tried.
pub(super) const MAX_RANK: usize = 64;

/// A rank and the parameters that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankChoice {
    /// The rank.
    pub rank: usize,
    /// Scalars of adapters, routers and gates.
    pub parameters: usize,
}

/// A base model whose adapters are counted, and the number of tasks that its gates are for.
#[derive(Debug)]
pub struct Counter<'a> {
    /// The base, without adapters.
    pub base: &'a Backbone,
    /// Number of tasks.
    pub num_tasks: usize,
    /// Where the adapters are made.
    pub device: &'a Device,
}

impl Counter<'_> {
    /// Scalars that a specification attaches: those of adapters, routers, gates and tables that train whole.
    ///
    /// # Errors
    /// If the specification does not fit the model.
    pub fn parameters(&self, spec: &AdapterSpec) -> Result<usize, TrainError> {
        Ok(count(&self.attached(spec)?).beside_heads())
    }

    /// The rank in `1..=64` (less where a site is narrower) whose count is nearest to `budget`.
    ///
    /// # Errors
    /// If the specification does not fit the model at the least rank that it may have.
    pub fn nearest(&self, spec: &AdapterSpec, budget: usize) -> Result<RankChoice, TrainError> {
        let at = |rank: usize| {
            let mut spec = spec.clone();
            spec.bank.rank = rank;
            spec
        };
        // Some specifications need more than one rank.
        let fits = |rank: &usize| at(*rank).problems().is_empty();
        let least = (1..=MAX_RANK).find(fits).unwrap_or(1);
        let limit = self.narrowest(&at(least))?.min(MAX_RANK).max(least);
        nearest(budget, least..=limit, |rank| self.parameters(&at(rank)))
    }

    fn attached(&self, spec: &AdapterSpec) -> Result<TaskModel, TrainError> {
        let mut backbone = self.base.clone();
        let mut spec = spec.clone();
        if spec.bank.start.reads_weight() {
            // As many numbers train, and no weight has to be decomposed.
            spec.bank.start = Start::default();
        }
        backbone.attach(&spec, self.num_tasks, Seed::new(0), self.device)?;
        Ok(TaskModel {
            backbone,
            heads: Vec::new(),
        })
    }

    /// The smallest width of any site, which no rank may exceed.
    fn narrowest(&self, spec: &AdapterSpec) -> Result<usize, TrainError> {
        let model = self.attached(spec)?;
        let width = |bank: &molora_adapters::ExpertBank| bank.a.dims()[0].min(bank.b.dims()[1]);
        let own = model.backbone.sites().into_iter();
        let own = own.map(|(_, adapter)| &adapter.bank);
        let shared = model.backbone.part().map(ModelPart::banks);
        let banks = own.chain(shared.into_iter().flatten());
        Ok(banks.map(width).min().unwrap_or(1))
    }
}

/// The rank in `ranks` whose count is nearest to `budget`, the smaller one of two that are
/// equally near. Counts must not fall with the rank: it is found by bisection.
fn nearest<E>(
    budget: usize,
    ranks: RangeInclusive<usize>,
    mut count: impl FnMut(usize) -> Result<usize, E>,
) -> Result<RankChoice, E> {
    // The least rank that reaches the budget, or the limit.
    let (least, mut high) = ranks.into_inner();
    let mut low = least;
    while low < high {
        let middle = low + (high - low) / 2;
        match count(middle)? < budget {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    let above = RankChoice {
        rank: low,
        parameters: count(low)?,
    };
    if low == least {
        return Ok(above);
    }
    let below = RankChoice {
        rank: low - 1,
        parameters: count(low - 1)?,
    };
    let is_below = budget.abs_diff(below.parameters) <= budget.abs_diff(above.parameters);
    Ok(if is_below { below } else { above })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rank is tried.
    fn by_trying_all(budget: usize, limit: usize, count: impl Fn(usize) -> usize) -> usize {
        let distance = |rank: &usize| budget.abs_diff(count(*rank));
        (1..=limit).min_by_key(distance).expect("a rank")
    }

    #[test]
    fn ranks_begin_where_the_specification_allows() {
        let count = |rank: usize| Ok::<_, ()>(10 * rank);
        for (budget, expected) in [(0, 4), (41, 4), (46, 5), (900, 64)] {
            let found = nearest(budget, 4..=64, count).expect("counting does not fail");
            assert_eq!(found.rank, expected, "{budget}");
        }
    }

    #[test]
    fn bisection_finds_what_trying_all_finds() {
        for count in [|rank| 7 * rank, |rank| 100 + 3 * rank * rank, |_| 50] {
            for limit in [1, 2, 3, 10, 64] {
                for budget in [0, 1, 50, 103, 110, 111, 448, 1000, 100_000] {
                    let found = nearest(budget, 1..=limit, |rank| Ok::<_, ()>(count(rank)));
                    let found = found.expect("counting does not fail");
                    let expected = by_trying_all(budget, limit, count);
                    let distances = [found.rank, expected].map(|rank| budget.abs_diff(count(rank)));
                    assert_eq!(distances[0], distances[1], "{budget} up to {limit}");
                    assert_eq!(found.parameters, count(found.rank));
                }
            }
        }
    }

    #[test]
    fn the_smaller_of_two_equally_near_ranks_is_taken() {
        let found = nearest(15, 1..=64, |rank| Ok::<_, ()>(10 * rank)).expect("counted");
        assert_eq!(
            found,
            RankChoice {
                rank: 1,
                parameters: 10
            }
        );
    }

    #[test]
    fn few_ranks_are_counted() {
        let mut calls = 0;
        let counted = nearest(333, 1..=64, |rank| {
            calls += 1;
            Ok::<_, ()>(10 * rank)
        });
        assert_eq!(counted.map(|choice| choice.rank), Ok(33));
        assert!(calls <= 8, "{calls} calls");
    }

    #[test]
    fn a_failed_count_is_handed_on() {
        assert_eq!(nearest(1, 1..=64, |_| Err("no site")), Err("no site"));
    }
}
