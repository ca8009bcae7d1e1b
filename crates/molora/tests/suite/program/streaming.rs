//! Training splits that are read piece by piece: the same run whatever the ranks, the files and the stops.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use molora_train::collective::{Local, on_threads};
use molora_train::exchange::{DistillRequest, Teacher, distill};
use molora_train::grow::{AddRequest, add_expert};
use molora_train::recipe::Recipe;
use molora_train::report::StepRecord;
use molora_train::run::{
    Request, ResumeOptions, changed_inputs, check, dry_run, evaluate_run, resume_on, train,
    train_on,
};
use serde_json::{Value, json};

use super::ranks::{
    assert_goes_on_by_others, assert_same_on_ranks, in_micro_batches, train_on_ranks,
};
use super::writer;
use crate::world::{
    World, assert_same_run, entries, read_json, resume_to_end, resume_until, small, steps,
    train_until, without_losses, write_json,
};

/// A recipe whose data are streamed through buffers that hold a part of them.
fn streamed(mut recipe: Recipe) -> Recipe {
    recipe.data.streaming = true;
    recipe.data.shuffle_buffer = 24;
    recipe.data.streams = 4;
    recipe
}

/// A mixture, experts that train alone, and one with a general expert and gates.
#[test]
fn any_number_of_ranks_gives_the_same_run() {
    for name in ["samora", "moa", "phatgoose"] {
        let world = World::new();
        let mut recipe = in_micro_batches(streamed(small(name)), 2);
        recipe.data.sampling.mixed = name == "samora";
        assert_same_on_ranks(&world.request(recipe, "run"));
        let summary = read_json(&world.path("ranks-1/summary.json"));
        assert_eq!(
            summary["records"]["pets"],
            json!({"train": 48, "validation": 6, "test": 24})
        );
    }
}

/// Five micro-batches, and three streams with three, three and four rows.
#[test]
fn a_decoder_with_packed_texts_is_the_same_on_any_number_of_ranks() {
    let world = writer::world();
    let mut recipe = in_micro_batches(streamed(writer::recipe("samora", 12)), 2);
    recipe.data.sampling.batch_size = 10;
    recipe.data.streams = 3;
    recipe.data.writing.packing = true;
    assert_same_on_ranks(&writer::request(&world, recipe, &["pets", "sums"], "run"));
}

/// Reading does not depend on micro-batches: without them ranks see the same records too.
#[test]
fn without_micro_batches_ranks_see_the_same_records() {
    let world = World::new();
    let request = |ranks: usize| world.request(streamed(small("lora")), &format!("ranks-{ranks}"));
    let read = |ranks: usize| -> Vec<(usize, Vec<String>)> {
        train_on_ranks(&request(ranks), ranks);
        let of_step = |step: StepRecord| (step.tokens, step.tasks.into_keys().collect());
        steps(&request(ranks).out)
            .into_iter()
            .map(of_step)
            .collect()
    };
    assert_eq!(read(3), read(1));
    // A finished run knows where its streams were.
    let more = ResumeOptions {
        steps: Some(25),
        ..ResumeOptions::default()
    };
    let run = request(1).out;
    resume_on(&run, &more, &Local, &AtomicBool::new(false), &mut |_| {}).expect("more steps");
    assert_eq!(steps(&run).len(), 25);
}

#[test]
fn a_run_is_resumed_by_another_number_of_ranks() {
    assert_goes_on_by_others(in_micro_batches(streamed(small("hydralora")), 2));
}

/// Before the first checkpoint that is due, between stages, and within an expert's few steps.
#[test]
fn a_run_that_was_stopped_is_the_uninterrupted_one() {
    for (name, stops) in [("samora", [3, 17]), ("phatgoose", [8, 13])] {
        let world = World::new();
        let recipe = streamed(small(name));
        let whole = world.train(&recipe, "whole");
        let stopped = world.request(recipe, "stopped");
        train_until(&stopped, stops[0]);
        resume_until(&stopped.out, stops[1]);
        resume_to_end(&stopped.out);
        assert_same_run(&stopped.out, &whole);
    }
}

/// The lines of a task's training split.
fn lines(world: &World, task: &str) -> Vec<String> {
    let text = std::fs::read_to_string(world.data(&format!("{task}/train.jsonl")));
    let text = text.expect("readable");
    text.lines().map(|line| format!("{line}\n")).collect()
}

#[test]
fn parts_of_a_split_are_the_split() {
    let world = World::new();
    let recipe = streamed(small("samora"));
    let whole = world.train(&recipe, "whole");
    let all = lines(&world, "pets");
    for (part, range) in [0..5, 5..6, 6..48].into_iter().enumerate() {
        let path = world.data(&format!("pets/train-0000{part}-of-00003.jsonl"));
        std::fs::write(path, all[range].concat()).expect("writable");
    }
    std::fs::remove_file(world.data("pets/train.jsonl")).expect("removed");
    assert_same_run(&world.train(&recipe, "parts"), &whole);
}

#[test]
fn a_finished_run_is_scored_and_grows_like_any_other() {
    let world = World::new();
    let mut request = world.request(streamed(small("moa")), "run");
    request.tasks = Some(vec!["answer".into(), "pets".into()]);
    let (run, stop) = (&request.out, AtomicBool::new(false));
    train(&request, &stop, &mut |_| {}).expect("a whole run");
    let scores = || {
        let (scores, _) = evaluate_run(run, None, None).expect("a finished run");
        without_losses(serde_json::to_value(scores).expect("plain"))
    };
    assert_eq!(scores(), without_losses(read_json(&run.join("eval.json"))));
    assert!(
        !run.join("base.json").exists(),
        "a probe would need the training records"
    );
    let add = AddRequest {
        run: run.clone(),
        task: "weather".into(),
        data: None,
        group: None,
        device: None,
    };
    add_expert(&add, &stop, &mut |_| {}).expect("one more expert");
    assert_eq!(
        scores()["tasks"].as_object().map(serde_json::Map::len),
        Some(3)
    );
    let distilled = DistillRequest {
        teacher: Teacher::Run {
            folder: run.clone(),
            data: None,
        },
        rank: 2,
        samples: 8,
        out: world.path("distilled"),
        device: None,
    };
    let error = distill(&distilled, &mut |_| {}).expect_err("no records");
    let expected = "molora distill: needs all training records in memory, and data.streaming is true: \
                    leave one of them out";
    assert_eq!(error.to_string(), expected);
    std::fs::write(
        world.data("pets/train.jsonl"),
        lines(&world, "pets")[1..].concat(),
    )
    .expect("writable");
    let changed = changed_inputs(run, None).expect("a run");
    assert_eq!(changed, ["train.jsonl of task pets"]);
}

/// A record that comes late is checked as it is read, and a run that ends with it can be gone on with.
#[test]
fn a_broken_record_is_named_when_it_is_read() {
    let world = World::new();
    let mut all = lines(&world, "pets");
    all = (0..1200).map(|line| all[line % 48].clone()).collect();
    all[1099] = all[1099].replace("\"label\":", "\"lable\":");
    let path = world.data("pets/train.jsonl");
    std::fs::write(&path, all.concat()).expect("writable");
    let mut request = world.request(streamed(small("lora")), "run");
    request.tasks = Some(vec!["pets".into()]);
    request.recipe.stages[0].steps = 150;
    let ended = on_threads(2, |rank| {
        train_on(&request, rank, &AtomicBool::new(false), &mut |_| {}).map(drop)
    });
    let texts: Vec<String> = ended.iter().map(|ended| format!("{ended:?}")).collect();
    let [first, last] =
        [&ended[0], &ended[1]].map(|ended| ended.as_ref().expect_err("a broken line"));
    let expected = format!("{}:1100: key \"label\" is missing", path.display());
    assert_eq!(last.to_string(), expected, "{texts:?}");
    assert!(
        first.to_string().contains("rank 1 of 2 has ended"),
        "{texts:?}"
    );
    assert!(
        !steps(&request.out).is_empty(),
        "records before it were trained on"
    );
}

fn refusal(request: &Request) -> String {
    let text = check(request).expect_err("a misuse").to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

#[test]
fn what_cannot_be_streamed_is_named() {
    let world = World::new();
    let pets = |name: &str| world.data(&format!("pets/{name}"));
    let request = world.request(streamed(small("lora")), "run");
    let changed = |change: fn(&mut Recipe)| {
        let mut request = request.clone();
        change(&mut request.recipe);
        refusal(&request)
    };
    let zero = changed(|recipe| recipe.data.shuffle_buffer = 0);
    assert!(
        zero.contains("data.shuffle_buffer is 0, expected at least 1"),
        "{zero}"
    );
    let many = changed(|recipe| {
        (recipe.data.sampling.batch_size, recipe.data.streams) = (64, 64);
    });
    let expected = "answer: cannot be streamed (data.streaming): its training split has 48 records, expected at \
                    least 64 for 64 streams (data.streams)";
    assert_eq!(many, expected);
    let clustered = world.request(streamed(small("mocle")), "run");
    let clustered = refusal(&clustered);
    assert!(
        clustered.contains("a stage clusters the training texts"),
        "{clustered}"
    );
    let auto = Request {
        memory: Some(1 << 40),
        ..request.clone()
    };
    let words = "needs all training records in memory, and data.streaming is true";
    assert!(
        refusal(&auto).starts_with("--batch-size auto: "),
        "{}",
        refusal(&auto)
    );
    let dry = dry_run(&request, &AtomicBool::new(false), &mut |_| {});
    let dry = dry.expect_err("no records").to_string();
    assert!(
        dry.starts_with("--dry-run: ") && dry.contains(words),
        "{dry}"
    );

    let file = Request {
        data: pets("train.jsonl").to_str().expect("UTF-8").into(),
        ..request.clone()
    };
    assert!(
        refusal(&file).contains("it is one file, and holding records out"),
        "{}",
        refusal(&file)
    );
    let rename = |from: &str, to: &str| std::fs::rename(pets(from), pets(to)).expect("renamed");
    rename("validation.jsonl", "kept");
    let error = refusal(&request);
    assert!(error.contains("data/pets: cannot be streamed"), "{error}");
    assert!(error.contains("there is no validation split"), "{error}");
    rename("kept", "validation.jsonl");
    rename("task.json", "kept");
    let error = refusal(&request);
    assert!(
        error.contains("its labels would be collected from all records"),
        "{error}"
    );
    rename("kept", "task.json");
    let records: Vec<Value> = lines(&world, "pets")
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    write_json(&pets("train.json"), &Value::Array(records));
    std::fs::remove_file(pets("train.jsonl")).expect("removed");
    let error = refusal(&request);
    assert!(
        error.contains("pets/train.json: data.streaming reads .jsonl and .parquet"),
        "{error}"
    );
    assert!(!entries(Path::new(&world.path("."))).contains(&"run".to_owned()));
}
