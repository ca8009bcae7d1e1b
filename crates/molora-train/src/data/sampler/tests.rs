use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::super::task::{Split, load_tasks};
use super::super::tokenizer::TextTokenizer;
use super::super::{Batch, Example, tokenize_tasks};
use super::{Strategy, *};

/// Tasks of the given sizes, with lengths between 3 and 40 that follow no order.
fn lengths(sizes: &[usize]) -> Vec<Vec<usize>> {
    let task = |(task, &size): (usize, &usize)| {
        (0..size)
            .map(|index| 3 + (index * 7919 + task * 31) % 38)
            .collect()
    };
    sizes.iter().enumerate().map(task).collect()
}

fn sampler(config: SamplerConfig, sizes: &[usize]) -> Sampler {
    Sampler::new(config, &lengths(sizes), 7).unwrap()
}

fn with_strategy(strategy: Strategy) -> SamplerConfig {
    SamplerConfig {
        strategy,
        ..Default::default()
    }
}

/// How many of `batches` batches each task gets.
fn task_counts(strategy: Strategy, sizes: &[usize], batches: usize) -> Vec<f64> {
    let mut sampler = sampler(with_strategy(strategy), sizes);
    let mut counts = vec![0.0; sizes.len()];
    for _ in 0..batches {
        counts[sampler.next_batch()[0].0] += 1.0;
    }
    counts
}

/// Expected probabilities against counts, within five standard deviations.
fn check_shares(counts: &[f64], expected: &[f64]) {
    let total: f64 = counts.iter().sum();
    for (&count, &share) in counts.iter().zip(expected) {
        let deviation = (total * share * (1.0 - share)).sqrt();
        assert!(
            (count - total * share).abs() < 5.0 * deviation,
            "{counts:?} {expected:?}"
        );
    }
}

#[test]
fn tasks_are_drawn_by_the_strategy() {
    let sizes = [100, 400, 1600];
    let total = 2100.0;
    let proportional = [100.0 / total, 400.0 / total, 1600.0 / total];
    check_shares(
        &task_counts(Strategy::Proportional, &sizes, 6400),
        &proportional,
    );
    check_shares(
        &task_counts(Strategy::Uniform, &sizes, 6400),
        &[1.0 / 3.0; 3],
    );
    // Square roots: 10, 20, 40.
    let temperature = Strategy::Temperature { temperature: 2.0 };
    check_shares(
        &task_counts(temperature, &sizes, 6400),
        &[1.0 / 7.0, 2.0 / 7.0, 4.0 / 7.0],
    );
}

#[test]
fn mixed_batches_draw_a_task_for_each_row() {
    let config = SamplerConfig {
        mixed: true,
        ..with_strategy(Strategy::Proportional)
    };
    let mut sampler = sampler(config, &[100, 300]);
    let mut counts = [0.0; 2];
    let mut mixed = 0;
    for _ in 0..640 {
        let batch = sampler.next_batch();
        assert_eq!(batch.len(), 32);
        batch.iter().for_each(|&(task, _)| counts[task] += 1.0);
        mixed += usize::from(batch.iter().any(|pick| pick.0 != batch[0].0));
    }
    check_shares(&counts, &[0.25, 0.75]);
    assert!(mixed > 600, "{mixed} of 640 batches hold both tasks");
}

#[test]
fn sorted_batches_need_less_padding() {
    let padded = |bucket_batches| {
        let config = SamplerConfig {
            bucket_batches,
            ..Default::default()
        };
        let (lengths, mut sampler) = (lengths(&[3000, 3000]), sampler(config, &[3000, 3000]));
        let length = |&(task, index): &Pick| lengths[task][index];
        (0..256)
            .map(|_| 32 * sampler.next_batch().iter().map(length).max().unwrap())
            .sum::<usize>()
    };
    assert!(10 * padded(64) < 6 * padded(1));
}

/// Share of the padded tokens of 600 batches of 32 rows that are padding, on tasks under `dir`.
fn padding_share(dir: &Path, names: Option<&[String]>, bucket_batches: usize, mixed: bool) -> f64 {
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/models/all-MiniLM-L6-v2");
    let tokenizer = TextTokenizer::from_folder(&model).unwrap();
    let tasks = tokenize_tasks(&load_tasks(dir, names).unwrap(), &tokenizer, 64).unwrap();
    let lengths: Vec<Vec<usize>> = tasks
        .iter()
        .map(|task| task.lengths(Split::Train))
        .collect();
    let config = SamplerConfig {
        bucket_batches,
        mixed,
        ..Default::default()
    };
    let mut sampler = Sampler::new(config, &lengths, 0).unwrap();
    let (mut tokens, mut padded) = (0, 0);
    for _ in 0..600 {
        let rows = sampler.next_batch();
        let examples: Vec<&Example> = rows
            .iter()
            .map(|&(task, index)| &tasks[task].train[index])
            .collect();
        let batch = Batch::from_examples(&examples);
        tokens += batch.num_tokens();
        padded += batch.num_padded();
    }
    1.0 - tokens as f64 / padded as f64
}

#[test]
fn padding_of_the_bundled_tasks_is_small() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/tasks");
    let share = |buckets, mixed| padding_share(&dir, None, buckets, mixed);
    let default = SamplerConfig::default().bucket_batches;
    assert!(
        share(1, false) > 0.3,
        "without sorting there is much to save"
    );
    assert!(share(default, false) < 0.12);
    assert!(share(default, true) < 0.12);
}

/// Sorting must not gather the copies of a record that several permutations hold.
#[test]
fn small_tasks_do_not_repeat_records_within_a_batch() {
    for mixed in [false, true] {
        let config = SamplerConfig {
            batch_size: 8,
            mixed,
            ..Default::default()
        };
        let mut sampler = sampler(config, &[64, 128]);
        for _ in 0..256 {
            let mut batch = sampler.next_batch();
            batch.sort_unstable();
            batch.dedup();
            // Where pieces meet, a batch may hold the end of one and the beginning of the next.
            assert!(batch.len() >= 6, "{batch:?}");
        }
    }
}

/// A small task's batches are not the same ones in every permutation.
#[test]
fn batches_of_a_task_change() {
    let config = SamplerConfig {
        batch_size: 4,
        ..Default::default()
    };
    let mut sampler = sampler(config, &[32]);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..80 {
        let mut batch = sampler.next_batch();
        batch.sort_unstable();
        seen.insert(batch);
    }
    assert!(seen.len() > 60, "{} of 80 batches differ", seen.len());
}
#[test]
fn a_restored_sampler_continues_identically() {
    for mixed in [false, true] {
        let config = SamplerConfig {
            mixed,
            bucket_batches: 8,
            ..Default::default()
        };
        let mut original = sampler(config.clone(), &[50, 70, 20]);
        (0..13).for_each(|_| drop(original.next_batch()));
        let saved = serde_json::to_string(&original).unwrap();
        let mut restored: Sampler = serde_json::from_str(&saved).unwrap();
        assert_eq!(restored, original);
        for _ in 0..50 {
            assert_eq!(restored.next_batch(), original.next_batch());
        }
        assert!(restored.check(&config, &lengths(&[50, 70, 20])).is_ok());
        assert!(restored.check(&config, &lengths(&[50, 70])).is_err());
        assert!(restored.check(&config, &lengths(&[50, 71, 20])).is_err());
    }
}

#[test]
fn seeds_decide_the_draws() {
    let draw = |seed| {
        let mut sampler =
            Sampler::new(SamplerConfig::default(), &lengths(&[90, 90]), seed).unwrap();
        (0..5).map(|_| sampler.next_batch()).collect::<Vec<_>>()
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
}

/// A change of these numbers breaks every saved run: they may not depend on platform or version.
/// They were computed by a separate program, in Python, from the same definitions.
#[test]
fn draws_keep_their_values() {
    let config = SamplerConfig {
        batch_size: 4,
        bucket_batches: 2,
        mixed: true,
        strategy: Strategy::Temperature { temperature: 3.0 },
    };
    let mut sampler = Sampler::new(config, &lengths(&[5, 9]), 42).unwrap();
    let drawn: Vec<Vec<Pick>> = (0..2).map(|_| sampler.next_batch()).collect();
    let expected: [[Pick; 4]; 2] = [
        [(1, 6), (0, 1), (1, 4), (1, 8)],
        [(1, 3), (1, 1), (1, 5), (1, 0)],
    ];
    assert_eq!(drawn, expected);
}

#[test]
fn settings_out_of_range_are_errors() {
    let message = |config: SamplerConfig, sizes: &[usize]| {
        Sampler::new(config, &lengths(sizes), 0)
            .unwrap_err()
            .to_string()
    };
    let temperature = |temperature| with_strategy(Strategy::Temperature { temperature });
    let expected = "sampler: temperature is 0, expected a finite number above 0";
    assert_eq!(message(temperature(0.0), &[1]), expected);
    assert!(message(temperature(f64::NAN), &[1]).contains("is NaN"));
    assert!(message(temperature(f64::INFINITY), &[1]).contains("is inf"));
    let config = |batch_size, bucket_batches| SamplerConfig {
        batch_size,
        bucket_batches,
        ..Default::default()
    };
    assert!(message(config(0, 1), &[1]).contains("batch_size is 0"));
    assert!(message(config(1, 0), &[1]).contains("bucket_batches is 0"));
    assert!(message(config(1, 1), &[]).contains("is []"));
    assert!(message(config(1, 1), &[3, 0]).contains("is [3, 0]"));
}

#[test]
fn configs_are_read_strictly() {
    let read = serde_json::from_str::<SamplerConfig>;
    let expected = SamplerConfig {
        mixed: true,
        ..with_strategy(Strategy::Temperature { temperature: 2.0 })
    };
    let text = r#"{"strategy": {"temperature": {"temperature": 2.0}}, "mixed": true}"#;
    assert_eq!(read(text).unwrap(), expected);
    assert_eq!(
        read(r#"{"strategy": "proportional"}"#).unwrap().strategy,
        Strategy::Proportional
    );
    let message = read(r#"{"batchsize": 3}"#).unwrap_err().to_string();
    assert!(message.contains("unknown field `batchsize`"), "{message}");
    assert!(read(r#"{"strategy": {"temperature": {"t": 2.0}}}"#).is_err());
}

#[test]
fn evaluation_sees_every_index_once_sorted() {
    let lengths = [9, 2, 5, 2, 7];
    assert_eq!(eval_batches(&lengths, 2), [vec![1, 3], vec![2, 4], vec![0]]);
    assert_eq!(eval_batches(&lengths, 9), [vec![1, 3, 2, 4, 0]]);
    assert!(eval_batches(&[], 4).is_empty());
}

proptest! {
    /// After whole pools, no record of a task was drawn twice more than another: permutations.
    #[test]
    fn records_run_out_before_they_return(
        sizes in prop::collection::vec(1_usize..60, 1..4),
        batch_size in 1_usize..12,
        bucket_batches in 1_usize..6,
        mixed in any::<bool>(),
        pools in 1_usize..8,
    ) {
        let strategy = Strategy::Uniform;
        let config = SamplerConfig { strategy, batch_size, mixed, bucket_batches };
        let mut sampler = sampler(config, &sizes);
        let mut drawn = BTreeMap::<Pick, usize>::new();
        for _ in 0..pools * bucket_batches {
            let batch = sampler.next_batch();
            prop_assert_eq!(batch.len(), batch_size);
            prop_assert!(mixed || batch.iter().all(|pick| pick.0 == batch[0].0));
            batch.into_iter().for_each(|pick| *drawn.entry(pick).or_default() += 1);
        }
        for (task, &size) in sizes.iter().enumerate() {
            let count = |index| drawn.get(&(task, index)).copied().unwrap_or(0);
            let counts: Vec<usize> = (0..size).map(count).collect();
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            prop_assert!(most - least <= 1, "task {} {:?}", task, counts);
        }
    }
}
