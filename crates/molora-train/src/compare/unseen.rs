//! The second half of a comparison: tasks that no run was trained on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::error::CompareError;
use super::plan::Plan;
use super::result::{TaskResult, gain_of};
use super::{Event, run_folder};
use crate::base::DeviceSpec;
use crate::data::{Label, Task};
use crate::report::{Gain, Spread};
use crate::run;
use crate::unseen::{
    ProbeResult, UNSEEN, UnseenReport, UnseenRequest, UnseenTask, evaluate_unseen,
};

/// What the runs are worth on tasks that they were not trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnseenComparison {
    /// Names of the tasks.
    pub tasks: Vec<String>,
    /// A probe on the base model without adapters.
    pub base: BTreeMap<String, TaskResult>,
    /// Mean accuracy of the probe on the base model.
    pub base_accuracy: f64,
    /// One result per recipe, the reference first.
    pub recipes: Vec<UnseenResult>,
}

/// What probes on the runs of one recipe gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnseenResult {
    /// Name of the recipe.
    pub name: String,
    /// Scores by task.
    pub tasks: BTreeMap<String, TaskResult>,
    /// Mean of the tasks' accuracies.
    pub mean_accuracy: Spread,
    /// Difference of the mean accuracy to the probe on the base model.
    pub over_base: Gain,
    /// Difference to the reference; none for the reference itself.
    pub gain: Option<Gain>,
}

/// Right or wrong, by task and test record.
type Rights = Vec<Vec<bool>>;

/// Measures the finished runs that have not been measured, and reads the others.
pub(super) fn measure_all(
    plan: &Plan,
    out: &Path,
    device: DeviceSpec,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<Vec<UnseenReport>>, CompareError> {
    let names: Vec<String> = plan.unseen.iter().map(|task| task.name.clone()).collect();
    let total = plan.recipes.len() * plan.seeds as usize;
    let mut number = 0;
    // The base model's scores depend on the recipe through its limit on lengths alone.
    let mut base: BTreeMap<usize, BTreeMap<String, ProbeResult>> = BTreeMap::new();
    let mut reports = Vec::new();
    for recipe in &plan.recipes {
        let known = base.entry(recipe.recipe.data.max_length).or_default();
        let mut of_recipe = Vec::new();
        for seed in 0..plan.seeds {
            let folder = run_folder(out, &recipe.name, seed);
            number += 1;
            let report = match read(&folder, plan, seed) {
                Some(report) => report,
                None if stop.load(Ordering::SeqCst) => {
                    return Err(CompareError::Interrupted {
                        what: "run",
                        number,
                        total,
                    });
                }
                None => {
                    let request = UnseenRequest {
                        data: Some(&plan.data),
                        tasks: Some(&names),
                        device: Some(device),
                        base: known.clone(),
                        ..UnseenRequest::default()
                    };
                    let mut inside = |event: run::Event<'_>| on_event(Event::Inside(event));
                    let report = evaluate_unseen(&folder, &request, &mut inside)?;
                    report.save(&folder)?;
                    report
                }
            };
            known.extend(base_of(&report));
            of_recipe.push(report);
        }
        reports.push(of_recipe);
    }
    Ok(reports)
}

fn base_of(report: &UnseenReport) -> impl Iterator<Item = (String, ProbeResult)> {
    let tasks = report.tasks.iter();
    tasks.map(|(name, task)| (name.clone(), task.base.clone()))
}

/// What a run folder says about the plan's unseen tasks, if it is what this comparison would ask.
fn read(folder: &Path, plan: &Plan, seed: u64) -> Option<UnseenReport> {
    let text = std::fs::read(folder.join(UNSEEN)).ok()?;
    let report: UnseenReport = serde_json::from_slice(&text).ok()?;
    let has = |task: &super::PlannedTask| {
        let [train, _, test] = task.records;
        report.tasks.get(&task.name).is_some_and(|found| {
            let probes = [&found.base, &found.run];
            found.train_records == train && probes.iter().all(|p| p.predictions.len() == test)
        })
    };
    let is_ours = report.seed == seed && report.shots.is_none() && plan.unseen.iter().all(has);
    is_ours.then_some(report)
}

impl UnseenComparison {
    /// Puts the reports together, which are by recipe and seed; `tasks` are the plan's unseen ones.
    pub(super) fn new(plan: &Plan, tasks: &[Task], reports: &[Vec<UnseenReport>]) -> Self {
        let rights = |reports: &[UnseenReport], of: &dyn Fn(&UnseenTask) -> &ProbeResult| {
            let rights = reports.iter().map(|report| rights(report, tasks, of));
            rights.collect::<Vec<Rights>>()
        };
        let reference = rights(&reports[0], &|task| &task.run);
        let recipes = plan.recipes.iter().zip(reports).enumerate();
        let results = recipes.map(|(index, (recipe, reports))| {
            let runs = rights(reports, &|task| &task.run);
            let base = rights(reports, &|task| &task.base);
            UnseenResult {
                name: recipe.name.clone(),
                tasks: task_results(reports, |task| &task.run),
                mean_accuracy: Spread::of(reports.iter().map(mean_accuracy).collect()),
                over_base: gain_of(&refs(&runs), &refs(&base)),
                gain: (index > 0).then(|| gain_of(&refs(&runs), &refs(&reference))),
            }
        });
        let base = task_results(&reports[0][..1], |task| &task.base);
        let sum: f64 = base.values().map(|task| task.accuracy.mean).sum();
        Self {
            tasks: plan.unseen.iter().map(|task| task.name.clone()).collect(),
            base_accuracy: sum / base.len().max(1) as f64,
            base,
            recipes: results.collect(),
        }
    }
}

fn refs(rights: &[Rights]) -> Vec<&Rights> {
    rights.iter().collect()
}

fn mean_accuracy(report: &UnseenReport) -> f64 {
    let accuracies = report
        .tasks
        .values()
        .filter_map(|task| task.run.score.accuracy);
    accuracies.sum::<f64>() / report.tasks.len().max(1) as f64
}

fn task_results(
    reports: &[UnseenReport],
    of: impl Fn(&UnseenTask) -> &ProbeResult,
) -> BTreeMap<String, TaskResult> {
    let result = |name: &String| {
        let scores = || reports.iter().map(|report| &of(&report.tasks[name]).score);
        let result = TaskResult {
            metric: of(&reports[0].tasks[name]).score.metric.clone(),
            score: Spread::of(scores().map(|score| score.value).collect()),
            accuracy: Spread::of(scores().filter_map(|score| score.accuracy).collect()),
            tests: BTreeMap::new(),
        };
        (name.clone(), result)
    };
    reports[0].tasks.keys().map(result).collect()
}

fn rights(
    report: &UnseenReport,
    tasks: &[Task],
    of: &dyn Fn(&UnseenTask) -> &ProbeResult,
) -> Rights {
    let of_task = |task: &Task| {
        let predictions = &of(&report.tasks[&task.meta.name]).predictions;
        let pairs = predictions.iter().zip(&task.test);
        pairs
            .map(|(&class, record)| record.label == Label::Index(class))
            .collect()
    };
    tasks.iter().map(of_task).collect()
}
