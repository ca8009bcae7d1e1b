//! The report of a run as one HTML page: no script, nothing loaded from elsewhere.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::chart::{Series, loss_chart, small_chart};
use super::format::{duration, mebibytes, percent, share, thousands};
use super::heatmap::routing_section;
use super::schema::{EvalReport, RoutingReport, RunSummary, StepRecord, TaskScore};
use super::table::{parameter_rows, task_header, task_rows};

/// Renders a self-contained page: run facts, scores, loss curves, auxiliary terms and routing.
///
/// All text of the arguments is escaped. Sections without data (no steps, no auxiliary terms, no
/// routed site) are left out.
pub fn render(
    summary: &RunSummary,
    eval: &EvalReport,
    routing: Option<&RoutingReport>,
    steps: &[StepRecord],
) -> String {
    let mut body = header(summary) + &tiles(summary, eval);
    body += &section(
        &format!("Scores on the {} split", eval.split),
        &scores(eval),
    );
    if !steps.is_empty() {
        body += &section("Training loss", &chart_figure(&loss_chart(steps)));
    }
    if let Some(routing) = routing.filter(|routing| !routing.sites.is_empty()) {
        body += &section("Routing", &routing_section(routing));
    }
    if !steps.is_empty() {
        body += &small_charts("Loss of each task (nats)", &task_series(steps));
        body += &small_charts("Auxiliary terms, unweighted", &term_series(steps));
        body += &small_charts("Optimisation", &optimisation_series(steps));
    }
    body += &section("Parameters", &parameters(summary));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{} on {} - molora</title>\n<style>\n{}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(&summary.recipe),
        escape(&summary.model),
        include_str!("style.css")
    )
}

/// Escapes text for HTML content and quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn section(title: &str, content: &str) -> String {
    format!(
        "<section>\n<h2>{}</h2>\n{content}\n</section>\n",
        escape(title)
    )
}

fn header(summary: &RunSummary) -> String {
    let commit = summary
        .git_commit
        .as_deref()
        .map(|commit| format!("commit {commit}"));
    let facts = [
        Some(format!("device {}", summary.device)),
        Some(format!("seed {}", summary.seed)),
        Some(format!("{} steps", thousands(summary.steps))),
        Some(format!("molora {}", summary.molora_version)),
        commit,
    ];
    let facts = facts
        .iter()
        .flatten()
        .map(|fact| format!("<li>{}</li>", escape(fact)));
    format!(
        "<header>\n<h1>{} <small>on {}</small></h1>\n<p>{}</p>\n<ul>{}</ul>\n</header>\n",
        escape(&summary.recipe),
        escape(&summary.model),
        escape(&summary.citation),
        facts.collect::<String>()
    )
}

/// The figures one looks for first, as large numbers.
fn tiles(summary: &RunSummary, eval: &EvalReport) -> String {
    let counts = &summary.parameters;
    let tiles = [
        (
            percent(eval.mean) + " %",
            format!("mean score, {} tasks", eval.tasks.len()),
        ),
        (thousands(counts.trainable()), trainable_note(summary)),
        (duration(summary.train_seconds), "training time".to_owned()),
        (
            thousands(summary.tokens_per_second.round().max(0.0) as usize),
            padding_note(summary),
        ),
        (
            mebibytes(summary.peak_memory_bytes),
            "peak memory".to_owned(),
        ),
    ];
    let tile = |(value, note): &(String, String)| {
        format!(
            "<div><strong>{}</strong><span>{}</span></div>",
            escape(value),
            escape(note)
        )
    };
    format!(
        "<div class=\"tiles\">{}</div>\n",
        tiles.iter().map(tile).collect::<String>()
    )
}

fn trainable_note(summary: &RunSummary) -> String {
    let counts = &summary.parameters;
    format!(
        "trainable parameters, {} of base",
        share(counts.trainable(), counts.base)
    )
}

fn padding_note(summary: &RunSummary) -> String {
    format!("tokens/s, {} % padding", percent(summary.padding_share))
}

/// The table of scores with a bar each; a mark shows what the most frequent label would score.
fn scores(eval: &EvalReport) -> String {
    let head = task_header(eval)
        .into_iter()
        .map(|name| format!("<th>{}</th>", escape(&name)));
    let mut html = format!("<table><tr>{}<th></th></tr>", head.collect::<String>());
    let bars = eval.tasks.values().map(bar).chain([String::new()]);
    for (row, bar) in task_rows(eval).iter().zip(bars) {
        let cells = row.iter().map(|cell| format!("<td>{}</td>", escape(cell)));
        let _ = write!(html, "<tr>{}<td>{bar}</td></tr>", cells.collect::<String>());
    }
    html + "</table>\n<p class=\"legend\"><span class=\"bar\"><i style=\"width:70%\"></i>\
            <b style=\"left:35%\"></b></span> bar: score; mark: score of always the most frequent label</p>"
}

fn bar(score: &TaskScore) -> String {
    let [value, majority] = [score.value, score.majority].map(|part| part.clamp(0.0, 1.0));
    format!(
        "<span class=\"bar\"><i style=\"width:{}%\"></i><b style=\"left:{}%\"></b></span>",
        percent(value),
        percent(majority)
    )
}

fn parameters(summary: &RunSummary) -> String {
    let head = "<table class=\"narrow\"><tr><th>kind</th><th>count</th><th>of base</th></tr>";
    let row = |cells: &[String; 3]| {
        let cells = cells
            .iter()
            .map(|cell| format!("<td>{}</td>", escape(cell)));
        format!("<tr>{}</tr>", cells.collect::<String>())
    };
    head.to_owned() + &parameter_rows(summary).iter().map(row).collect::<String>() + "</table>"
}

fn chart_figure(svg: &str) -> String {
    format!("<figure class=\"chart\">{svg}</figure>")
}

/// A grid of small charts, or nothing where there is no series.
fn small_charts(title: &str, series: &[Series]) -> String {
    if series.is_empty() {
        return String::new();
    }
    let chart = |series: &Series| {
        let caption = escape(&series.name);
        format!(
            "<figure><figcaption>{caption}</figcaption>{}</figure>",
            small_chart(series)
        )
    };
    let charts = series.iter().map(chart).collect::<String>();
    let legend = "<p class=\"legend\"><span class=\"raw\"></span> each step \
                  <span class=\"smooth\"></span> smoothed; horizontal axis: step</p>";
    section(
        title,
        &format!("{legend}<div class=\"charts\">{charts}</div>"),
    )
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
            &sample::steps(50),
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
        assert_eq!(escape("\"x'"), "&quot;x&#39;");
    }

    #[test]
    fn sections_without_data_are_absent() {
        let mut steps = sample::steps(20);
        steps.iter_mut().for_each(|step| step.terms.clear());
        let page = render(&sample::summary(), &sample::eval(), None, &steps);
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
            &sample::steps(600),
        );
        assert!(page.len() < 300_000, "{} bytes", page.len());
        if let Some(path) = std::env::var_os("MOLORA_SAMPLE_REPORT") {
            std::fs::write(path, page).unwrap();
        }
    }
}
