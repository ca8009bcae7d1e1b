//! How a run trained, as charts of its page.

use std::collections::BTreeSet;

use minijinja::{Value, context};

use super::acts::GuardRecord;
use super::chart::{Curve, large_chart, small_chart, small_validation_chart};
use super::format::{duration, thousands};
use super::palette::{COLORS, RAW, SECOND, SMOOTH, color};
use super::schema::{KeptState, Record, RunSummary, StepRecord, ValidationRecord};
use super::series::Series;

/// The steps, the scores of the validation split, and what a guard did, as lines.
pub(super) fn taken_apart(
    records: &[Record],
) -> (Vec<StepRecord>, Vec<ValidationRecord>, Vec<String>) {
    let (mut steps, mut scored, mut acts) = (Vec::new(), Vec::new(), Vec::new());
    for record in records {
        match record {
            Record::Step(record) => steps.push(record.clone()),
            Record::Validation(record) => scored.push(record.clone()),
            Record::Guard(record) => acts.push(GuardRecord::text(record)),
        }
    }
    (steps, scored, acts)
}

/// The smoothed loss of each task, if there are several and a color for each; else that of all.
pub(super) fn loss_values(steps: &[StepRecord]) -> Option<Value> {
    let tasks = task_series(steps);
    let curves = match tasks.len() {
        2..=COLORS => tasks
            .iter()
            .enumerate()
            .map(|(number, task)| Curve::smoothed(&task.name, task, color(number)))
            .collect(),
        _ => loss_curves(steps),
    };
    (!steps.is_empty()).then(|| large_chart("loss (nats)", &curves))
}

/// The total loss of each step, smoothed, and the smoothed task loss where it differs.
fn loss_curves(steps: &[StepRecord]) -> Vec<Curve> {
    let total = Series::of("total", steps, |step| Some(step.loss));
    let task = Series::of("task", steps, |step| Some(step.task_loss));
    let mut curves = vec![Curve::raw("total, each step", &total, RAW)];
    if total.points != task.points {
        curves.push(Curve::smoothed("tasks alone, smoothed", &task, SECOND));
    }
    curves.push(Curve::smoothed("total, smoothed", &total, SMOOTH));
    curves
}

/// Grids of small charts; those without a series are left out.
pub(super) fn group_values(steps: &[StepRecord]) -> Vec<Value> {
    if steps.is_empty() {
        return Vec::new();
    }
    let group = |title: &str, series: Vec<Series>| {
        let charts: Vec<Value> = series.iter().map(small_chart).collect();
        (!charts.is_empty()).then(|| context! { title => title, charts => charts })
    };
    let groups = [
        group("Loss of each task (nats)", task_series(steps)),
        group("Auxiliary terms, unweighted", term_series(steps)),
        group("Optimisation", optimisation_series(steps)),
    ];
    groups.into_iter().flatten().collect()
}

/// The curves of the validation split, and the states that were taken.
pub(super) fn validation_values(summary: &RunSummary, scored: &[ValidationRecord]) -> Value {
    let score = |record: &ValidationRecord| Some(100.0 * record.validation.mean_score);
    let loss = |record: &ValidationRecord| Some(record.validation.loss);
    let task = |name: &String| {
        let value = |record: &ValidationRecord| {
            let task = record.validation.tasks.get(name);
            task.map(|task| 100.0 * task.value)
        };
        Series::scored(name, scored, value)
    };
    let names: BTreeSet<&String> = scored
        .iter()
        .flat_map(|record| record.validation.tasks.keys())
        .collect();
    let small = names.into_iter().map(task);
    let small = std::iter::once(Series::scored("mean loss", scored, loss)).chain(small);
    let charts = small.map(|series| small_validation_chart(&series));
    let mean = Series::scored("mean score", scored, score);
    context! {
        chart => large_chart("mean score (%)", &[Curve::raw("mean score", &mean, SMOOTH)]),
        charts => charts.collect::<Vec<_>>(),
        states => summary.states.iter().map(state).collect::<Vec<_>>(),
        seconds => duration(summary.validation_seconds),
    }
}

/// Stage and expert, the step whose state was taken, the last one, and its value.
fn state(state: &KeptState) -> [String; 4] {
    let expert = state.expert.as_ref();
    let expert = expert.map(|task| format!(", expert of {task}"));
    [
        format!("{}{}", state.stage, expert.unwrap_or_default()),
        thousands(state.step),
        thousands(state.last_step),
        state.metric.text(state.value),
    ]
}

fn task_series(steps: &[StepRecord]) -> Vec<Series> {
    let names: BTreeSet<&String> = steps.iter().flat_map(|step| step.tasks.keys()).collect();
    let series = |name: &String| Series::of(name, steps, |step| step.tasks.get(name).copied());
    names.into_iter().map(series).collect()
}

fn term_series(steps: &[StepRecord]) -> Vec<Series> {
    let names: BTreeSet<&String> = steps.iter().flat_map(|step| step.terms.keys()).collect();
    let series = |name: &String| Series::of(name, steps, |step| step.terms.get(name).copied());
    names.into_iter().map(series).collect()
}

fn optimisation_series(steps: &[StepRecord]) -> Vec<Series> {
    let speed = |step: &StepRecord| (step.seconds > 0.0).then(|| step.tokens as f64 / step.seconds);
    vec![
        Series::of("total loss (nats)", steps, |step| Some(step.loss)),
        Series::of("learning rate", steps, |step| Some(step.learning_rate)),
        Series::of("gradient norm before clipping", steps, |step| {
            Some(step.gradient_norm)
        }),
        Series::of("tokens/s", steps, speed),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn labels(steps: &[StepRecord]) -> String {
        let chart = loss_values(steps).expect("steps");
        chart.get_attr("keys").expect("a chart").to_string()
    }

    #[test]
    fn every_number_of_steps_can_be_drawn() {
        assert!(loss_values(&[]).is_none());
        for count in [1, 2, 40] {
            labels(&sample::steps(count));
        }
    }

    #[test]
    fn each_task_has_a_colour_while_there_are_colours() {
        let mut steps = sample::steps(30);
        let found = labels(&steps);
        assert!(
            found.contains("['k3', 'stackoverflow']") && !found.contains("total"),
            "{found}"
        );
        steps[0].tasks = (0..9).map(|task| (format!("t{task}"), 1.0)).collect();
        assert!(labels(&steps).contains("total, smoothed"));
    }

    #[test]
    fn of_one_task_the_total_is_drawn_and_the_task_where_it_differs() {
        let mut steps = sample::steps(30);
        for step in &mut steps {
            step.tasks = [("one".to_owned(), step.task_loss)].into();
        }
        assert!(labels(&steps).contains("tasks alone"));
        steps.iter_mut().for_each(|step| step.loss = step.task_loss);
        assert!(!labels(&steps).contains("tasks alone"));
    }
}
