//! The report of a run as one HTML page: no script, nothing loaded from elsewhere. `page.html` is its
//! template; what stands in it is put together here and in a file for each kind of section.

use minijinja::context;

use super::answers::answer_values;
use super::details::{BaseReport, ExampleReport, ExpertReport};
use super::experts::expert_values;
use super::format::{duration, last_part, mebibytes, percent, share, thousands};
use super::routing::routing_values;
use super::schema::{EvalReport, Record, RoutingReport, RunSummary, SplitSizes};
use super::scores::score_values;
use super::table::parameter_rows;
use super::template::page;
use super::training::{group_values, loss_values, taken_apart, validation_values};

/// What the page of a run is made of.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// Facts of the run.
    pub summary: &'a RunSummary,
    /// Its scores.
    pub eval: &'a EvalReport,
    /// How its routers shared the tasks.
    pub routing: Option<&'a RoutingReport>,
    /// Its steps, and its scores of the validation split.
    pub records: &'a [Record],
    /// What the base model alone is worth.
    pub base: Option<&'a BaseReport>,
    /// What it answered to some records.
    pub examples: Option<&'a ExampleReport>,
    /// What its experts do.
    pub experts: Option<&'a ExpertReport>,
    /// Its recipe as TOML; empty where that is unknown.
    pub settings: &'a str,
}

impl<'a> Page<'a> {
    /// A page of a run of which nothing is known but its facts and scores.
    pub fn new(summary: &'a RunSummary, eval: &'a EvalReport) -> Self {
        Self {
            summary,
            eval,
            routing: None,
            records: &[],
            base: None,
            examples: None,
            experts: None,
            settings: "",
        }
    }
}

/// Renders a self-contained page: run facts, scores, loss curves, example answers, experts and routing.
///
/// All text of the argument is escaped. Sections without data (no steps, no auxiliary terms, no
/// routed site) are left out.
///
/// # Panics
/// Never: the templates are a part of this crate, and their values are put together here.
pub fn render(run: &Page<'_>) -> String {
    let Page { summary, eval, .. } = *run;
    let (steps, scored, guard) = taken_apart(run.records);
    let routing = run.routing.filter(|routing| !routing.sites.is_empty());
    let values = context! {
        recipe => &summary.recipe,
        model => last_part(&summary.model),
        citation => &summary.citation,
        facts => facts(summary),
        tiles => tiles(summary, eval),
        split => &eval.split,
        scores => score_values(eval, run.base),
        loss => loss_values(&steps),
        validation => (!scored.is_empty()).then(|| validation_values(summary, &scored)),
        guard => guard,
        answers => run.examples.and_then(answer_values),
        experts => run.experts.and_then(expert_values),
        routing => routing.map(routing_values),
        groups => group_values(&steps),
        parameters => parameter_rows(summary),
        records => record_rows(summary),
        settings => run.settings,
    };
    let title = format!("{} on {}", summary.recipe, last_part(&summary.model));
    page(&title, "page.html", values)
}

fn facts(summary: &RunSummary) -> Vec<String> {
    let cut = |(task, count): (&String, &usize)| {
        format!("{} texts of {task} were cut", thousands(*count))
    };
    let cut = summary.cut_texts.iter().map(cut);
    let weight = |(task, weight): (&String, &f64)| format!("losses of {task} times {weight:.3}");
    let weights = summary.task_weights.iter().map(weight);
    let commit = summary.git_commit.as_ref();
    let facts = [
        Some(format!("device {}", summary.device)),
        Some(format!("seed {}", summary.seed)),
        Some(format!("{} steps", thousands(summary.steps))),
        Some(format!("molora {}", summary.molora_version)),
        commit.map(|commit| format!("commit {commit}")),
    ];
    facts
        .into_iter()
        .flatten()
        .chain(weights)
        .chain(cut)
        .collect()
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

/// Numbers of records of each task, and of all.
fn record_rows(summary: &RunSummary) -> Vec<[String; 4]> {
    let row = |name: &str, sizes: &SplitSizes| {
        let [train, validation, test] = [sizes.train, sizes.validation, sizes.test].map(thousands);
        [name.to_owned(), train, validation, test]
    };
    let sizes = || summary.records.values();
    let all = SplitSizes {
        train: sizes().map(|sizes| sizes.train).sum(),
        validation: sizes().map(|sizes| sizes.validation).sum(),
        test: sizes().map(|sizes| sizes.test).sum(),
    };
    let rows = summary.records.iter().map(|(name, sizes)| row(name, sizes));
    let all = (!summary.records.is_empty()).then(|| row("all", &all));
    rows.chain(all).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    /// A page of a made-up run with everything in it.
    fn full(records: &[Record], routing: &RoutingReport, experts: &ExpertReport) -> String {
        let (summary, eval) = (sample::summary(), sample::eval());
        let (base, examples) = (sample::base(), sample::examples());
        render(&Page {
            summary: &summary,
            eval: &eval,
            routing: Some(routing),
            records,
            base: Some(&base),
            examples: Some(&examples),
            experts: Some(experts),
            settings: "name = \"samora\"\nnote = \"a < b\"\n",
        })
    }

    fn plain(records: &[Record]) -> String {
        let (summary, eval) = (sample::summary(), sample::eval());
        render(&Page {
            records,
            ..Page::new(&summary, &eval)
        })
    }

    #[test]
    fn the_page_is_whole_and_loads_nothing() {
        let records = sample::records(50);
        let page = full(&records, &sample::routing(2, 3), &sample::experts(2, 3));
        sample::assert_page(&page);
        for section in [
            "Example answers",
            "Experts",
            "Routing",
            "Settings",
            "Records",
            "Other measures",
        ] {
            assert!(page.contains(&format!("<h2>{section}")), "{section}");
        }
    }

    #[test]
    fn text_is_escaped() {
        let page = full(&[], &sample::routing(1, 3), &sample::experts(1, 3));
        assert!(page.contains("Authors &lt;A &amp; B&gt;") && !page.contains("<A & B>"));
        assert!(page.contains("a &lt; b"));
        // A record and a token with marks of HTML, and one that is no ASCII.
        assert!(page.contains("&lt;script&gt;alert(&quot;") && page.contains("&lt;b&gt;"));
        assert!(page.contains("bar&#xE9;"));
    }

    #[test]
    fn sections_without_data_are_absent() {
        let stripped = |mut step: crate::report::StepRecord| {
            step.terms.clear();
            Record::Step(step)
        };
        let steps: Vec<Record> = sample::steps(20).into_iter().map(stripped).collect();
        let page = plain(&steps);
        for absent in [
            "Validation",
            "Guard",
            "Auxiliary",
            "Routing",
            "Experts",
            "Example",
            "Settings",
        ] {
            assert!(!page.contains(&format!("<h2>{absent}")), "{absent}");
        }
        assert!(page.contains("<h2>Loss of each task") && !page.contains("base %"));
        let page = plain(&[]);
        assert!(!page.contains("<h2>Training loss") && page.contains("<h2>Scores on the test"));
    }

    #[test]
    fn a_run_of_an_earlier_version_has_a_page() {
        let (mut summary, mut eval) = (sample::summary(), sample::eval());
        for score in eval.tasks.values_mut() {
            score.loss = None;
            score.also.clear();
        }
        summary.records.clear();
        summary.states.clear();
        let page = render(&Page::new(&summary, &eval));
        assert!(!page.contains("<h2>Records") && !page.contains("<h2>Other"));
        assert!(page.ends_with("</html>\n"));
    }

    /// `MOLORA_SAMPLE_REPORT=FILE cargo test sample_page` writes the page for a look at it.
    #[test]
    fn sample_page_stays_small() {
        let records = sample::records(600);
        let page = full(&records, &sample::routing(6, 3), &sample::experts(6, 3));
        assert!(page.len() < 500_000, "{} bytes", page.len());
        if let Some(path) = std::env::var_os("MOLORA_SAMPLE_REPORT") {
            std::fs::write(path, page).unwrap();
        }
    }

    /// 32 layers of seven sites with eight experts, and eight tasks.
    #[test]
    fn the_page_of_a_large_model_stays_usable() {
        let page = full(
            &sample::records(2000),
            &sample::large_routing(),
            &sample::large_experts(),
        );
        assert!(page.len() < 2_200_000, "{} bytes", page.len());
        if let Some(path) = std::env::var_os("MOLORA_LARGE_REPORT") {
            std::fs::write(path, page).unwrap();
        }
    }
}
