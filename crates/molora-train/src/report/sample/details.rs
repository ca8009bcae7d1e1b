//! What stands beside the scores of the made-up run.

use std::collections::BTreeMap;

use super::wobble;
use crate::report::details::{
    BaseReport, BaseWay, ExampleAnswer, ExampleKind, ExampleReport, ExpertReport, ExpertSimilarity,
    SentenceRouting, TokenWeights,
};
use crate::report::{
    ComparedRun, EvalReport, PredictionReport, Record, RoutingReport, SCHEMA_VERSION, SiteRouting,
};

/// A base model that is worse by a tenth or so.
pub(crate) fn base() -> BaseReport {
    let mut tasks = super::eval().tasks;
    for (number, score) in tasks.values_mut().enumerate() {
        let drop = [0.08, 0.11, 0.03, 0.0088][number];
        score.value -= drop;
        score.accuracy = score.accuracy.map(|accuracy| accuracy - drop);
        score.also.clear();
    }
    let ways = tasks.keys().map(|task| (task.clone(), BaseWay::Head));
    BaseReport {
        version: SCHEMA_VERSION,
        ways: ways.collect(),
        scores: EvalReport::new("test", tasks),
        predictions: PredictionReport {
            version: SCHEMA_VERSION,
            split: "test".into(),
            tasks: BTreeMap::new(),
        },
    }
}

/// Texts that are long, have marks of HTML, or are no ASCII.
pub(crate) fn examples() -> ExampleReport {
    let kinds = [
        ExampleKind::Gained,
        ExampleKind::Lost,
        ExampleKind::Wrong,
        ExampleKind::Right,
    ];
    let inputs = [
        "My card was <script>alert(\"declined\")</script> at the bar\u{e9}, what now?".to_owned(),
        "How do I top up? ".repeat(30),
        "two\nlines of text".to_owned(),
        "short".to_owned(),
    ];
    let example = |(number, input): (usize, String)| {
        let (right, wrong) = ("declined card payment", "top up by card");
        let kind = kinds[number];
        let is_right = matches!(kind, ExampleKind::Gained | ExampleKind::Right);
        let base_right = matches!(kind, ExampleKind::Lost | ExampleKind::Right);
        let pick = |is_right: bool| if is_right { right } else { wrong }.to_owned();
        ExampleAnswer {
            kind,
            record: 17 * number + 3,
            input,
            expected: right.into(),
            answer: pick(is_right),
            base: Some(pick(base_right)),
        }
    };
    let all: Vec<ExampleAnswer> = inputs.into_iter().enumerate().map(example).collect();
    let tasks = ["banking77", "sms_spam"].map(|task| (task.to_owned(), all.clone()));
    ExampleReport {
        version: SCHEMA_VERSION,
        split: "test".into(),
        tasks: tasks.into(),
    }
}

const PARTS: [&str; 7] = [
    "self.query",
    "self.key",
    "self.value",
    "self.output",
    "mlp.gate",
    "mlp.up",
    "mlp.down",
];

pub(crate) fn experts(layers: usize, experts: usize) -> ExpertReport {
    of_size(layers, 4, experts, 2)
}

/// 32 layers of seven sites with eight experts, and eight records.
pub(crate) fn large_experts() -> ExpertReport {
    of_size(32, 7, 8, 8)
}

fn of_size(layers: usize, sites: usize, experts: usize, sentences: usize) -> ExpertReport {
    let places = || (0..layers).flat_map(|layer| (0..sites).map(move |site| (layer, site)));
    let name = |layer: usize, site: usize| format!("encoder.layer.{layer}.{}", PARTS[site]);
    let similarity = places().map(|(layer, site)| {
        let cosine = |one: usize, other: usize| match one == other {
            true => 1.0,
            false => 0.8 * wobble((one + other) * 7 + one * other + layer * 3 + site),
        };
        let row = |one: usize| (0..experts).map(|other| cosine(one, other)).collect();
        ExpertSimilarity {
            site: name(layer, site),
            layer,
            cosine: (0..experts).map(row).collect(),
        }
    });
    let words = "my card was <b> declined at the bar\u{e9} , what can I do about it now ?\n";
    let tokens: Vec<String> = words.split(' ').map(str::to_owned).collect();
    let sentence = |number: usize| {
        let weights = |layer: usize, site: usize| TokenWeights {
            site: name(layer, site),
            layer,
            weights: (0..tokens.len())
                .map(|token| super::row(experts, token + layer * 3 + number))
                .collect(),
        };
        SentenceRouting {
            task: ["banking77", "sms_spam"][number % 2].into(),
            record: number + 5,
            tokens: tokens.clone(),
            sites: places().map(|(layer, site)| weights(layer, site)).collect(),
        }
    };
    ExpertReport {
        version: SCHEMA_VERSION,
        similarity: similarity.collect(),
        sentences: (0..sentences).map(sentence).collect(),
    }
}

/// 32 layers of seven sites with eight experts, and eight tasks.
pub(crate) fn large_routing() -> RoutingReport {
    let site = |layer: usize, part: usize| SiteRouting {
        site: format!("model.layers.{layer}.{}", PARTS[part]),
        layer,
        weights: (0..8)
            .map(|task| {
                (
                    format!("task_number_{task}"),
                    super::row(8, layer + task + part),
                )
            })
            .collect(),
    };
    let places = (0..32).flat_map(|layer| (0..7).map(move |part| (layer, part)));
    RoutingReport {
        version: SCHEMA_VERSION,
        sites: places.map(|(layer, part)| site(layer, part)).collect(),
        has_general: false,
    }
}

/// Three recipes with two seeds each.
pub(crate) fn runs() -> Vec<ComparedRun> {
    let run = |recipe: &str, number: usize, seed: u64| {
        let (mut summary, mut eval) = (super::summary(), super::eval());
        (summary.recipe, summary.seed) = (recipe.into(), seed);
        summary.parameters.adapters += 9_000 * number;
        for score in eval.tasks.values_mut() {
            score.value += 0.004 * number as f64 + 0.002 * seed as f64;
        }
        let mut records = super::records(200);
        for record in &mut records {
            match record {
                Record::Step(step) => step.task_loss *= 1.0 - 0.1 * number as f64,
                Record::Guard(_) => {}
                Record::Validation(scored) => {
                    scored.validation.mean_score += 0.01 * number as f64 + 0.004 * seed as f64;
                }
            }
        }
        ComparedRun {
            recipe: recipe.into(),
            name: format!("{recipe}-seed{seed}"),
            summary,
            eval: EvalReport::new("test", eval.tasks),
            records,
            base: Some(base()),
            inputs: BTreeMap::new(),
        }
    };
    let recipes = ["lora", "samora", "mosld"].into_iter().enumerate();
    recipes
        .flat_map(|(number, recipe)| [0, 1].map(|seed| run(recipe, number, seed)))
        .collect()
}

/// A page is whole, in ASCII, loads nothing and closes every tag that it opens.
pub(crate) fn assert_page(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    for outside in [
        "<script", "<link", "<img", "url(", "@import", "href=", "src=",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    for tag in [
        "section", "figure", "table", "tr", "th", "td", "svg", "div", "p", "span", "ul", "li",
        "details", "summary", "pre", "b", "i", "h2", "h3", "h4",
    ] {
        let opened =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert!(page.is_ascii());
}
