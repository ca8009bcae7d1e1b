//! How far the routers of a finished run are from the best choice in hindsight.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use burn::module::Module;
use molora_routing::{LayerRule, RouterConfig};
use serde::Serialize;

use super::evaluate::{Opened, open_scored};
use super::{Event, ScoredRecords};
use crate::base::DeviceSpec;
use crate::data::{Batch, Split, TokenizedTask, eval_batches};
use crate::error::{RunProblem, TrainError};
use crate::eval::check_finite;
use crate::eval::oracle::{Found, Search};
use crate::guide::Guide;
use crate::model::inputs_for;
use crate::store::RUN;

/// Three choices in each of eight layers.
pub const MAX_PATHS: usize = 6561;

/// What is searched, and how.
#[derive(Debug, Clone, Copy)]
pub struct OracleRequest {
    /// The split.
    pub split: Split,
    /// At most so many records of each task.
    pub limit: Option<NonZeroUsize>,
    /// The largest mean cost over layers that a path may have, where experts differ in their cost.
    pub budget: Option<f64>,
    /// Up to so many paths every one is tried; [`MAX_PATHS`] is what a few minutes allow.
    pub max_paths: usize,
    /// Prefixes that are kept for each record where there are too many paths to try them all.
    pub beam: NonZeroUsize,
    /// Where to compute; where the run was trained if absent.
    pub device: Option<DeviceSpec>,
}

/// What the search found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OracleReport {
    /// Name of the split.
    pub split: String,
    /// Whether every path was tried; if not, the search may have missed a better one.
    pub exhaustive: bool,
    /// Every task's losses.
    pub tasks: BTreeMap<String, OracleScore>,
    /// How often the best path took each expert, for each layer with routers, as a share of all records.
    pub layers: Vec<Vec<f64>>,
}

/// Losses of one task, in nats as in training; costs are relative to the most expensive expert.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OracleScore {
    /// Number of records.
    pub n: usize,
    /// Mean loss where the routers decide.
    pub routers: f64,
    /// Mean loss of the best paths.
    pub oracle: f64,
    /// Mean loss of all paths, where all were tried.
    pub mean_path: Option<f64>,
    /// What the routers' decisions cost in the mean.
    pub routers_cost: Option<f64>,
    /// What the best paths cost in the mean.
    pub oracle_cost: Option<f64>,
}

/// Searches the best path through the layers of a finished run for each record, one expert for each layer.
///
/// # Errors
/// As [`evaluate_run`](super::evaluate_run); also for a run without routers, with one choice for all layers,
/// or of an encoder-decoder, and for a budget that no path keeps to or where all experts cost the same.
pub fn search_oracle(
    folder: &Path,
    request: &OracleRequest,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<OracleReport, TrainError> {
    let scored = ScoredRecords {
        split: request.split,
        limit: request.limit,
    };
    let opened = open_scored(folder, None, scored, request.device)?;
    let refuse = |why| {
        Err(TrainError::run(
            &folder.join(RUN),
            RunProblem::NoOracle(why),
        ))
    };
    let spec = &opened.loaded.spec;
    let costs = spec.bank.costs();
    if spec.router.is_none() {
        return refuse("has no routers, so that there is nothing to choose");
    }
    let by_pass = spec.router_scope.first_pass();
    if spec.layer_rule != LayerRule::PerLayer || by_pass.is_some_and(|first| !first.layerwise) {
        return refuse("takes one choice for all layers");
    }
    let decides = |router: &RouterConfig| router.scorer.decides();
    if spec.router.as_ref().is_some_and(decides) {
        return refuse("has routers that choose pairs of vectors, and not experts");
    }
    if opened.model.num_blocks().is_none() {
        return refuse("is of an encoder-decoder, whose layers are not computed one by one");
    }
    if let Some(budget) = request.budget {
        let Some(costs) = &costs else {
            return refuse("has experts of equal cost, to which a budget says nothing");
        };
        let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
        if !(least..=1.0).contains(&budget) {
            let problem = RunProblem::Budget { budget, least };
            return Err(TrainError::run(&folder.join(RUN), problem));
        }
    }
    let guide = opened.guide()?;
    let tasks = &opened.loaded.tasks;
    let total = tasks
        .iter()
        .map(|task| task.split(request.split).len())
        .sum();
    let mut done = 0;
    let mut report = OracleReport {
        split: request.split.name().into(),
        exhaustive: true,
        tasks: BTreeMap::new(),
        layers: Vec::new(),
    };
    let mut counts: Vec<Vec<usize>> = Vec::new();
    for (number, task) in tasks.iter().enumerate() {
        let mut sums = Sums::default();
        for rows in eval_batches(&task.lengths(request.split), BATCH) {
            let found = search(&opened, (number, task), &rows, request, guide.as_ref())?;
            let losses = found.routed.iter().zip(&found.best);
            for ((routed, best), &row) in losses.zip(&rows) {
                let numbers = [*routed, best.loss];
                check_finite(&task.name, (request.split, row), "loss", numbers)?;
            }
            report.exhaustive &= found.mean.is_some();
            let none = |&experts: &usize| vec![0; experts];
            if counts.is_empty() {
                counts = found.choices.iter().map(none).collect();
            }
            for path in &found.best {
                for (layer, &expert) in counts.iter_mut().zip(&path.experts) {
                    layer[expert] += 1;
                }
            }
            sums.add(&found, costs.as_deref());
            done += rows.len();
            on_event(Event::Evaluated(done, total));
        }
        report.tasks.insert(task.name.clone(), sums.score());
    }
    let share = |count: &usize| *count as f64 / done.max(1) as f64;
    let shares = counts.iter().map(|layer| layer.iter().map(share).collect());
    report.layers = shares.collect();
    Ok(report)
}

/// Records that are searched at once.
const BATCH: usize = 16;

fn search(
    opened: &Opened,
    (number, task): (usize, &TokenizedTask),
    rows: &[usize],
    request: &OracleRequest,
    guide: Option<&Guide>,
) -> Result<Found, TrainError> {
    let device = &opened.loaded.device;
    let model = opened.model.valid();
    let examples = task.split(request.split);
    let examples: Vec<_> = rows.iter().map(|&row| &examples[row]).collect();
    let batch = Batch::from_examples(&examples);
    let guidance = guide.map(|guide| guide.of(&batch.task_ids, rows, request.split, device));
    let known = vec![Some(number); batch.rows];
    let (count, guidance) = (opened.loaded.tasks.len(), guidance.unwrap_or_default());
    let (input, context) = inputs_for(&batch, &known, count, None, guidance, device)?;
    let (hidden, state) = model.begin(&input, &context);
    let search = Search {
        model: &model,
        batch: &batch,
        input: &input,
        costs: opened.loaded.spec.bank.costs(),
        budget: request.budget,
        max_paths: request.max_paths,
        beam: request.beam.get(),
        device,
    };
    search.run(hidden, &state)
}

/// Sums over the records of a task.
#[derive(Default)]
struct Sums {
    n: usize,
    routers: f64,
    oracle: f64,
    mean_path: Option<f64>,
    routers_cost: Option<f64>,
    oracle_cost: Option<f64>,
}

impl Sums {
    fn add(&mut self, found: &Found, costs: Option<&[f64]>) {
        let add = |sum: &mut Option<f64>, more: Option<f64>| {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or(0.0) + more);
            }
        };
        let records = found.best.len();
        self.n += records;
        self.routers += found.routed.iter().sum::<f64>();
        self.oracle += found.best.iter().map(|path| path.loss).sum::<f64>();
        add(
            &mut self.mean_path,
            found.mean.as_ref().map(|mean| mean.iter().sum()),
        );
        let routed_cost = found.routed_cost.map(|cost| cost * records as f64);
        add(&mut self.routers_cost, routed_cost);
        let cost = |experts: &[usize], costs: &[f64]| {
            let sum: f64 = experts.iter().map(|&expert| costs[expert]).sum();
            sum / experts.len().max(1) as f64
        };
        let best = |costs| {
            found
                .best
                .iter()
                .map(|path| cost(&path.experts, costs))
                .sum()
        };
        add(&mut self.oracle_cost, costs.map(best));
    }

    fn score(&self) -> OracleScore {
        let n = self.n.max(1) as f64;
        OracleScore {
            n: self.n,
            routers: self.routers / n,
            oracle: self.oracle / n,
            mean_path: self.mean_path.map(|sum| sum / n),
            routers_cost: self.routers_cost.map(|sum| sum / n),
            oracle_cost: self.oracle_cost.map(|sum| sum / n),
        }
    }
}
