//! The best choice of one expert for each layer in hindsight, record by record: what a router could reach at
//! most. Duo-LLM, Alizadeh et al., arXiv:2410.10846, section 3.2.

use burn::tensor::{Device, Int, Tensor, TensorData};
use molora_models::{BlockState, RouteTrace, TaskModel, TextInput};
use molora_routing::expert_labels;

use crate::TrainError;
use crate::data::Batch;
use crate::model::row_losses;

/// A path through the layers and its loss.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Path {
    /// The expert of each layer that has routers, in their order.
    pub(crate) experts: Vec<usize>,
    /// The record's loss.
    pub(crate) loss: f64,
}

/// What was found for the records of one batch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// Of each record the path with the smallest loss; of equal ones the cheaper.
    pub(crate) best: Vec<Path>,
    /// The mean loss of all paths of each record, where all were tried.
    pub(crate) mean: Option<Vec<f64>>,
    /// The loss of each record where the routers decide.
    pub(crate) routed: Vec<f64>,
    /// What the routers' decisions cost in the mean, where experts differ in that.
    pub(crate) routed_cost: Option<f64>,
    /// Number of experts of each layer that has routers.
    pub(crate) choices: Vec<usize>,
}

/// The search through one batch of records of one task.
pub(crate) struct Search<'a> {
    pub(crate) model: &'a TaskModel,
    pub(crate) batch: &'a Batch,
    pub(crate) input: &'a TextInput,
    /// What each expert costs, where they differ; in every layer alike.
    pub(crate) costs: Option<Vec<f64>>,
    /// The largest mean cost over layers that a path may have.
    pub(crate) budget: Option<f64>,
    /// Up to so many paths every one is tried.
    pub(crate) max_paths: usize,
    /// Prefixes that are kept for each record where not every path is tried.
    pub(crate) beam: usize,
    pub(crate) device: &'a Device,
}

/// A prefix of a path of every record.
#[derive(Clone)]
struct Prefix {
    hidden: Tensor<3>,
    /// The experts of each record so far.
    experts: Vec<Vec<usize>>,
}

impl Search<'_> {
    /// Searches, from the input of the first layer and what layers share.
    ///
    /// # Errors
    /// Whatever an expert's label gives.
    pub(crate) fn run(&self, hidden: Tensor<3>, state: &BlockState) -> Result<Found, TrainError> {
        let layers = self
            .model
            .num_blocks()
            .expect("layers that can be computed one by one");
        let (mut last, mut choices, mut routes) = (hidden.clone(), Vec::new(), Vec::new());
        for layer in 0..layers {
            let (next, decided) = self.model.block(layer, last, &mut state.clone());
            last = next;
            choices.push(
                decided
                    .first()
                    .map_or(0, |route| route.routed.num_experts()),
            );
            routes.extend(decided);
        }
        let routed = self.losses(last);
        let routed_cost = self.cost_of(&routes);
        let start = Prefix {
            hidden,
            experts: vec![Vec::new(); self.batch.rows],
        };
        let (best, mean) = match num_paths(&choices).is_some_and(|paths| paths <= self.max_paths) {
            true => {
                let mut all = All::new(self.batch.rows);
                self.exhaust(0, start, &choices, state, &mut all)?;
                let count = all.paths.max(1) as f64;
                let mean = all.sum.iter().map(|sum| sum / count).collect();
                (all.best, Some(mean))
            }
            false => (self.beam(start, &choices, state)?, None),
        };
        Ok(Found {
            best: best.into_iter().flatten().collect(),
            mean,
            routed,
            routed_cost,
            choices: choices.into_iter().filter(|&count| count > 0).collect(),
        })
    }

    /// The loss of each record from the output of the last layer.
    fn losses(&self, hidden: Tensor<3>) -> Vec<f64> {
        let losses = row_losses(self.model, self.input, self.model.end(hidden), self.batch);
        losses.into_data().iter::<f32>().map(f64::from).collect()
    }

    /// What decisions cost in the mean over layers.
    fn cost_of(&self, routes: &[RouteTrace]) -> Option<f64> {
        let costs = self.costs.as_ref()?;
        let cost = |route: &RouteTrace| {
            let weights = route.routed.sum_counted(route.routed.weights.clone());
            let shares = (weights / route.routed.num_decisions()).into_data();
            let shares = shares.iter::<f32>().zip(costs);
            shares
                .map(|(share, cost)| f64::from(share) * cost)
                .sum::<f64>()
        };
        let sum: f64 = routes.iter().map(cost).sum();
        Some(sum / routes.len().max(1) as f64)
    }

    /// What a path or a prefix costs, summed over layers.
    fn cost(&self, experts: &[usize]) -> f64 {
        let costs = self.costs.as_deref().unwrap_or_default();
        experts.iter().filter_map(|&expert| costs.get(expert)).sum()
    }

    /// Whether a prefix of a path through so many layers can still keep to the budget.
    fn is_within(&self, experts: &[usize], layers: usize) -> bool {
        let (Some(budget), Some(costs)) = (self.budget, &self.costs) else {
            return true;
        };
        let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
        let rest = (layers - experts.len()) as f64 * least;
        self.cost(experts) + rest <= budget * layers as f64 + 1e-9
    }

    /// The output of a layer where each record has the expert named, or the routers decide.
    fn layer(
        &self,
        layer: usize,
        hidden: Tensor<3>,
        expert: Option<(usize, usize)>,
        state: &BlockState,
    ) -> Result<Tensor<3>, TrainError> {
        let mut state = state.clone();
        let labels = match expert {
            None => None,
            Some((expert, of)) => {
                let labels = expert_labels(&vec![Some(expert); self.batch.rows], of, self.device);
                Some(labels.map_err(molora_models::ModelError::from)?)
            }
        };
        state.label(labels);
        Ok(self.model.block(layer, hidden, &mut state).0)
    }

    /// Tries every path behind a prefix, which all records share.
    fn exhaust(
        &self,
        layer: usize,
        prefix: Prefix,
        choices: &[usize],
        state: &BlockState,
        all: &mut All,
    ) -> Result<(), TrainError> {
        let routed = choices.iter().filter(|&&count| count > 0).count();
        let Some(&count) = choices.get(layer) else {
            for (record, loss) in self.losses(prefix.hidden).into_iter().enumerate() {
                all.sum[record] += loss;
                let experts = prefix.experts[record].clone();
                self.improve(&mut all.best[record], Path { experts, loss });
            }
            all.paths += 1;
            return Ok(());
        };
        if count == 0 {
            let hidden = self.layer(layer, prefix.hidden, None, state)?;
            let experts = prefix.experts;
            return self.exhaust(layer + 1, Prefix { hidden, experts }, choices, state, all);
        }
        for expert in 0..count {
            let mut experts = prefix.experts.clone();
            experts.iter_mut().for_each(|experts| experts.push(expert));
            if !self.is_within(&experts[0], routed) {
                continue;
            }
            let hidden = self.layer(layer, prefix.hidden.clone(), Some((expert, count)), state)?;
            self.exhaust(layer + 1, Prefix { hidden, experts }, choices, state, all)?;
        }
        Ok(())
    }

    /// Keeps the better of two paths.
    fn improve(&self, best: &mut Option<Path>, path: Path) {
        let key = |path: &Path| (path.loss, self.cost(&path.experts));
        let is_better = best.as_ref().is_none_or(|best| {
            let ((loss, cost), (best, least)) = (key(&path), key(best));
            loss.total_cmp(&best).then(cost.total_cmp(&least)).is_lt()
        });
        if is_better {
            *best = Some(path);
        }
    }

    /// Keeps the best prefixes of each record, judged by the loss where the routers decide the rest.
    fn beam(
        &self,
        start: Prefix,
        choices: &[usize],
        state: &BlockState,
    ) -> Result<Vec<Option<Path>>, TrainError> {
        let routed = choices.iter().filter(|&&count| count > 0).count();
        let mut beam = vec![start];
        let mut best: Vec<Option<Path>> = vec![None; self.batch.rows];
        for (layer, &count) in choices.iter().enumerate() {
            if count == 0 {
                for prefix in &mut beam {
                    prefix.hidden = self.layer(layer, prefix.hidden.clone(), None, state)?;
                }
                continue;
            }
            let mut candidates = Vec::new();
            for prefix in &beam {
                for expert in 0..count {
                    let mut next = prefix.clone();
                    next.experts
                        .iter_mut()
                        .for_each(|experts| experts.push(expert));
                    let forced = Some((expert, count));
                    next.hidden = self.layer(layer, next.hidden, forced, state)?;
                    let mut rest = next.hidden.clone();
                    for later in layer + 1..choices.len() {
                        rest = self.layer(later, rest, None, state)?;
                    }
                    candidates.push((self.losses(rest), next));
                }
            }
            let places = self.best_places(&candidates, routed);
            beam = places
                .iter()
                .map(|places| self.gather(&candidates, places))
                .collect();
            if beam[0].experts[0].len() == routed {
                for (record, best) in best.iter_mut().enumerate() {
                    let (losses, prefix) = &candidates[places[0][record]];
                    let (experts, loss) = (prefix.experts[record].clone(), losses[record]);
                    self.improve(best, Path { experts, loss });
                }
            }
        }
        Ok(best)
    }

    /// For each place in the beam the number of each record's candidate: those with the smallest losses
    /// first, and those that a budget forbids last.
    fn best_places(&self, candidates: &[(Vec<f64>, Prefix)], layers: usize) -> Vec<Vec<usize>> {
        let mut places = vec![Vec::new(); self.beam.min(candidates.len())];
        for record in 0..self.batch.rows {
            let key = |number: usize| {
                let (losses, prefix) = &candidates[number];
                let experts = &prefix.experts[record];
                let is_over = !self.is_within(experts, layers);
                (is_over, losses[record], self.cost(experts))
            };
            let mut order: Vec<usize> = (0..candidates.len()).collect();
            order.sort_by(|&a, &b| {
                let ((over_a, loss_a, cost_a), (over_b, loss_b, cost_b)) = (key(a), key(b));
                let by_loss = loss_a.total_cmp(&loss_b).then(cost_a.total_cmp(&cost_b));
                over_a.cmp(&over_b).then(by_loss)
            });
            for (place, number) in places.iter_mut().zip(order) {
                place.push(number);
            }
        }
        places
    }

    /// The prefix that has for each record that of its candidate.
    fn gather(&self, candidates: &[(Vec<f64>, Prefix)], places: &[usize]) -> Prefix {
        let rows = self.batch.rows;
        let all = candidates.iter().map(|(_, prefix)| prefix.hidden.clone());
        let numbers = places.iter().enumerate();
        let numbers: Vec<i32> = numbers
            .map(|(row, place)| (place * rows + row) as i32)
            .collect();
        let numbers = TensorData::new(numbers, [rows]);
        let numbers = Tensor::<1, Int>::from_data(numbers, self.device);
        let experts = places.iter().enumerate();
        Prefix {
            hidden: Tensor::cat(all.collect(), 0).select(0, numbers),
            experts: experts
                .map(|(row, &place)| candidates[place].1.experts[row].clone())
                .collect(),
        }
    }
}

/// Number of paths through layers with so many choices; 0 stands for a layer without a router. `None` if no
/// number holds it.
fn num_paths(choices: &[usize]) -> Option<usize> {
    let mut routed = choices.iter().filter(|&&count| count > 0);
    routed.try_fold(1_usize, |paths, &count| paths.checked_mul(count))
}

/// All paths of all records.
struct All {
    best: Vec<Option<Path>>,
    sum: Vec<f64>,
    paths: usize,
}

impl All {
    fn new(records: usize) -> Self {
        Self {
            best: vec![None; records],
            sum: vec![0.0; records],
            paths: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_without_routers_have_no_choice() {
        assert_eq!(num_paths(&[3, 0, 2]), Some(6));
        assert_eq!(num_paths(&[2; 200]), None);
    }
}
