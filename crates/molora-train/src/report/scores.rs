//! The scores of a run as tables of its page.

use std::collections::BTreeSet;

use minijinja::{Value, context};

use super::details::{BaseReport, BaseWay, TestScore};
use super::format::percent;
use super::schema::{EvalReport, TaskScore};
use super::table::{task_header, task_rows};

/// The table of scores with a bar for each task, and that of the other measures.
pub(super) fn score_values(eval: &EvalReport, base: Option<&BaseReport>) -> Value {
    // Another split says nothing about this one.
    let base = base.filter(|base| base.scores.split == eval.split);
    let scores = base.map(|base| &base.scores);
    // One for each row of the table.
    let bars = |(task, score): (&String, &TaskScore)| {
        let of_base = scores.and_then(|base| base.beside(eval, task)).map(width);
        let whole = context! {
            score => width(score.value),
            majority => width(score.majority),
            base => of_base,
        };
        let part = |test: &TestScore| {
            context! {
                score => width(test.value),
                majority => width(0.0),
                base => None::<String>,
            }
        };
        let tests = score.tests.values().map(part);
        std::iter::once(whole).chain(tests).collect::<Vec<_>>()
    };
    context! {
        head => task_header(eval, scores),
        rows => task_rows(eval, scores),
        bars => eval.tasks.iter().flat_map(bars).collect::<Vec<_>>(),
        base => base.map(way),
        measures => measures(eval, scores),
    }
}

/// A fraction as the length of a bar, in per cent.
fn width(value: f64) -> String {
    percent(value.clamp(0.0, 1.0))
}

/// How the base model answered, in a sentence.
fn way(base: &BaseReport) -> String {
    let of = |way: BaseWay| -> Vec<&str> {
        let tasks = base.ways.iter().filter(|(_, found)| **found == way);
        tasks.map(|(task, _)| &task[..]).collect()
    };
    let head = "the base model without adapters under a head alone: a linear probe of its pooled \
                states, fitted on the training split";
    let plain = "the base model as it was downloaded, which writes its answers";
    match (&of(BaseWay::Head)[..], &of(BaseWay::Plain)[..]) {
        (_, []) => format!("base: {head}."),
        ([], _) => format!("base: {plain}."),
        (heads, plains) => format!(
            "base: of {}, {head}; of {}, {plain}.",
            heads.join(", "),
            plains.join(", ")
        ),
    }
}

/// Losses and whatever else was measured of the same answers; nothing where there is none.
fn measures(eval: &EvalReport, base: Option<&EvalReport>) -> Option<Value> {
    let rows: Vec<Vec<String>> = eval
        .tasks
        .iter()
        .flat_map(|(task, score)| {
            let of_base = base.and_then(|base| base.tasks.get(task));
            let of_base = of_base.filter(|found| found.n == score.n);
            names(score).into_iter().filter_map(move |name| {
                let text = |score| measure(score, name).map(number);
                let mut row = vec![task.clone(), name.replace('_', " "), text(score)?];
                row.extend(base.map(|_| of_base.and_then(text).unwrap_or_else(|| "-".into())));
                Some(row)
            })
        })
        .collect();
    let mut head = vec!["task", "measure", "run"];
    head.extend(base.map(|_| "base"));
    (!rows.is_empty()).then(|| context! { head => head, rows => rows })
}

/// The measures of a task beside its score; a loss with a name of its own is listed once.
fn names(score: &TaskScore) -> BTreeSet<&str> {
    let also = score.also.keys().map(String::as_str);
    let is_told = |loss: f64| score.also.values().any(|value| *value == loss);
    let loss = score.loss.filter(|loss| !is_told(*loss)).map(|_| "loss");
    also.chain(loss).collect()
}

fn measure(score: &TaskScore, name: &str) -> Option<f64> {
    match name {
        "loss" => score.loss,
        name => score.also.get(name).copied(),
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e5 => format!("{value:.3e}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn it_is_said_how_the_base_model_answered() {
        let mut base = sample::base();
        assert!(way(&base).ends_with("fitted on the training split."));
        base.ways.insert("sms_spam".into(), BaseWay::Plain);
        let text = way(&base);
        assert!(
            text.contains("of banking77, clinc_domain, stackoverflow, the"),
            "{text}"
        );
        assert!(text.contains("of sms_spam, the base model as it was"));
    }

    #[test]
    fn every_row_of_scores_has_a_bar() {
        let mut eval = sample::eval();
        let score = eval.tasks.get_mut("banking77").expect("a task");
        let test = TestScore {
            value: 0.5,
            accuracy: Some(0.5),
            n: 10,
        };
        score.tests = [("matched".to_owned(), test)].into();
        let values = score_values(&eval, None);
        let length = |name: &str| values.get_attr(name).expect("there").len();
        // The row of means has none.
        assert_eq!(length("rows"), length("bars").map(|bars| bars + 1));
        assert_eq!(length("bars"), Some(eval.tasks.len() + 1));
    }

    #[test]
    fn a_measure_stands_once_with_that_of_the_base() {
        let (mut eval, base) = (sample::eval(), sample::base());
        let score = eval.tasks.get_mut("sms_spam").unwrap();
        (score.loss, score.also) = (Some(2.0), [("answer_nll".to_owned(), 2.0)].into());
        assert_eq!(names(score).into_iter().collect::<Vec<_>>(), ["answer_nll"]);
        let rows = |base| {
            let values = measures(&eval, base).unwrap();
            values.get_attr("rows").unwrap().to_string()
        };
        assert!(rows(None).contains("['sms_spam', 'answer nll', '2.0000']"));
        assert!(rows(Some(&base.scores)).contains("'answer nll', '2.0000', '-']"));
    }
}
