//! A made-up run for the tests of this module; its numbers mean nothing.

use std::collections::BTreeMap;

mod details;

pub(crate) use details::{
    assert_page, base, examples, experts, large_experts, large_routing, runs,
};

use super::schema::{
    EvalReport, KeptState, ParameterCounts, Record, RoutingReport, RunSummary, SCHEMA_VERSION,
    SiteRouting, SplitSizes, StepRecord, TaskScore, ValidationRecord, ValidationScore,
    ValidationScores,
};
use super::states::StateMetric;

const TASKS: [(&str, &str, f64, f64, usize); 4] = [
    ("banking77", "accuracy", 0.913, 0.013, 3080),
    ("clinc_domain", "macro_f1", 0.8842, 0.1, 900),
    ("sms_spam", "f1:spam", 0.9771, 0.866, 557),
    ("stackoverflow", "mcc", -0.0312, 0.05, 1000),
];

pub(crate) fn eval() -> EvalReport {
    let score = |(task, metric, value, majority, n): (&str, &str, f64, f64, usize)| {
        let accuracy = (value + 0.012_f64).max(majority);
        (
            task.to_owned(),
            TaskScore {
                metric: metric.to_owned(),
                value,
                n,
                accuracy: Some(accuracy),
                also: [("perplexity".to_owned(), 1.3)].into(),
                tests: BTreeMap::new(),
                majority,
                loss: Some(0.25),
            },
        )
    };
    EvalReport::new("test", TASKS.map(score).into())
}

pub(crate) fn summary() -> RunSummary {
    RunSummary {
        version: SCHEMA_VERSION,
        recipe: "samora".into(),
        citation: "Authors <A & B>, A Paper, arXiv:0000.00000".into(),
        model: "all-MiniLM-L6-v2".into(),
        device: "cpu".into(),
        seed: 17,
        steps: 600,
        tasks: TASKS.iter().map(|task| task.0.to_owned()).collect(),
        parameters: ParameterCounts {
            base: 22_713_216,
            adapters: 294_912,
            routers: 576,
            gates: 1_536,
            heads: 43_120,
            saved: 0,
        },
        train_seconds: 417.3,
        tokens_per_second: 3456.7,
        padding_share: 0.0832,
        cut_texts: [("sms_spam".to_owned(), 65)].into(),
        records: TASKS
            .map(|task| {
                let sizes = SplitSizes {
                    train: 4 * task.4,
                    validation: task.4 / 2,
                    test: task.4,
                };
                (task.0.to_owned(), sizes)
            })
            .into(),
        task_weights: BTreeMap::new(),
        validation_seconds: 31.2,
        states: vec![KeptState {
            stage: "joint".into(),
            expert: None,
            step: 540,
            last_step: 600,
            metric: StateMetric::MeanScore,
            value: 0.861,
        }],
        peak_memory_bytes: Some(1_288_490_189),
        molora_version: "0.1.0".into(),
        git_commit: Some("0123abc".into()),
    }
}

/// A repeatable stand-in for noise, within -1 and 1.
fn wobble(index: usize) -> f64 {
    (index as f64 * 12.9898).sin() * (index as f64 * 0.7713).cos()
}

pub(crate) fn steps(count: usize) -> Vec<StepRecord> {
    let record = |step: usize| {
        let progress = step as f64 / count as f64;
        let tasks: BTreeMap<_, _> = (0..3)
            .map(|offset| (step * 7 + offset * 3) % TASKS.len())
            .map(|task| {
                let start = [4.3, 2.3, 0.7, 3.0][task];
                let noise = 1.0 + 0.25 * wobble(step * 31 + task);
                (
                    TASKS[task].0.to_owned(),
                    start * ((-6.0 * progress).exp() + 0.08) * noise,
                )
            })
            .collect();
        let task_loss = tasks.values().sum::<f64>() / tasks.len() as f64;
        let terms: BTreeMap<_, _> = [
            (
                "key_matching".to_owned(),
                0.6 * (-3.0 * progress).exp() + 0.05,
            ),
            (
                "orthogonality".to_owned(),
                1.8 - 1.1 * progress + 0.03 * wobble(step),
            ),
        ]
        .into();
        StepRecord {
            version: SCHEMA_VERSION,
            step,
            stage: "joint".into(),
            expert: None,
            loss: task_loss + 0.1 * terms.values().sum::<f64>(),
            task_loss,
            terms,
            tasks,
            learning_rate: 1e-3 * (progress * 10.0).min(1.0 - progress + 1e-9),
            gradient_norm: 2.0 * (-2.0 * progress).exp() * (1.0 + 0.4 * wobble(step + 5)),
            tokens: 2300,
            padded_tokens: 2500,
            seconds: 0.69 + 0.03 * wobble(step + 9),
        }
    };
    (1..=count).map(record).collect()
}

/// Steps with ten scores of the validation split among them.
pub(crate) fn records(count: usize) -> Vec<Record> {
    let scored = |step: usize| {
        let value = 0.86 - 0.5 * (-5.0 * step as f64 / count as f64).exp() + 0.01 * wobble(step);
        let task = |task: &(&str, &str, f64, f64, usize)| {
            let score = ValidationScore {
                metric: task.1.to_owned(),
                value,
                loss: 1.0 - value,
                n: 256,
            };
            (task.0.to_owned(), score)
        };
        Record::Validation(ValidationRecord {
            version: SCHEMA_VERSION,
            step,
            stage: "joint".into(),
            expert: None,
            validation: ValidationScores {
                mean_score: value,
                worst_task: value,
                loss: 1.0 - value,
                tasks: TASKS.iter().map(task).collect(),
            },
            metric: StateMetric::MeanScore,
            is_best: true,
            seconds: 3.1,
        })
    };
    let mut records = Vec::new();
    for step in steps(count) {
        let number = step.step;
        records.push(Record::Step(step));
        if number.is_multiple_of((count / 10).max(1)) {
            records.push(scored(number));
        }
    }
    records
}

pub(crate) fn routing(layers: usize, experts: usize) -> RoutingReport {
    let site = |layer: usize, part: &str, salt: usize| SiteRouting {
        site: format!("encoder.layer.{layer}.attention.{part}"),
        layer,
        weights: TASKS
            .iter()
            .enumerate()
            .map(|(task, names)| (names.0.to_owned(), row(experts, layer * 5 + task + salt)))
            .collect(),
    };
    let parts = ["self.query", "self.key", "self.value", "output.dense"];
    let sites = (0..layers).flat_map(|layer| {
        parts
            .iter()
            .enumerate()
            .map(move |(salt, part)| site(layer, part, salt * 11))
    });
    RoutingReport {
        version: SCHEMA_VERSION,
        sites: sites.collect(),
        has_general: false,
    }
}

/// A row of weights with sum 1 in which every fourth salt leaves the last expert idle.
fn row(experts: usize, salt: usize) -> Vec<f64> {
    let score = |expert: usize| (2.0 * wobble(salt * 13 + expert * 3)).exp();
    let mut scores: Vec<f64> = (0..experts).map(score).collect();
    if salt >= 33
        && let Some(last) = scores.last_mut()
    {
        *last = 1e-4;
    }
    let sum: f64 = scores.iter().sum();
    scores.iter().map(|score| score / sum).collect()
}
