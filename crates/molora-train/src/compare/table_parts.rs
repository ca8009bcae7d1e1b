//! The tables that not every comparison has: tuned settings, and unseen tasks.

use super::setting::setting_text;
use super::table::Cells;
use super::tune::{Trial, Tuned};
use super::unseen::{UnseenComparison, UnseenResult};
use crate::report::Gain;
use crate::report::format::{duration, percent, points, thousands};
use crate::report::standing::spread_text as spread;

/// The value of a trial by which it was chosen.
fn trial_value(tuned: &Tuned, trial: &Trial) -> String {
    let value = trial.value.map(|value| tuned.metric.text(value));
    value.unwrap_or_else(|| "diverged".into())
}

pub(super) fn choices(all: &[Tuned]) -> Cells {
    let header = ["recipe", "chosen", "validation", "trials", "time", "note"];
    let row = |tuned: &Tuned| {
        let best = &tuned.trials[tuned.best];
        let seconds = tuned.trials.iter().map(|trial| trial.seconds).sum();
        let note = match &tuned.at_end[..] {
            [] => String::new(),
            keys => format!("{}: at an end of the list", keys.join(", ")),
        };
        vec![
            tuned.recipe.clone(),
            setting_text(&best.setting),
            trial_value(tuned, best),
            tuned.trials.len().to_string(),
            duration(seconds),
            note,
        ]
    };
    let rows = all.iter().map(row).collect();
    (header.map(str::to_owned).into(), rows)
}

pub(super) fn trials(all: &[Tuned]) -> Cells {
    let header = ["recipe", "tried", "validation", "steps"];
    let rows = all.iter().flat_map(|tuned| {
        let row = |trial: &Trial| {
            vec![
                tuned.recipe.clone(),
                setting_text(&trial.setting),
                trial_value(tuned, trial),
                thousands(trial.steps),
            ]
        };
        tuned.trials.iter().map(row)
    });
    let rows = rows.collect();
    (header.map(str::to_owned).into(), rows)
}

pub(super) fn unseen_scores(unseen: &UnseenComparison) -> Cells {
    let recipes = &unseen.recipes;
    let row = |first: [&str; 3], cell: &dyn Fn(&UnseenResult) -> String| {
        let first = first.map(str::to_owned).into_iter();
        first.chain(recipes.iter().map(cell)).collect::<Vec<_>>()
    };
    let task = |name: &String| {
        let base = &unseen.base[name];
        let first = [name, &base.metric, &spread(&base.score)];
        row(first.map(|text| &text[..]), &|r| {
            spread(&r.tasks[name].score)
        })
    };
    let mut rows: Vec<Vec<String>> = unseen.tasks.iter().map(task).collect();
    let base = percent(unseen.base_accuracy);
    rows.push(row(["mean", "accuracy", &base], &|r| {
        spread(&r.mean_accuracy)
    }));
    (
        row(["unseen task", "metric", "base"], &|r| r.name.clone()),
        rows,
    )
}

pub(super) fn unseen_gains(unseen: &UnseenComparison) -> Cells {
    let header = [
        "recipe",
        "gain",
        "interval",
        "verdict",
        "over base",
        "interval",
        "verdict",
    ];
    let cells = |gain: Option<&Gain>| match gain {
        None => ["-", "-", "reference"].map(str::to_owned),
        Some(gain) => [
            points(gain.mean_accuracy),
            format!("{} to {}", points(gain.low), points(gain.high)),
            gain.verdict.text().to_owned(),
        ],
    };
    let row = |recipe: &UnseenResult| {
        let gains = [cells(recipe.gain.as_ref()), cells(Some(&recipe.over_base))];
        let name = std::iter::once(recipe.name.clone());
        name.chain(gains.into_iter().flatten()).collect()
    };
    let rows = unseen.recipes.iter().map(row).collect();
    (header.map(str::to_owned).into(), rows)
}
