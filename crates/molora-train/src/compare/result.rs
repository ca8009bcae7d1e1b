//! The result of a comparison: `compare.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::outcome::Outcome;
use super::plan::{Budget, Plan, PlannedRecipe};
use super::tune::Tuned;
use super::unseen::UnseenComparison;
use crate::report::standing::base_spread;
use crate::report::{CONFIDENCE, Gain, RESAMPLES, Spread};
use crate::report::{IDLE_SHARE, ParameterCounts, SCHEMA_VERSION};
use crate::store::is_plain;

/// A finished comparison: `compare.json`. Scores and shares are fractions, times are seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// Version of molora that trained the runs.
    pub molora_version: String,
    /// Folder of the base model, or `bundled:NAME`.
    pub model: String,
    /// Folder of the tasks, or `bundled:tasks`.
    pub data: String,
    /// Name of the device.
    pub device: String,
    /// Number of seeds.
    pub seeds: u64,
    /// What was made equal.
    pub budget: Budget,
    /// The recipe that the others are compared with.
    pub reference: String,
    /// Names of the tasks.
    pub tasks: Vec<String>,
    /// Number of resamples of the intervals.
    pub resamples: usize,
    /// Share of the resamples that the intervals cover.
    pub confidence: f64,
    /// What was tried on the validation split, and chosen, by recipe; empty where nothing was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tuned: Vec<Tuned>,
    /// Score of the base model alone by task, where the runs have it; a spread over runs only if these
    /// disagree.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub base: BTreeMap<String, Spread>,
    /// One result per recipe, the reference first.
    pub recipes: Vec<RecipeResult>,
    /// Scores on tasks that no run was trained on, if any were held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<UnseenComparison>,
}

/// What the runs of one recipe gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeResult {
    /// Name of the recipe.
    pub name: String,
    /// Its paper.
    pub citation: String,
    /// Rank of its experts.
    pub rank: usize,
    /// Steps over all stages.
    pub steps: usize,
    /// Scalars of adapters, routers and gates: what the budget is about.
    pub budget_parameters: usize,
    /// All parameters by what they are for.
    pub parameters: ParameterCounts,
    /// Scores by task.
    pub tasks: BTreeMap<String, TaskResult>,
    /// Mean of the tasks' metrics.
    pub mean: Spread,
    /// Mean of the tasks' accuracies.
    pub mean_accuracy: Spread,
    /// The task with the lowest metric.
    pub worst_task: Option<WorstTask>,
    /// Difference to the reference; none for the reference itself.
    pub gain: Option<Gain>,
    /// Difference of the mean accuracy to that of the reference's run with the same seed, from seed
    /// 0; empty for the reference itself.
    pub gain_by_seed: Vec<f64>,
    /// Seconds of training, mean over seeds.
    pub train_seconds: f64,
    /// Real tokens per second of training, mean over seeds.
    pub tokens_per_second: f64,
    /// Number of routed experts, over all sites and seeds; 0 without routers.
    pub num_experts: usize,
    /// Experts that got less than 1 % of every task's weight.
    pub dead_experts: Vec<DeadExperts>,
}

/// Score of a recipe on one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskResult {
    /// Name of the task's metric.
    pub metric: String,
    /// The metric.
    pub score: Spread,
    /// The accuracy.
    pub accuracy: Spread,
    /// The metric on each of several test splits, by name; empty where there is one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tests: BTreeMap<String, Spread>,
}

/// The task with the lowest metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorstTask {
    /// Name of the task.
    pub name: String,
    /// Its metric, mean over seeds.
    pub score: f64,
}

/// Dead experts of one site in one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadExperts {
    /// Seed of the run.
    pub seed: u64,
    /// Full name of the site.
    pub site: String,
    /// The experts, from 0.
    pub experts: Vec<usize>,
}

impl Comparison {
    /// Whether its parts fit together, as in one that was read from a file; what does not, in words.
    ///
    /// # Errors
    /// The first problem, with the path of its field.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.recipes.is_empty() {
            return Err("recipes is empty, expected at least one".into());
        }
        for recipe in &self.recipes {
            let name = recipe.name.escape_debug();
            if !is_plain(&recipe.name) {
                return Err(format!("recipes: `{name}` is no name of a folder"));
            }
            let found = recipe.mean.values.len();
            if found == 0 || found as u64 != self.seeds {
                let seeds = self.seeds;
                return Err(format!(
                    "seeds is {seeds}, but recipe `{name}` has {found} scores"
                ));
            }
            has_all(&self.tasks, &recipe.tasks, &recipe.name)?;
        }
        for tuned in &self.tuned {
            let (best, count) = (tuned.best, tuned.trials.len());
            if best >= count {
                let name = tuned.recipe.escape_debug();
                return Err(format!(
                    "tuned: best of `{name}` is {best}, but it has {count} trials"
                ));
            }
        }
        if let Some(unseen) = &self.unseen {
            has_all(&unseen.tasks, &unseen.base, "base model")?;
            for recipe in &unseen.recipes {
                has_all(&unseen.tasks, &recipe.tasks, &recipe.name)?;
            }
        }
        Ok(())
    }

    /// Puts the runs together; `outcomes` are by recipe and seed.
    pub(super) fn new(plan: &Plan, outcomes: &[Vec<Outcome>]) -> Self {
        let recipes = plan.recipes.iter().zip(outcomes).enumerate();
        let results = recipes.map(|(index, (recipe, runs))| {
            let reference = (index > 0).then_some(&outcomes[0][..]);
            recipe_result(plan, recipe, runs, reference)
        });
        Self {
            version: SCHEMA_VERSION,
            molora_version: plan.molora_version.clone(),
            model: plan.model.clone(),
            data: plan.data.clone(),
            device: plan.device.clone(),
            seeds: plan.seeds,
            budget: plan.budget,
            reference: plan.recipes[0].name.clone(),
            tasks: plan.tasks.iter().map(|task| task.name.clone()).collect(),
            resamples: RESAMPLES,
            confidence: CONFIDENCE,
            tuned: Vec::new(),
            base: base_scores(plan, outcomes),
            recipes: results.collect(),
            unseen: None,
        }
    }
}

/// What the base model scored by the tasks' own metrics, as far as the runs have measured it.
fn base_scores(plan: &Plan, outcomes: &[Vec<Outcome>]) -> BTreeMap<String, Spread> {
    let of_task = |name: &str| {
        let beside = |run: &Outcome| run.base.as_ref()?.scores.beside(&run.eval, name);
        base_spread(outcomes.iter().flatten().filter_map(beside).collect())
    };
    let tasks = plan.tasks.iter().map(|task| &task.name);
    tasks
        .filter_map(|name| Some((name.clone(), of_task(name)?)))
        .collect()
}

/// Refuses scores without those of a task.
fn has_all(
    tasks: &[String],
    scores: &BTreeMap<String, TaskResult>,
    of: &str,
) -> Result<(), String> {
    match tasks.iter().find(|task| !scores.contains_key(*task)) {
        None => Ok(()),
        Some(task) => {
            let (task, of) = (task.escape_debug(), of.escape_debug());
            Err(format!("tasks has `{task}`, but `{of}` has no score of it"))
        }
    }
}

fn recipe_result(
    plan: &Plan,
    recipe: &PlannedRecipe,
    runs: &[Outcome],
    reference: Option<&[Outcome]>,
) -> RecipeResult {
    let tasks = plan.tasks.iter().map(|task| {
        let of = |run: &Outcome| run.eval.tasks[&task.name].clone();
        let by_test = |name: String| {
            let value = |run: &Outcome| of(run).tests.get(&name).map_or(f64::NAN, |t| t.value);
            let found = spread(runs, value);
            (name, found)
        };
        let result = TaskResult {
            metric: of(&runs[0]).metric,
            score: spread(runs, |run| of(run).value),
            accuracy: spread(runs, |run| of(run).accuracy.unwrap_or(of(run).value)),
            tests: of(&runs[0]).tests.into_keys().map(&by_test).collect(),
        };
        (task.name.clone(), result)
    });
    let tasks: BTreeMap<String, TaskResult> = tasks.collect();
    let sites = runs.iter().flat_map(|run| &run.routing.sites);
    // Of the runs, as the budget may leave them to a setting that was tuned.
    let counts = runs[0].summary.parameters;
    RecipeResult {
        name: recipe.name.clone(),
        citation: recipe.recipe.citation.clone(),
        rank: recipe.recipe.adapter.bank.rank,
        steps: recipe.steps(),
        budget_parameters: counts.beside_heads(),
        parameters: counts,
        worst_task: worst_task(&tasks),
        tasks,
        mean: spread(runs, |run| run.eval.mean),
        mean_accuracy: spread(runs, |run| run.eval.mean_accuracy),
        gain: reference.map(|reference| gain(runs, reference)),
        gain_by_seed: reference.map_or(Vec::new(), |reference| by_seed(runs, reference)),
        train_seconds: spread(runs, |run| run.summary.train_seconds).mean,
        tokens_per_second: spread(runs, |run| run.summary.tokens_per_second).mean,
        num_experts: sites.map(|site| site.num_experts()).sum(),
        dead_experts: dead_experts(runs),
    }
}

fn spread(runs: &[Outcome], value: impl Fn(&Outcome) -> f64) -> Spread {
    Spread::of(runs.iter().map(value).collect())
}

fn worst_task(tasks: &BTreeMap<String, TaskResult>) -> Option<WorstTask> {
    let mean = |result: &TaskResult| result.score.mean;
    let worst = tasks
        .iter()
        .min_by(|a, b| mean(a.1).total_cmp(&mean(b.1)))?;
    Some(WorstTask {
        name: worst.0.clone(),
        score: mean(worst.1),
    })
}

/// Counts of right answers over seeds, minus those of the reference, by task and record.
fn gain(runs: &[Outcome], reference: &[Outcome]) -> Gain {
    gain_of(&rights(runs), &rights(reference))
}

fn rights(runs: &[Outcome]) -> Vec<&Vec<Vec<bool>>> {
    runs.iter().map(|run| &run.right).collect()
}

/// [`gain`] of runs and those of the reference with the same seeds, by task and record.
pub(super) fn gain_of(runs: &[&Vec<Vec<bool>>], reference: &[&Vec<Vec<bool>>]) -> Gain {
    let difference = |(run, reference): (&&Vec<Vec<bool>>, &&Vec<Vec<bool>>)| {
        let task = |(run, reference): (&Vec<bool>, &Vec<bool>)| {
            let pairs = run.iter().zip(reference);
            pairs
                .map(|(&run, &other)| i64::from(run) - i64::from(other))
                .collect()
        };
        run.iter().zip(reference.iter()).map(task).collect()
    };
    let by_seed: Vec<_> = runs.iter().zip(reference).map(difference).collect();
    Gain::of(&by_seed)
}

fn by_seed(runs: &[Outcome], reference: &[Outcome]) -> Vec<f64> {
    let pairs = runs.iter().zip(reference);
    pairs
        .map(|(run, other)| run.eval.mean_accuracy - other.eval.mean_accuracy)
        .collect()
}

fn dead_experts(runs: &[Outcome]) -> Vec<DeadExperts> {
    let of_run = |run: &Outcome| {
        let seed = run.summary.seed;
        let site = |site: &crate::report::SiteRouting| DeadExperts {
            seed,
            site: site.site.clone(),
            experts: site.idle_experts(IDLE_SHARE),
        };
        run.routing.sites.iter().map(site).collect::<Vec<_>>()
    };
    let all = runs.iter().flat_map(of_run);
    all.filter(|dead| !dead.experts.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{EvalReport, RoutingReport, SiteRouting, TaskScore};

    /// A run with these right answers in tasks `a` and `b`, whose only site gives `weights`.
    fn outcome(seed: u64, right: [&[bool]; 2], weights: &[f64]) -> Outcome {
        let score = |right: &[bool]| {
            let hits = right.iter().filter(|&&is_right| is_right).count();
            let accuracy = hits as f64 / right.len() as f64;
            TaskScore {
                metric: "accuracy".into(),
                value: accuracy,
                n: right.len(),
                accuracy: Some(accuracy),
                majority: 0.5,
                loss: None,
                also: Default::default(),
                tests: BTreeMap::new(),
            }
        };
        let tasks = [("a", score(right[0])), ("b", score(right[1]))];
        let mut summary = crate::report::sample::summary();
        summary.seed = seed;
        let site = SiteRouting {
            site: "layer.0.query".into(),
            layer: 0,
            weights: [("a".to_owned(), weights.to_vec())].into(),
        };
        Outcome {
            eval: EvalReport::new("test", tasks.map(|(name, s)| (name.into(), s)).into()),
            routing: RoutingReport {
                version: SCHEMA_VERSION,
                sites: vec![site],
                has_general: false,
            },
            summary,
            base: None,
            right: right.map(<[bool]>::to_vec).into(),
        }
    }

    const ALL: &[bool] = &[true; 4];
    const HALF: &[bool] = &[true, true, false, false];
    const NONE: &[bool] = &[false; 4];

    #[test]
    fn a_gain_is_the_difference_of_mean_accuracies() {
        let reference = [
            outcome(0, [HALF, NONE], &[1.0]),
            outcome(1, [NONE, NONE], &[1.0]),
        ];
        let runs = [
            outcome(0, [ALL, HALF], &[1.0]),
            outcome(1, [ALL, NONE], &[1.0]),
        ];
        let found = gain(&runs, &reference);
        let mean = |runs: &[Outcome]| spread(runs, |run| run.eval.mean_accuracy).mean;
        assert!((found.mean_accuracy - (mean(&runs) - mean(&reference))).abs() < 1e-12);
        assert!((found.mean_accuracy - 0.5).abs() < 1e-12);
        assert_eq!(by_seed(&runs, &reference), [0.5, 0.5]);
        assert!(found.low < 0.5 && found.high > 0.5, "{found:?}");
    }

    #[test]
    fn the_order_of_seeds_changes_no_gain() {
        let runs = |order: [usize; 2]| {
            order.map(|seed| outcome(seed as u64, [[HALF, ALL][seed], NONE], &[1.0]))
        };
        let reference = |order: [usize; 2]| {
            order.map(|seed| outcome(seed as u64, [[NONE, HALF][seed], HALF], &[1.0]))
        };
        assert_eq!(
            gain(&runs([0, 1]), &reference([0, 1])),
            gain(&runs([1, 0]), &reference([1, 0]))
        );
        let same = gain(&runs([1, 0]), &runs([1, 0]));
        assert_eq!((same.mean_accuracy, same.low, same.high), (0.0, 0.0, 0.0));
    }

    #[test]
    fn dead_experts_are_listed_by_seed_and_site() {
        let runs = [
            outcome(0, [ALL, ALL], &[0.995, 0.005]),
            outcome(1, [ALL, ALL], &[0.5, 0.5]),
        ];
        let expected = DeadExperts {
            seed: 0,
            site: "layer.0.query".into(),
            experts: vec![1],
        };
        assert_eq!(dead_experts(&runs), [expected]);
    }

    #[test]
    fn the_worst_task_is_the_one_with_the_lowest_metric() {
        let result = |score| TaskResult {
            metric: "accuracy".into(),
            score: Spread::of(vec![score]),
            accuracy: Spread::of(vec![1.0]),
            tests: BTreeMap::new(),
        };
        let tasks = [("a", 0.7), ("b", -0.1), ("c", 0.2)];
        let tasks = tasks.map(|(name, score)| (name.to_owned(), result(score)));
        let worst = worst_task(&tasks.into()).expect("three tasks");
        assert_eq!((worst.name.as_str(), worst.score), ("b", -0.1));
    }
}
