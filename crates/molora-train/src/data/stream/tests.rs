use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use molora_kernels::random::Seed;
use serde_json::{Value, json};

use super::source::{Held, Source};
use super::state::Plan;
use super::{StreamState, Streams, StreamsState};
use crate::data::error::DataError;
use crate::data::{Example, SamplerConfig, Target, Templates, WritingConfig, load_tasks_for};

/// Records whose tokens are their own number, as often as the record is long; every seventh has two examples.
struct Numbers {
    task: usize,
}

impl Source for Numbers {
    fn read(&mut self, records: Range<usize>) -> Result<Vec<Held>, DataError> {
        let of_record = |record: usize| {
            let parts = 1 + usize::from(record % 7 == 6);
            (0..parts).map(move |part| (record, part))
        };
        let held = |(record, part): (usize, usize)| Held {
            record,
            part,
            example: Example {
                ids: vec![record as u32; 3 + record * 7919 % 38],
                type_ids: Vec::new(),
                task: self.task,
                target: Target::Class(part),
            },
        };
        Ok(records.flat_map(of_record).map(held).collect())
    }
}

/// The number of examples of so many records.
fn examples(records: Range<usize>) -> usize {
    records.map(|record| 1 + usize::from(record % 7 == 6)).sum()
}

fn plan(records: &[usize], rows: &[usize], buffer: usize, bucket_batches: usize) -> Plan {
    Plan {
        sampling: SamplerConfig {
            batch_size: rows.iter().sum(),
            bucket_batches,
            ..SamplerConfig::default()
        },
        shuffle_buffer: buffer,
        rows: rows.to_vec(),
        records: records.to_vec(),
    }
}

const NAMES: [&str; 3] = ["answer", "pets", "weather"];

/// The streams of a plan by the ranks that read them.
fn on_ranks(plan: &Plan, ranks: usize) -> Vec<Streams<Numbers>> {
    let streams = |rank: usize| {
        let own = crate::collective::share(plan.rows.len(), rank, ranks);
        let names = &NAMES[..plan.records.len()];
        Streams::new(plan.clone(), own, names, Seed::new(3), |task| Numbers {
            task,
        })
    };
    (0..ranks).map(streams).collect()
}

/// The next batch of all ranks.
fn batch(ranks: &mut [Streams<Numbers>]) -> Vec<Example> {
    let rows = ranks
        .iter_mut()
        .flat_map(|streams| streams.next_rows().expect("numbers"));
    rows.collect()
}

fn batches(ranks: &mut [Streams<Numbers>], count: usize) -> Vec<Vec<Example>> {
    (0..count).map(|_| batch(ranks)).collect()
}

/// The state of all ranks through its text.
fn state(ranks: &[Streams<Numbers>]) -> StreamsState {
    let own = ranks.iter().flat_map(Streams::own_states);
    let own: Vec<StreamState> = own.collect();
    let text = serde_json::to_string(&ranks[0].state(own)).expect("plain data");
    serde_json::from_str(&text).expect("its own text")
}

/// An example by task, record and part.
fn key(example: &Example) -> (usize, u32, bool) {
    (
        example.task,
        example.ids[0],
        example.target == Target::Class(1),
    )
}

#[test]
fn every_example_is_drawn_once_a_pass_by_one_stream() {
    for (records, rows, buffer) in [
        (40, &[1, 1, 1, 1][..], 9),
        (41, &[2, 3, 2, 3], 16),
        (7, &[1; 7], 1000),
        (100, &[4], 1),
        (63, &[5, 4], 30),
    ] {
        let plan = plan(&[records], rows, buffer, 1);
        let mut streams = on_ranks(&plan, 1);
        let mut drawn: Vec<Vec<(usize, u32, bool)>> = vec![Vec::new(); rows.len()];
        for batch in batches(&mut streams, 3 * records) {
            let mut batch = batch.iter().map(key);
            for (stream, &rows) in rows.iter().enumerate() {
                drawn[stream].extend(batch.by_ref().take(rows));
            }
        }
        let mut seen = BTreeSet::new();
        for (stream, drawn) in drawn.iter().enumerate() {
            let pass = examples(plan.range(stream, 0));
            assert!(drawn.len() >= 2 * pass, "two passes at least");
            let passes: Vec<BTreeSet<_>> = drawn
                .chunks_exact(pass)
                .map(|pass| pass.iter().copied().collect())
                .collect();
            assert!(
                passes
                    .iter()
                    .all(|found| found.len() == pass && *found == passes[0])
            );
            assert!(
                passes[0].iter().all(|key| seen.insert(*key)),
                "of no other stream"
            );
        }
        assert_eq!(seen.len(), examples(0..records), "{records} in {rows:?}");
    }
}

#[test]
fn any_number_of_ranks_gives_the_same_batches() {
    for mixed in [true, false] {
        let mut plan = plan(&[30, 45, 60], &[2, 1, 2, 1], 12, 5);
        plan.sampling.mixed = mixed;
        let expected = batches(&mut on_ranks(&plan, 1), 33);
        for ranks in 2..=6 {
            assert_eq!(
                batches(&mut on_ranks(&plan, ranks), 33),
                expected,
                "{ranks} ranks"
            );
        }
        for batch in &expected {
            let tasks: BTreeSet<usize> = batch.iter().map(|example| example.task).collect();
            assert!(mixed || tasks.len() == 1, "{tasks:?}");
        }
        let tasks: BTreeSet<usize> = expected.iter().flatten().map(|e| e.task).collect();
        assert_eq!(tasks.len(), 3);
    }
}

#[test]
fn a_state_goes_on_as_if_nothing_had_stopped_it() {
    for (mixed, buffer) in [(true, 20), (false, 20), (true, 4000)] {
        let mut plan = plan(&[50, 33], &[2, 1, 2], buffer, 4);
        plan.sampling.mixed = mixed;
        let mut whole = on_ranks(&plan, 2);
        for steps in [0, 1, 2, 5, 8, 30] {
            batches(&mut whole, steps);
            let state = state(&whole);
            let expected = batches(&mut whole, 25);
            for ranks in 1..=3 {
                let mut restored = on_ranks(&plan, ranks);
                for streams in &mut restored {
                    streams.restore(&state).expect("a state of this plan");
                }
                assert_eq!(batches(&mut restored, 25), expected, "{ranks} ranks");
            }
        }
    }
}

#[test]
fn no_more_is_held_than_buffers_and_batches() {
    let (buffer, bucket) = (64, 6);
    let count = |records: usize| {
        let plan = plan(&[records, records], &[3, 3], buffer, bucket);
        let mut streams = on_ranks(&plan, 1);
        let held = (0..300).map(|_| {
            batch(&mut streams);
            streams[0].num_held()
        });
        held.max().expect("some")
    };
    // A record with two examples may be the last that comes into a buffer.
    let limit = 2 * (buffer + 2) + bucket * 6;
    let found = [count(1000), count(1_000_000)];
    assert!(
        found.iter().all(|&held| held > buffer && held <= limit),
        "{found:?}"
    );
}

#[test]
fn a_buffer_mixes_what_is_near() {
    let records = 4000;
    let of = |buffer: usize| {
        let plan = plan(&[records], &[2, 2], buffer, 1);
        let drawn = batches(&mut on_ranks(&plan, 1), 200);
        // Of the first stream.
        let drawn = drawn.iter().map(|batch| f64::from(batch[0].ids[0]));
        drawn.collect::<Vec<f64>>()
    };
    let in_order = of(1);
    assert!(in_order.is_sorted(), "a buffer of one shuffles nothing");
    let mixed = of(400);
    let descents = mixed.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(descents > 70, "{descents} of 199");
    // Each stream has half of the buffer, and reads its own half of the records.
    assert!(mixed.iter().take(20).all(|&record| record < 220.0));
    let whole = of(1_000_000);
    assert!(whole.iter().take(20).any(|&record| record > 1000.0));
}

#[test]
fn rows_of_a_batch_are_alike_in_length() {
    let padded = |bucket: usize| -> usize {
        let plan = plan(&[5000], &[2; 8], 1024, bucket);
        let longest = |batch: &Vec<Example>| batch.iter().map(|e| e.ids.len()).max();
        let batches = batches(&mut on_ranks(&plan, 1), 256);
        batches.iter().filter_map(longest).sum()
    };
    let (unsorted, sorted) = (padded(1), padded(64));
    // Lengths are 3 to 40: a batch of unsorted rows is nearly as wide as the longest of all.
    assert!(
        unsorted > 256 * 36 && sorted < 256 * 26,
        "{unsorted} {sorted}"
    );
}

#[test]
fn states_that_no_draw_leads_to_are_refused() {
    let plan = plan(&[20, 20], &[1, 1], 6, 3);
    let mut streams = on_ranks(&plan, 1);
    batch(&mut streams);
    let good = serde_json::to_value(state(&streams)).expect("plain data");
    let refused = |pointer: &str, value: Value| {
        let mut text = good.clone();
        *text.pointer_mut(pointer).expect(pointer) = value;
        let state: StreamsState = serde_json::from_value(text).expect("of the same types");
        let error = on_ranks(&plan, 1)[0].restore(&state).expect_err(pointer);
        error.to_string()
    };
    let one = good["streams"][0].clone();
    for (pointer, value, expected) in [
        (
            "/plan/records/1",
            json!(21),
            "its tasks have [20, 21] records, found [20, 20]",
        ),
        ("/plan/rows", json!([2]), "streams are not those of the run"),
        (
            "/plan/shuffle_buffer",
            json!(9),
            "streams are not those of the run",
        ),
        ("/streams", json!([one]), "it has 1 streams, expected 2"),
        (
            "/streams/0/tasks",
            json!([]),
            "stream 0 has not one buffer for each task",
        ),
        (
            "/streams/0/tasks/0/next",
            json!(11),
            "stream 0 holds records that are not its own",
        ),
        (
            "/streams/1/tasks/1/held/0/0",
            json!(9),
            "stream 1 holds records that are not its own",
        ),
        ("/streams/0/tasks/0/held/0/1", json!(3), "has no example 3"),
        ("/streams/1/pending/0", json!([]), "pending of stream 1"),
        ("/streams/1/pending", json!([]), "pending of stream 1"),
        ("/streams/0/rng/s", json!([0, 0, 0, 0]), "rng is all zeros"),
        ("/order/s", json!([0, 0, 0, 0]), "rng is all zeros"),
    ] {
        let error = refused(pointer, value);
        assert!(error.contains(expected), "{pointer}: {error}");
    }
}

/// Shares of records are those of rows, so that all streams end a pass at about the same time.
#[test]
fn records_are_dealt_as_rows_are() {
    let plan = plan(&[1001], &[3, 2, 3], 80, 1);
    let ranges: Vec<_> = (0..3).map(|stream| plan.range(stream, 0)).collect();
    assert_eq!(ranges, [0..375, 375..625, 625..1001]);
    assert_eq!([0, 1, 2].map(|stream| plan.capacity(stream)), [30, 20, 30]);
    let mut counts = BTreeMap::<u32, usize>::new();
    for example in batches(&mut on_ranks(&plan, 1), 400).iter().flatten() {
        *counts.entry(example.ids[0]).or_default() += 1;
    }
    let (least, most) = (counts.values().min(), counts.values().max());
    assert_eq!(counts.len(), 1001);
    assert!(
        *least.unwrap() >= 2 && *most.unwrap() <= 6,
        "{least:?} {most:?}"
    );
}

/// With other names of columns, and several templates of which one asks for each record.
#[test]
fn streamed_records_are_those_of_a_task_that_is_read_whole() {
    let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
    let root = tempfile::tempdir().unwrap();
    let ending = if cfg!(feature = "parquet") {
        "parquet"
    } else {
        "jsonl"
    };
    for name in ["chat", "alpaca", "quiz"] {
        let folder = root.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let copy = |from: &str, to: &str| {
            std::fs::copy(formats.join(format!("{name}.{from}")), folder.join(to)).unwrap();
        };
        copy(ending, &format!("train.{ending}"));
        copy("jsonl", "validation.jsonl");
        copy("jsonl", "test.jsonl");
    }
    let meta = r#"{"columns": {"input": "question", "output": "choices"}, "type": "generation"}"#;
    std::fs::create_dir(root.path().join("other")).unwrap();
    for file in ["train", "validation", "test"] {
        let line = |n| format!("{{\"question\": \"{n}?\", \"choices\": \"{n}!\"}}\n");
        let lines: String = (0..30).map(line).collect();
        let path = root.path().join(format!("other/{file}.jsonl"));
        std::fs::write(path, lines).unwrap();
    }
    std::fs::write(root.path().join("other/task.json"), meta).unwrap();
    let mut writing = WritingConfig::default();
    let sources = ["A {{ input }}", "B {{ input }}"].map(String::from);
    let templates = Templates::new(sources.to_vec()).unwrap();
    writing.templates.insert("other".into(), templates);
    let of = |streaming| load_tasks_for(root.path(), None, &writing, streaming).unwrap();
    for (whole, task) in of(false).iter().zip(of(true)) {
        let split = task.streamed.as_ref().expect("it is streamed");
        assert!(task.train.is_empty() && whole.streamed.is_none());
        assert_eq!(
            (split.records(), task.num_train()),
            (whole.num_train(), whole.train.len())
        );
        let rows = split.reader().read(0..split.records()).unwrap();
        let record = |(number, row)| split.record(row, number, &task.meta).unwrap();
        let records: Vec<_> = rows.into_iter().enumerate().map(record).collect();
        assert_eq!(records, whole.train, "{}", task.meta.name);
        assert_eq!(
            (&task.validation, &task.test),
            (&whole.validation, &whole.test)
        );
    }
}
