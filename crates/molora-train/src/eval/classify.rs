//! Scores of a classifier on one split of every task.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use molora_models::{Adaptable, RouteTrace, TaskModel};

use crate::TrainError;
use crate::data::{Batch, Split, TokenizedTask, eval_batches};
use crate::eval::metrics::accuracy;
use crate::instructions::Guide;
use crate::report::{
    EvalReport, PredictionReport, RoutingReport, SCHEMA_VERSION, SiteRouting, TaskScore,
};
use crate::step::inputs;

/// What the evaluation of a split found.
#[derive(Debug)]
pub struct Evaluation {
    /// Scores of all tasks.
    pub scores: EvalReport,
    /// How the routers shared the tasks.
    pub routing: RoutingReport,
    /// The class predicted for every record.
    pub predictions: PredictionReport,
}

/// Scores every task on a split, and averages the routers' weights over its real tokens.
///
/// The batches depend on the records' lengths alone, so that the same weights give the same scores
/// to the last bit. `guide` tells the routers about whole sequences. `progress` is called with the number of records done.
///
/// # Errors
/// A task number out of range.
pub fn evaluate(
    model: &TaskModel,
    tasks: &[TokenizedTask],
    split: Split,
    batch_size: usize,
    device: &Device,
    guide: Option<&Guide>,
    mut progress: impl FnMut(usize),
) -> Result<Evaluation, TrainError> {
    let model = model.valid();
    let (mut scores, mut classes) = (BTreeMap::new(), BTreeMap::new());
    let mut routing = Routing::new(&model);
    for (number, task) in tasks.iter().enumerate() {
        let examples = task.split(split);
        let mut predictions = vec![0; examples.len()];
        for rows in eval_batches(&task.lengths(split), batch_size) {
            let examples: Vec<_> = rows.iter().map(|&row| &examples[row]).collect();
            let batch = Batch::from_examples(&examples);
            let guidance = guide.map(|guide| guide.of(&batch.task_ids, &rows, device));
            let guidance = guidance.unwrap_or_default();
            let (input, context) = inputs(&batch, tasks.len(), None, guidance, device)?;
            let (pooled, routes) = model.encode(&input, &context);
            let best = model.heads[number]
                .as_ref()
                .expect("a task with classes has a head")
                .forward(pooled)
                .argmax(1)
                .into_data();
            for (&row, class) in rows.iter().zip(best.iter::<i64>()) {
                predictions[row] = class as usize;
            }
            routing.add(&task.name, &routes);
            progress(rows.len());
        }
        scores.insert(task.name.clone(), score(task, split, &predictions));
        classes.insert(task.name.clone(), predictions);
    }
    Ok(Evaluation {
        scores: EvalReport::new(split.name(), scores),
        routing: routing.report(),
        predictions: PredictionReport {
            version: SCHEMA_VERSION,
            split: split.name().into(),
            tasks: classes,
        },
    })
}

/// Scores predicted classes, one for each record of the split.
pub(crate) fn score(task: &TokenizedTask, split: Split, predictions: &[usize]) -> TaskScore {
    let targets = task.classes(split);
    TaskScore {
        metric: task.metric.to_string(),
        value: task.metric.score(predictions, &targets, task.labels.len()),
        n: targets.len(),
        accuracy: accuracy(predictions, &targets),
        majority: task.metric.majority_share(&targets, task.labels.len()),
    }
}

/// Sums of expert weights by site and task.
struct Routing {
    sites: Vec<String>,
    sums: BTreeMap<(usize, String), (Vec<f64>, f64)>,
}

impl Routing {
    fn new(model: &TaskModel) -> Self {
        Self {
            sites: model.backbone.route_names(),
            sums: BTreeMap::new(),
        }
    }

    fn add(&mut self, task: &str, routes: &[RouteTrace]) {
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

    fn report(self) -> RoutingReport {
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

fn host(tensor: Tensor<1>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The first number in a path, as in `encoder.layer.3.attention.self.query`.
fn layer_of(path: &str) -> usize {
    path.split('.')
        .find_map(|part| part.parse().ok())
        .unwrap_or(0)
}
