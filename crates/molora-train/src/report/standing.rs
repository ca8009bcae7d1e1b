//! Where recipes stand beside each other: scores by task, and by run.

use minijinja::{Value, context};

use super::chart::bounds;
use super::comparison::{ComparedRun, Group};
use super::format::percent;
use super::statistics::Spread;

/// The mean of the common tasks' scores.
pub(super) fn mean_score(run: &ComparedRun, tasks: &[String]) -> f64 {
    let values = tasks.iter().map(|task| run.eval.tasks[task].value);
    values.sum::<f64>() / tasks.len().max(1) as f64
}

/// `93.5 +- 0.4`, or `93.5` with one seed.
pub(crate) fn spread_text(spread: &Spread) -> String {
    match spread.standard_deviation {
        Some(deviation) => format!("{} +- {}", percent(spread.mean), percent(deviation)),
        None => percent(spread.mean),
    }
}

/// Mean and deviation of each task by recipe, and what the base model scored where that is known.
pub(super) fn score_values(runs: &[ComparedRun], groups: &[Group<'_>], tasks: &[String]) -> Value {
    let base = |task: &String| -> Option<Spread> {
        let beside = |run: &ComparedRun| run.base.as_ref()?.scores.beside(&run.eval, task);
        base_spread(runs.iter().filter_map(beside).collect())
    };
    let bases: Vec<Option<Spread>> = tasks.iter().map(base).collect();
    let has_base = bases.iter().any(Option::is_some);
    let base_cell = |text: String| has_base.then(|| context! { text => text, is_best => false });
    let row = |first: [&str; 2], base: String, all: Vec<Spread>| {
        let most = all
            .iter()
            .map(|spread| spread.mean)
            .fold(f64::NEG_INFINITY, f64::max);
        let is_clear = all.iter().any(|spread| spread.mean < most);
        let cell = |spread: &Spread| {
            context! { text => spread_text(spread), is_best => is_clear && spread.mean == most }
        };
        let cells = base_cell(base).into_iter().chain(all.iter().map(cell));
        context! { first => first.map(str::to_owned), cells => cells.collect::<Vec<_>>() }
    };
    let of_task = |(task, base): (&String, &Option<Spread>)| {
        let all = groups
            .iter()
            .map(|group| group.spread(|run| run.eval.tasks[task].value));
        let base = base.as_ref().map_or("-".into(), spread_text);
        row(
            [task, &runs[0].eval.tasks[task].metric],
            base,
            all.collect(),
        )
    };
    let mut rows: Vec<Value> = tasks.iter().zip(&bases).map(of_task).collect();
    let all = groups
        .iter()
        .map(|group| group.spread(|run| mean_score(run, tasks)));
    let base: Option<f64> = bases.iter().map(|base| Some(base.as_ref()?.mean)).sum();
    let base = base.map_or("-".into(), |sum| percent(sum / tasks.len() as f64));
    rows.push(row(["mean", "score"], base, all.collect()));
    let head = ["task", "metric"]
        .into_iter()
        .chain(has_base.then_some("base"));
    let head = head.chain(groups.iter().map(|group| group.name));
    let head: Vec<String> = head.map(str::to_owned).collect();
    let split = &runs[0].eval.split;
    context! { head => head, rows => rows, has_base => has_base, split => split }
}

/// The base model's score, which is one number unless the runs measured it differently; `None` where
/// none did.
pub(crate) fn base_spread(values: Vec<f64>) -> Option<Spread> {
    let is_one = values
        .windows(2)
        .all(|pair| (pair[0] - pair[1]).abs() < 1e-12);
    let values = if is_one {
        values.into_iter().take(1).collect()
    } else {
        values
    };
    (!values.is_empty()).then(|| Spread::of(values))
}

/// The mean score of each run as a point on one scale.
pub(super) fn seed_values(groups: &[Group<'_>], tasks: &[String]) -> Value {
    let all = groups.iter().flat_map(|group| &group.runs);
    let all = all.map(|run| mean_score(run, tasks));
    let (low, high) = bounds(all);
    let place = |score: f64| match high > low {
        true => (score - low) / (high - low),
        false => 0.5,
    };
    let row = |group: &Group<'_>| {
        let dot = |run: &&ComparedRun| {
            let score = mean_score(run, tasks);
            let text = format!("{}: {}", run.summary.seed, percent(score));
            context! { place => percent(place(score)), text => text, name => &run.name }
        };
        let dots: Vec<Value> = group.runs.iter().map(dot).collect();
        context! { name => group.name, class => group.ink.class, dots => dots }
    };
    context! {
        low => percent(low),
        high => percent(high),
        rows => groups.iter().map(row).collect::<Vec<_>>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_model_has_one_score_unless_runs_disagree() {
        let text = |values| base_spread(values).as_ref().map(spread_text);
        assert_eq!(text(vec![0.5, 0.5]).as_deref(), Some("50.0"));
        assert_eq!(text(vec![0.4, 0.6]).as_deref(), Some("50.0 +- 14.1"));
        assert_eq!(text(Vec::new()), None);
    }
}
