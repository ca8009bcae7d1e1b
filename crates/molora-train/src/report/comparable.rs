//! Whether runs can be compared at all, and by what.

use std::collections::{BTreeMap, BTreeSet};

use super::comparison::ComparedRun;
use super::format::{last_part, thousands};

/// What [`ComparedRun::inputs`] calls the files of the base model.
pub(crate) const BASE_FILES: &str = "files of the base model";

/// Runs that are named before the rest is counted.
const NAMED: usize = 4;

/// The tasks that all runs have, with the same metric.
pub(super) fn common_tasks(runs: &[ComparedRun]) -> Vec<String> {
    let is_common = |name: &&String| {
        let metric = |run: &ComparedRun| Some(run.eval.tasks.get(*name)?.metric.clone());
        let first = metric(&runs[0]);
        runs.iter().all(|run| metric(run) == first)
    };
    let first = runs.first().map(|run| run.eval.tasks.keys());
    let names = first.into_iter().flatten();
    names.filter(is_common).cloned().collect()
}

/// Reasons against comparing these runs, each in a sentence with their names.
pub(super) fn cautions(runs: &[ComparedRun]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    found.extend(differing(runs, "The base models differ", |run| {
        Some(last_part(&run.summary.model).to_owned())
    }));
    // Of other models the files differ, too.
    let is_one_model = found.is_empty();
    found.extend(differing(runs, "The scored splits differ", |run| {
        Some(run.eval.split.clone())
    }));
    let inputs: BTreeSet<&String> = runs.iter().flat_map(|run| run.inputs.keys()).collect();
    for what in inputs
        .into_iter()
        .filter(|what| is_one_model || *what != BASE_FILES)
    {
        found.extend(differing(runs, &format!("The {what} differ"), |run| {
            run.inputs.get(what).cloned()
        }));
    }
    let names: BTreeSet<&String> = runs.iter().flat_map(|run| run.eval.tasks.keys()).collect();
    for name in names {
        found.extend(of_task(runs, name));
    }
    found.extend(twice(runs));
    if common_tasks(runs).is_empty() {
        found.push("No task is in all runs: there are no scores to compare.".into());
    }
    found
}

/// What differs in a task.
fn of_task(runs: &[ComparedRun], name: &str) -> Vec<String> {
    let score = |run: &ComparedRun| run.eval.tasks.get(name).cloned();
    let without: Vec<&ComparedRun> = runs.iter().filter(|run| score(run).is_none()).collect();
    if !without.is_empty() {
        let without = listed(without.iter().map(|run| &run.name[..]));
        return vec![format!(
            "Task {name} is left out: {without} did not score it."
        )];
    }
    let sizes = |run: &ComparedRun| run.summary.records.get(name).copied();
    let scored = format!("The scored records of task {name} differ in number");
    let trained = format!("The training records of task {name} differ in number");
    [
        differing(
            runs,
            &format!("Task {name} is left out, as its metrics differ"),
            |run| Some(score(run)?.metric),
        ),
        differing(runs, &scored, |run| Some(thousands(score(run)?.n))),
        differing(runs, &trained, |run| Some(thousands(sizes(run)?.train))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A sentence with the values and the runs of each, if there are several values.
fn differing(
    runs: &[ComparedRun],
    what: &str,
    value: impl Fn(&ComparedRun) -> Option<String>,
) -> Option<String> {
    let mut by_value: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for run in runs {
        if let Some(value) = value(run) {
            by_value.entry(value).or_default().push(&run.name);
        }
    }
    let part = |(value, names): (&String, &Vec<&str>)| {
        format!("{value} in {}", listed(names.iter().copied()))
    };
    let parts: Vec<String> = by_value.iter().map(part).collect();
    (parts.len() > 1).then(|| format!("{what}: {}.", parts.join("; ")))
}

/// Runs of one recipe with the same seed, which are no independent ones.
fn twice(runs: &[ComparedRun]) -> Option<String> {
    let mut by_seed: BTreeMap<(&str, u64), Vec<&str>> = BTreeMap::new();
    for run in runs {
        let key = (&run.recipe[..], run.summary.seed);
        by_seed.entry(key).or_default().push(&run.name);
    }
    let same: Vec<String> = by_seed
        .values()
        .filter(|names| names.len() > 1)
        .map(|names| listed(names.iter().copied()))
        .collect();
    (!same.is_empty()).then(|| {
        format!(
            "The same recipe with the same seed, so deviations over seeds are too small: {}.",
            same.join("; ")
        )
    })
}

/// Names with commas, the rest counted.
fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let rest = names.len().saturating_sub(NAMED);
    let named: Vec<&str> = names.take(NAMED).collect();
    match rest {
        0 => named.join(", "),
        rest => format!("{} and {rest} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn texts(change: impl Fn(&mut ComparedRun)) -> Vec<String> {
        let mut runs = sample::runs();
        change(&mut runs[1]);
        cautions(&runs)
    }

    #[test]
    fn runs_of_one_comparison_need_no_caution() {
        assert_eq!(cautions(&sample::runs()), [""; 0]);
        assert_eq!(common_tasks(&sample::runs()).len(), 4);
    }

    #[test]
    fn what_differs_is_said_with_names() {
        let found = texts(|run| run.summary.model = "other".into());
        assert_eq!(
            found,
            [
                "The base models differ: all-MiniLM-L6-v2 in lora-seed0, samora-seed0, samora-seed1, \
              mosld-seed0 and 1 more; other in lora-seed1."
            ]
        );
        let files = |run: &mut ComparedRun| {
            let name = "files of task sms_spam".to_owned();
            run.inputs.insert(name, run.summary.seed.to_string());
        };
        let mut runs = sample::runs();
        runs.iter_mut().for_each(files);
        let found = cautions(&runs);
        assert!(
            found[0].starts_with("The files of task sms_spam differ: 0 in lora-seed0"),
            "{found:?}"
        );
        let found = texts(|run| run.eval.split = "validation".into());
        assert!(
            found[0].starts_with("The scored splits differ: test in"),
            "{found:?}"
        );
        let found = texts(|run| run.eval.tasks.get_mut("sms_spam").unwrap().n = 5);
        assert!(found[0].contains("task sms_spam differ in number: 5 in lora-seed1; 557 in"));
        let found = texts(|run| run.summary.records.get_mut("sms_spam").unwrap().train = 5);
        assert!(
            found[0].starts_with("The training records of task sms_spam"),
            "{found:?}"
        );
        let found = texts(|run| run.summary.seed = 0);
        assert!(
            found[0].ends_with("too small: lora-seed0, lora-seed1."),
            "{found:?}"
        );
    }

    #[test]
    fn tasks_that_not_all_have_are_left_out_by_name() {
        let mut runs = sample::runs();
        runs[0].eval.tasks.remove("sms_spam");
        runs[1].eval.tasks.get_mut("banking77").unwrap().metric = "mcc".into();
        assert_eq!(common_tasks(&runs), ["clinc_domain", "stackoverflow"]);
        let found = cautions(&runs);
        assert_eq!(
            found[1],
            "Task sms_spam is left out: lora-seed0 did not score it."
        );
        assert!(
            found[0].contains("its metrics differ: accuracy in lora-seed0"),
            "{found:?}"
        );
        runs[0].eval.tasks.clear();
        assert!(
            cautions(&runs)
                .last()
                .unwrap()
                .starts_with("No task is in all")
        );
    }
}
