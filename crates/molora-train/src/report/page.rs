//! The report of a run as one HTML page: no script, nothing loaded from elsewhere. `page.html` is its
//! template; what stands in it is put together here.

use std::collections::BTreeSet;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value, context};

use super::chart::{Series, loss_chart, small_chart, small_validation_chart, validation_chart};
use super::format::{duration, mebibytes, percent, share, thousands};
use super::routing::routing_values;
use super::schema::{
    EvalReport, KeptState, Record, RoutingReport, RunSummary, StepRecord, TaskScore,
    ValidationRecord,
};
use super::table::{parameter_rows, task_header, task_rows};

/// Renders a self-contained page: run facts, scores, loss curves, auxiliary terms and routing.
///
/// All text of the arguments is escaped. Sections without data (no steps, no auxiliary terms, no
/// routed site) are left out.
///
/// # Panics
/// Never: the template is a part of this crate, and its values are put together here.
pub fn render(
    summary: &RunSummary,
    eval: &EvalReport,
    routing: Option<&RoutingReport>,
    records: &[Record],
) -> String {
    let (steps, scored) = taken_apart(records);
    let (steps, scored) = (&steps[..], &scored[..]);
    let mut pages = Environment::new();
    pages.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build();
    pages.set_syntax(syntax.expect("the usual delimiters"));
    let groups = match steps {
        [] => Vec::new(),
        steps => vec![
            group("Loss of each task (nats)", &task_series(steps)),
            group("Auxiliary terms, unweighted", &term_series(steps)),
            group("Optimisation", &optimisation_series(steps)),
        ],
    };
    let values = context! {
        style => safe(include_str!("style.css")),
        recipe => &summary.recipe,
        model => &summary.model,
        citation => &summary.citation,
        facts => facts(summary),
        tiles => tiles(summary, eval),
        split => &eval.split,
        scores => context! {
            head => task_header(eval),
            rows => task_rows(eval),
            bars => eval.tasks.values().map(bar).collect::<Vec<_>>(),
        },
        loss => (!steps.is_empty()).then(|| safe(&loss_chart(steps))),
        validation => (!scored.is_empty()).then(|| validation(summary, scored)),
        routing => routing.filter(|routing| !routing.sites.is_empty()).map(routing_values),
        groups => groups.into_iter().flatten().collect::<Vec<_>>(),
        parameters => parameter_rows(summary),
    };
    pages
        .add_template("page.html", include_str!("page.html"))
        .and_then(|()| pages.get_template("page.html")?.render(values))
        .expect("the template fits its values")
}

/// The steps, and the scores of the validation split.
fn taken_apart(records: &[Record]) -> (Vec<StepRecord>, Vec<ValidationRecord>) {
    let (mut steps, mut scored) = (Vec::new(), Vec::new());
    for record in records {
        match record {
            Record::Step(record) => steps.push(record.clone()),
            Record::Validation(record) => scored.push(record.clone()),
        }
    }
    (steps, scored)
}

/// The curves of the validation split, and the states that were taken.
fn validation(summary: &RunSummary, scored: &[ValidationRecord]) -> Value {
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
    let charts: Vec<Value> = small
        .map(|series| {
            context! { name => &series.name, svg => safe(&small_validation_chart(&series)) }
        })
        .collect();
    let mean = Series::scored("mean score", scored, score);
    context! {
        chart => safe(&validation_chart(&mean)),
        charts => charts,
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

/// Text that is HTML, or CSS, already.
fn safe(text: &str) -> Value {
    Value::from_safe_string(text.into())
}

fn facts(summary: &RunSummary) -> Vec<String> {
    let cut = |(task, count): (&String, &usize)| {
        format!("{} texts of {task} were cut", thousands(*count))
    };
    let cut = summary.cut_texts.iter().map(cut);
    let commit = summary.git_commit.as_ref();
    let facts = [
        Some(format!("device {}", summary.device)),
        Some(format!("seed {}", summary.seed)),
        Some(format!("{} steps", thousands(summary.steps))),
        Some(format!("molora {}", summary.molora_version)),
        commit.map(|commit| format!("commit {commit}")),
    ];
    facts.into_iter().flatten().chain(cut).collect()
}

/// The figures one looks for first, as large numbers, each with a note.
fn tiles(summary: &RunSummary, eval: &EvalReport) -> [[String; 2]; 5] {
    let counts = &summary.parameters;
    let tokens_per_second = summary.tokens_per_second.round().max(0.0) as usize;
    let tiles = [
        (
            percent(eval.mean) + " %",
            format!("mean score, {} tasks", eval.tasks.len()),
        ),
        (
            thousands(counts.trainable()),
            format!(
                "trainable parameters, {} of base",
                share(counts.trainable(), counts.base)
            ),
        ),
        (duration(summary.train_seconds), "training time".to_owned()),
        (
            thousands(tokens_per_second),
            format!("tokens/s, {} % padding", percent(summary.padding_share)),
        ),
        (
            mebibytes(summary.peak_memory_bytes),
            "peak memory".to_owned(),
        ),
    ];
    tiles.map(|(value, note)| [value, note])
}

/// Score and what the most frequent label would score, in per cent.
fn bar(score: &TaskScore) -> [String; 2] {
    [score.value, score.majority].map(|part| percent(part.clamp(0.0, 1.0)))
}

/// A grid of small charts, or nothing where there is no series.
fn group(title: &str, series: &[Series]) -> Option<Value> {
    let chart = |series: &Series| {
        context! { name => &series.name, svg => safe(&small_chart(series)) }
    };
    let charts: Vec<Value> = series.iter().map(chart).collect();
    (!charts.is_empty()).then(|| context! { title => title, charts => charts })
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

    #[test]
    fn the_page_is_whole_and_loads_nothing() {
        let routing = sample::routing(2, 3);
        let page = render(
            &sample::summary(),
            &sample::eval(),
            Some(&routing),
            &sample::records(50),
        );
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        for outside in [
            "<script", "<link", "<img", "url(", "@import", "href=", "src=",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        for tag in [
            "section", "figure", "table", "svg", "div", "p", "span", "ul", "li",
        ] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert!(page.is_ascii());
    }

    #[test]
    fn text_is_escaped() {
        let page = render(&sample::summary(), &sample::eval(), None, &[]);
        assert!(page.contains("Authors &lt;A &amp; B&gt;") && !page.contains("<A & B>"));
    }

    #[test]
    fn sections_without_data_are_absent() {
        let plain = |mut step: StepRecord| {
            step.terms.clear();
            Record::Step(step)
        };
        let steps: Vec<Record> = sample::steps(20).into_iter().map(plain).collect();
        let page = render(&sample::summary(), &sample::eval(), None, &steps);
        assert!(!page.contains("<h2>Validation"));
        assert!(!page.contains("<h2>Auxiliary") && !page.contains("<h2>Routing"));
        assert!(page.contains("<h2>Loss of each task"));
        let page = render(&sample::summary(), &sample::eval(), None, &[]);
        assert!(!page.contains("<h2>Training loss") && page.contains("<h2>Scores on the test"));
    }

    /// `MOLORA_SAMPLE_REPORT=FILE cargo test sample_page` writes the page for a look at it.
    #[test]
    fn sample_page_stays_small() {
        let routing = sample::routing(6, 3);
        let page = render(
            &sample::summary(),
            &sample::eval(),
            Some(&routing),
            &sample::records(600),
        );
        assert!(page.len() < 300_000, "{} bytes", page.len());
        if let Some(path) = std::env::var_os("MOLORA_SAMPLE_REPORT") {
            std::fs::write(path, page).unwrap();
        }
    }
}
