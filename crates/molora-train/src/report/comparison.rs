//! Finished runs side by side as one HTML page; `comparison.html` is its template.

use std::collections::BTreeMap;

use minijinja::{Value, context};

use super::chart::{Curve, large_chart};
use super::comparable::{cautions, common_tasks};
use super::details::BaseReport;
use super::format::{duration, last_part, mebibytes, percent, thousands};
use super::palette::{COLORS, Ink, color};
use super::scatter::{Spot, scatter_values};
use super::schema::{EvalReport, Record, RunSummary};
use super::series::{Point, Series};
use super::standing::{mean_score, score_values, seed_values};
use super::statistics::Spread;
use super::template::page;
use super::training::taken_apart;

/// A finished run beside others.
#[derive(Debug, Clone)]
pub(crate) struct ComparedRun {
    /// What the runs of its recipe with other seeds are called too.
    pub recipe: String,
    /// Its own name, such as that of its folder.
    pub name: String,
    /// Its facts.
    pub summary: RunSummary,
    /// Its scores.
    pub eval: EvalReport,
    /// Its steps, and its scores of the validation split.
    pub records: Vec<Record>,
    /// What the base model alone is worth.
    pub base: Option<BaseReport>,
    /// What it was made of beside its recipe, in words and as beginnings of digests; what is not known
    /// of a run is not there.
    pub inputs: BTreeMap<String, String>,
}

/// A table that a page shows as it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PlainTable {
    /// Its heading.
    pub title: String,
    /// Heads of its columns.
    pub header: Vec<String>,
    /// Its rows.
    pub rows: Vec<Vec<String>>,
}

/// The runs of one recipe.
pub(super) struct Group<'a> {
    pub(super) name: &'a str,
    pub(super) runs: Vec<&'a ComparedRun>,
    pub(super) ink: Ink,
}

impl Group<'_> {
    /// A number of each of them.
    pub(super) fn spread(&self, value: impl Fn(&ComparedRun) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(|run| value(run)).collect())
    }
}

/// Renders a self-contained page that compares runs, with more tables and a note behind the scores.
///
/// Runs that differ in more than their recipe are compared by what they have in common, and the page
/// says so at its top.
///
/// # Panics
/// If there is no run.
pub(crate) fn render_comparison(runs: &[ComparedRun], tables: &[PlainTable], note: &str) -> String {
    assert!(!runs.is_empty(), "there is at least one run");
    let groups = groups(runs);
    let tasks = common_tasks(runs);
    let names: Vec<&str> = groups.iter().map(|group| group.name).collect();
    let title = format!("{} compared", names.join(", "));
    let table = |table: &PlainTable| {
        context! { title => &table.title, head => &table.header, rows => &table.rows }
    };
    let values = context! {
        names => names.join(", "),
        facts => facts(runs),
        cautions => cautions(runs),
        tiles => tiles(&groups, &tasks),
        scores => (!tasks.is_empty()).then(|| score_values(runs, &groups, &tasks)),
        seeds => (!tasks.is_empty()).then(|| seed_values(&groups, &tasks)),
        tables => tables.iter().map(table).collect::<Vec<_>>(),
        note => note,
        front => (!tasks.is_empty()).then(|| scatter_values(&spots(&groups, &tasks))),
        validation => curves(&groups, "mean score (%)", |run| validation_curve(run, &tasks)),
        loss => curves(&groups, "loss of the tasks (nats)", |run| loss_curve(run, &tasks)),
        repeats => groups.len() > COLORS,
        cost => context! { head => COST, rows => groups.iter().map(cost).collect::<Vec<_>>() },
    };
    page(&title, "comparison.html", values)
}

/// The runs by recipe, in the order in which these come.
fn groups(runs: &[ComparedRun]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for run in runs {
        match groups.iter_mut().find(|group| group.name == run.recipe) {
            Some(group) => group.runs.push(run),
            None => groups.push(Group {
                name: &run.recipe,
                runs: vec![run],
                ink: color(groups.len()),
            }),
        }
    }
    groups
}

/// What the runs have in common, and what not.
fn facts(runs: &[ComparedRun]) -> Vec<String> {
    let all = |value: &dyn Fn(&ComparedRun) -> String| {
        let mut values: Vec<String> = runs.iter().map(value).collect();
        values.sort();
        values.dedup();
        values.join(", ")
    };
    vec![
        format!("model {}", all(&|run| last_part(&run.summary.model).into())),
        format!("{} split", all(&|run| run.eval.split.clone())),
        format!("{} runs", runs.len()),
        format!("seeds {}", all(&|run| run.summary.seed.to_string())),
        format!("device {}", all(&|run| run.summary.device.clone())),
        format!("molora {}", all(&|run| run.summary.molora_version.clone())),
    ]
}

fn tiles(groups: &[Group<'_>], tasks: &[String]) -> Vec<[String; 2]> {
    let mean = |group: &Group<'_>| group.spread(|run| mean_score(run, tasks)).mean;
    let best = groups.iter().max_by(|a, b| mean(a).total_cmp(&mean(b)));
    let parameters = |group: &&Group<'_>| beside_heads(group.runs[0]);
    let least = groups.iter().min_by_key(parameters);
    let seconds = groups.iter().flat_map(|group| &group.runs);
    let seconds: f64 = seconds.map(|run| run.summary.train_seconds).sum();
    let best = best.filter(|_| !tasks.is_empty()).map(|group| {
        let note = format!("highest mean score, {}", group.name);
        [percent(mean(group)) + " %", note]
    });
    let least = least.map(|group| {
        let note = format!("fewest parameters beside the heads, {}", group.name);
        [thousands(beside_heads(group.runs[0])), note]
    });
    let tiles = [
        Some([groups.len().to_string(), "recipes".to_owned()]),
        Some([tasks.len().to_string(), "tasks that all have".to_owned()]),
        best,
        least,
        Some([duration(seconds), "training time in all".to_owned()]),
    ];
    tiles.into_iter().flatten().collect()
}

/// Scalars that train, but for the heads.
fn beside_heads(run: &ComparedRun) -> usize {
    run.summary.parameters.beside_heads()
}

fn spots(groups: &[Group<'_>], tasks: &[String]) -> Vec<Spot> {
    let spot = |group: &Group<'_>| Spot {
        name: group.name.to_owned(),
        parameters: group.spread(|run| beside_heads(run) as f64).mean,
        score: group.spread(|run| mean_score(run, tasks)).mean,
    };
    groups.iter().map(spot).collect()
}

/// A curve for each run that has points, in its recipe's color; nothing without any.
fn curves(
    groups: &[Group<'_>],
    label: &str,
    points: impl Fn(&ComparedRun) -> Vec<Point>,
) -> Option<Value> {
    let all = groups
        .iter()
        .flat_map(|group| group.runs.iter().map(move |run| (group, run)));
    let curve = |(group, run): (&Group<'_>, &&ComparedRun)| Curve {
        label: group.name.to_owned(),
        points: points(run),
        ink: group.ink,
    };
    let mut all: Vec<Curve> = all.map(curve).collect();
    all.retain(|curve| !curve.points.is_empty());
    (!all.is_empty()).then(|| large_chart(label, &all))
}

/// Mean scores of the tasks on the validation split, without those of experts that train alone, each on
/// its task.
fn validation_curve(run: &ComparedRun, tasks: &[String]) -> Vec<Point> {
    let (_, mut scored, _) = taken_apart(&run.records);
    scored.retain(|record| record.expert.is_none());
    let series = Series::scored("", &scored, |record| {
        let scores = &record.validation.tasks;
        let values = tasks
            .iter()
            .map(|task| Some(100.0 * scores.get(task)?.value));
        mean(&values.collect::<Option<Vec<f64>>>()?)
    });
    series.raw()
}

/// The smoothed loss of the tasks alone: auxiliary terms are not the same in all recipes.
fn loss_curve(run: &ComparedRun, tasks: &[String]) -> Vec<Point> {
    let (steps, _, _) = taken_apart(&run.records);
    let series = Series::of("", &steps, |step| {
        let losses = tasks
            .iter()
            .filter_map(|task| step.tasks.get(task).copied());
        mean(&losses.collect::<Vec<f64>>())
    });
    series.smoothed()
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

const COST: [&str; 11] = [
    "recipe",
    "runs",
    "adapters",
    "routers",
    "gates",
    "heads",
    "saved modules",
    "steps",
    "training time",
    "tokens/s",
    "peak memory",
];

/// Parameters and steps of a recipe, and means over its runs of what these cost.
fn cost(group: &Group<'_>) -> Vec<String> {
    let count = |value: &dyn Fn(&RunSummary) -> usize| {
        let values = || group.runs.iter().map(|run| value(&run.summary));
        match (values().min().unwrap_or(0), values().max().unwrap_or(0)) {
            (least, most) if least < most => format!("{} to {}", thousands(least), thousands(most)),
            (_, one) => thousands(one),
        }
    };
    let speed = group.spread(|run| run.summary.tokens_per_second).mean;
    let memory = group
        .runs
        .iter()
        .filter_map(|run| run.summary.peak_memory_bytes);
    vec![
        group.name.to_owned(),
        group.runs.len().to_string(),
        count(&|run| run.parameters.adapters),
        count(&|run| run.parameters.routers),
        count(&|run| run.parameters.gates),
        count(&|run| run.parameters.heads),
        count(&|run| run.parameters.saved),
        count(&|run| run.steps),
        duration(group.spread(|run| run.summary.train_seconds).mean),
        thousands(speed.round().max(0.0) as usize),
        mebibytes(memory.max()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{StepRecord, sample};

    fn tables() -> [PlainTable; 1] {
        [PlainTable {
            title: "Gains <b>".into(),
            header: vec!["recipe".into(), "gain".into()],
            rows: vec![vec!["samora".into(), "+1.00".into()]],
        }]
    }

    /// `MOLORA_SAMPLE_COMPARISON=FILE cargo test the_comparison` writes the page for a look at it.
    #[test]
    fn the_comparison_is_whole_and_loads_nothing() {
        let page = render_comparison(&sample::runs(), &tables(), "A note & more.");
        sample::assert_page(&page);
        for text in [
            "<h2>Scores on the",
            "<h2>Validation",
            "<h2>Training loss",
            "<h2>Cost",
            "A note &amp; more.",
            "Gains &lt;b&gt;",
            "lora, samora, mosld compared - molora</title>",
            "class=\"best\"",
            "<th>base</th>",
        ] {
            assert!(page.contains(text), "{text}");
        }
        assert!(!page.contains("class=\"caution\""));
        if let Some(path) = std::env::var_os("MOLORA_SAMPLE_COMPARISON") {
            std::fs::write(path, page).unwrap();
        }
    }

    #[test]
    fn what_speaks_against_it_stands_at_the_top() {
        let mut runs = sample::runs();
        runs[0].summary.model = "<other>".into();
        runs[1].eval.tasks.clear();
        let page = render_comparison(&runs, &[], "");
        sample::assert_page(&page);
        let caution = page.find("class=\"caution\"").expect("a caution");
        assert!(caution < page.find("class=\"tiles\"").expect("tiles"));
        assert!(page.contains("&lt;other&gt; in lora-seed0"));
        assert!(page.contains("No task is in all runs") && !page.contains("<h2>Scores on"));
    }

    #[test]
    fn curves_are_those_of_the_tasks_that_all_runs_have() {
        let run = sample::runs().remove(0);
        let tasks = ["sms_spam".to_owned()];
        let (steps, scored, _) = taken_apart(&run.records);
        let found = validation_curve(&run, &tasks);
        let value = |place: usize| 100.0 * scored[place].validation.tasks["sms_spam"].value;
        assert_eq!(found.len(), scored.len());
        assert_eq!(found[0].1, value(0));
        let has_task = |step: &&StepRecord| step.tasks.contains_key("sms_spam");
        let first = steps.iter().find(has_task).expect("some step has it");
        let found = loss_curve(&run, &tasks);
        assert_eq!(found[0], (first.step as f64, first.tasks["sms_spam"]));
        assert_eq!(found.len(), steps.iter().filter(has_task).count());
        // A task that the run never had.
        assert!(validation_curve(&run, &["other".to_owned()]).is_empty());
        assert!(loss_curve(&run, &["other".to_owned()]).is_empty());
    }

    #[test]
    fn one_run_without_curves_has_a_page_too() {
        let mut run = sample::runs().remove(0);
        (run.records, run.base) = (Vec::new(), None);
        let page = render_comparison(&[run], &[], "");
        sample::assert_page(&page);
        assert!(!page.contains("<h2>Validation") && !page.contains("class=\"best\""));
        assert!(!page.contains("<th>base</th>"));
    }
}
