//! Runs measured on tasks that they were not trained on, and the queries of GLIDER.

use std::path::{Path, PathBuf};

use burn::module::Module;
use molora_train::guide::{Instructions, Query};
use molora_train::recipe::{InstructionConfig, QuerySource, Recipe, StageConfig, Transform};
use molora_train::report::{RoutingReport, TaskScore};
use molora_train::run::{EvalOptions, evaluate_run, evaluate_run_by};
use molora_train::unseen::{UnseenReport, UnseenRequest, evaluate_unseen};

use super::refusal::assert_refused;
use crate::world::{World, entries, read_json, small, train_until, without_losses, write_json};

/// Trains on two of the three tasks; `answer` is left.
fn train(world: &World, recipe: Recipe, out: &str) -> PathBuf {
    let mut request = world.request(recipe, out);
    request.tasks = Some(["pets", "weather"].map(String::from).into());
    let stop = std::sync::atomic::AtomicBool::new(false);
    molora_train::run::train(&request, &stop, &mut |_| {}).expect("a whole run");
    request.out
}

fn measure(run: &Path, request: &UnseenRequest<'_>) -> UnseenReport {
    evaluate_unseen(run, request, &mut |_| {}).expect("an unseen task")
}

/// GLIDER whose instructions are read by the tiny model.
fn glider(world: &World, query: QuerySource) -> Recipe {
    let mut recipe = small("glider");
    *recipe.instructions_mut().expect("glider compares texts") = InstructionConfig {
        weight: 3.0,
        encoder: world.path("model").to_str().expect("UTF-8").into(),
        query,
    };
    for (task, text) in [
        ("pets", "purr bark"),
        ("weather", "rain snow"),
        ("answer", "never w3"),
    ] {
        World::edit(&world.data(&format!("{task}/task.json")), |meta| {
            meta["instruction"] = text.into();
        });
    }
    recipe
}

#[test]
fn every_method_is_measured_on_a_task_that_it_never_saw() {
    let world = World::new();
    for name in [
        "lora",
        "hydralora",
        "samora",
        "mosld",
        "at-moe",
        "moa",
        "phatgoose",
    ] {
        let run = train(&world, small(name), name);
        let report = measure(&run, &UnseenRequest::default());
        assert_eq!(
            report.tasks.keys().collect::<Vec<_>>(),
            ["answer"],
            "{name}"
        );
        let task = &report.tasks["answer"];
        assert_eq!((task.train_records, task.run.score.n), (48, 24), "{name}");
        let accuracy = |found: &TaskScore| found.accuracy.expect("of classes");
        let gain = accuracy(&task.run.score) - accuracy(&task.base.score);
        assert!((task.gain.mean_accuracy - gain).abs() < 1e-12, "{name}");
        assert!(task.gain.low <= gain && gain <= task.gain.high, "{name}");
        assert_ne!(task.base.validation, 0.0, "{name}");
        assert_eq!(
            report,
            measure(&run, &UnseenRequest::default()),
            "{name} drew something"
        );
    }
}

#[test]
fn the_program_prints_and_keeps_what_it_measured() {
    let world = World::new();
    let run = train(&world, small("samora"), "run");
    let before = entries(&run);
    let output = world.run(&["eval", "run", "--unseen", "--json", "--shots", "5"]);
    assert!(output.status.success(), "{output:?}");
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let stored = read_json(&run.join("unseen.json"));
    let (printed, stored) = (&printed["tasks"]["answer"], &stored["tasks"]["answer"]);
    assert_eq!(printed["train_records"], 10);
    assert_eq!(printed["run_accuracy"], stored["run"]["score"]["accuracy"]);
    assert_eq!(
        printed["base_accuracy"],
        stored["base"]["score"]["accuracy"]
    );
    assert_eq!(entries(&run).len(), before.len() + 1);
    let output = world.run(&["eval", "run", "--unseen", "--tasks", "answer"]);
    let text = String::from_utf8(output.stdout).expect("ASCII");
    assert!(text.is_ascii() && text.contains("| answer"), "{text}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let world = World::new();
    train(&world, small("samora"), "run");
    world.train(&small("lora"), "all");
    let request = world.request(small("lora"), "stopped");
    train_until(&request, 3);
    let meta = |world: &World| world.data("answer/task.json");
    let refuse = |arguments: &[&str], expected: &[&str]| {
        assert_refused(&world, &[&["eval"], arguments].concat(), "unseen", expected);
    };
    refuse(
        &["run", "--unseen", "--tasks", "pets"],
        &["task pets", "trained on"],
    );
    refuse(
        &["run", "--unseen", "--tasks", "anser"],
        &["anser", "answer"],
    );
    refuse(&["all", "--unseen"], &["data", "none is left unseen"]);
    refuse(&["stopped", "--unseen"], &["not finished"]);
    refuse(&["nothing", "--unseen"], &["no run.toml"]);
    refuse(
        &["run", "--unseen", "--query", "some text"],
        &["no [instructions]"],
    );
    refuse(&["run", "--query", "request"], &["no [instructions]"]);
    let old = read_json(&meta(&world));
    World::edit(&meta(&world), |meta| {
        meta["labels"] = serde_json::Value::Null
    });
    refuse(&["run", "--unseen"], &["task.json", "labels"]);
    write_json(&meta(&world), &old);
    World::edit(&meta(&world), |meta| {
        meta["type"] = "generation".into();
        meta["metric"] = "exact_match".into();
        meta["labels"] = serde_json::Value::Null;
    });
    let lines = std::fs::read_to_string(world.data("answer/train.jsonl")).expect("readable");
    for split in ["train", "validation", "test"] {
        let mut line: serde_json::Value =
            serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
        line["type"] = "generation".into();
        line["label"] = serde_json::Value::Null;
        line["id"] = format!("answer-{split}-0").into();
        write_json(&world.data(&format!("answer/{split}.jsonl")), &line);
    }
    refuse(&["run", "--unseen"], &["answer is generation"]);
    refuse(
        &["run", "--tasks", "answer"],
        &["the run's model is an encoder", "--unseen"],
    );
    for arguments in [&["--unseen", "--shots", "0"][..], &["--shots", "3"]] {
        let output = world.run(&[&["eval", "run"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

/// Known and unknown rows side by side: each has the result that it has alone.
#[test]
fn rows_of_known_and_unknown_tasks_share_a_batch() {
    use burn::tensor::Device;
    use molora_kernels::random::Seed;
    use molora_models::{Adaptable, Backbone, TaskModel};
    use molora_routing::Guidance;
    use molora_train::data::{Batch, Example, Target};
    use molora_train::model::inputs_for;

    let world = World::new();
    let device = Device::flex();
    let base = Backbone::from_folder(&world.path("model"), &device).expect("a model");
    let names = ["a", "b"].map(String::from);
    for name in ["samora", "at-moe", "moa", "phatgoose", "mosld", "hydralora"] {
        let mut recipe = small(name);
        if name == "at-moe" {
            *recipe.adapter.task_groups_mut().expect("it has groups") =
                [("all".into(), names.to_vec())].into();
        }
        let spec = recipe.resolve(&base, &names).expect("a recipe");
        let mut backbone = base.clone();
        backbone
            .attach(&spec, 2, Seed::new(3), &device)
            .expect("it fits");
        let model = TaskModel {
            backbone,
            heads: Vec::new(),
        }
        .valid();
        let row = |length: u32| Example {
            ids: (2..2 + length).collect(),
            type_ids: vec![0; length as usize],
            task: 0,
            target: Target::Class(0),
        };
        let rows = [row(3), row(7), row(5), row(4)];
        let tasks = [Some(1), None, Some(0), None];
        let states = |rows: &[&Example], tasks: &[Option<usize>]| {
            let batch = Batch::from_examples(rows);
            let (input, context) =
                inputs_for(&batch, tasks, 2, None, Guidance::default(), &device).expect("in range");
            let pooled = model.encode(&input, &context).0.into_data();
            pooled.iter::<f32>().collect::<Vec<f32>>()
        };
        let together = states(&rows.each_ref(), &tasks);
        let alone = rows.iter().zip(&tasks);
        let alone: Vec<f32> = alone
            .flat_map(|(row, &task)| states(&[row], &[task]))
            .collect();
        for (found, expected) in together.iter().zip(&alone) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{name}: {found} {expected}"
            );
        }
    }
}

#[test]
fn a_query_is_the_task_the_request_or_a_text() {
    let world = World::new();
    let run = train(&world, glider(&world, QuerySource::Task), "run");
    let routing = |query: Option<&Query>| {
        let options = EvalOptions {
            query,
            ..EvalOptions::default()
        };
        let found = evaluate_run_by(&run, &options, &mut |_| {});
        found.expect("a finished run").1
    };
    assert_eq!(routing(None), routing(Some(&Query::Task)));
    let texts = ["purr bark", "rain snow"].map(|text| routing(Some(&Query::Text(text.into()))));
    assert_ne!(texts[0], texts[1]);
    assert_ne!(routing(Some(&Query::Request)), routing(None));
    let unseen = |query: &Query| {
        let request = UnseenRequest {
            query: Some(query),
            ..UnseenRequest::default()
        };
        let report = measure(&run, &request);
        assert_eq!(report.query, Some(query.to_string()));
        report.tasks
    };
    assert_eq!(
        unseen(&Query::Task),
        unseen(&Query::Text("never w3".into()))
    );
    unseen(&Query::Request);
    World::edit(&world.data("answer/task.json"), |meta| {
        meta["instruction"] = "".into()
    });
    let expected = &["answer has no instruction"];
    assert_refused(
        &world,
        &["eval", "run", "--unseen"],
        "no instruction",
        expected,
    );
    let empty = &["eval", "run", "--query", " "];
    assert_refused(&world, empty, "an empty text", &["query is empty"]);
}

/// The largest difference of two weights.
fn distance(one: &RoutingReport, other: &RoutingReport) -> f64 {
    let weights = |report: &RoutingReport| {
        let sites = report.sites.iter();
        let rows = sites.flat_map(|site| site.weights.values().flatten().copied());
        rows.collect::<Vec<f64>>()
    };
    let (one, other) = (weights(one), weights(other));
    assert_eq!(one.len(), other.len());
    let differences = one
        .iter()
        .zip(&other)
        .map(|(one, other)| (one - other).abs());
    differences.fold(0.0, f64::max)
}

/// A recipe's `query = "request"` counts at the end of the training too.
#[test]
fn a_recipes_query_is_kept_from_training_to_evaluation() {
    let world = World::new();
    let run = train(&world, glider(&world, QuerySource::Request), "run");
    let (scores, routing) = evaluate_run(&run, None, None).expect("a finished run");
    let stored = |file: &str| read_json(&run.join(file));
    let scores = serde_json::to_value(&scores).expect("plain");
    assert_eq!(without_losses(scores), without_losses(stored("eval.json")));
    let kept: RoutingReport = serde_json::from_value(stored("routing.json")).expect("a report");
    assert!(distance(&routing, &kept) < 1e-5);
    let options = EvalOptions {
        query: Some(&Query::Task),
        ..EvalOptions::default()
    };
    let by_task = evaluate_run_by(&run, &options, &mut |_| {});
    let by_task = by_task.expect("a run").1;
    assert!(distance(&routing, &by_task) > 1e-3);
}

#[test]
fn the_global_weight_is_tuned_on_the_validation_split() {
    let world = World::new();
    for query in [QuerySource::Task, QuerySource::Request] {
        let mut recipe = glider(&world, query);
        let candidates = vec![0.0, 5.0];
        let tune = Transform::TuneGlobalWeight { candidates };
        recipe.stages.push(StageConfig::transform("tune", tune));
        let out = format!("{query:?}");
        let run = train(&world, recipe, &out);
        let names = ["pets", "weather"].map(String::from);
        let weight = Instructions::load(&run, &names).expect("a file").weight;
        assert!([0.0, 5.0].contains(&weight), "{weight}");
    }
}

#[test]
fn a_comparison_measures_tasks_that_it_held_out() {
    let world = World::new();
    let arguments = [
        "compare",
        "lora,samora",
        "--model",
        "model",
        "--data",
        "data",
        "--unseen",
        "answer",
        "--seeds",
        "1",
        "--steps",
        "4",
        "--set",
        "data.max_length=24",
        "--out",
        "both",
    ];
    let output = world.run(&arguments);
    assert!(output.status.success(), "{output:?}");
    let found = read_json(&world.path("both/compare.json"));
    assert_eq!(found["tasks"], serde_json::json!(["pets", "weather"]));
    let unseen = &found["unseen"];
    assert_eq!(unseen["tasks"], serde_json::json!(["answer"]));
    let stored = |recipe: &str| {
        let path = format!("both/runs/{recipe}-seed0/unseen.json");
        read_json(&world.path(&path))["tasks"]["answer"].clone()
    };
    for (number, recipe) in ["lora", "samora"].into_iter().enumerate() {
        let result = &unseen["recipes"][number];
        let accuracy = &stored(recipe)["run"]["score"]["accuracy"];
        assert_eq!(&result["mean_accuracy"]["mean"], accuracy, "{recipe}");
        let over_base = &result["over_base"]["mean_accuracy"];
        assert_eq!(
            over_base,
            &stored(recipe)["gain"]["mean_accuracy"],
            "{recipe}"
        );
    }
    assert_eq!(stored("lora")["base"], stored("samora")["base"]);
    let tables = std::fs::read_to_string(world.path("both/compare.md")).expect("tables");
    assert!(tables.contains("## Unseen tasks: test scores"), "{tables}");

    // The runs are kept, and one that was not measured yet is measured again.
    let steps = world.path("both/runs/samora-seed0/steps.jsonl");
    let before = std::fs::metadata(&steps)
        .expect("a file")
        .modified()
        .expect("a time");
    std::fs::remove_file(world.path("both/runs/samora-seed0/unseen.json")).expect("it was there");
    assert!(world.run(&arguments).status.success());
    assert_eq!(
        read_json(&world.path("both/compare.json"))["unseen"],
        *unseen
    );
    let after = std::fs::metadata(&steps)
        .expect("a file")
        .modified()
        .expect("a time");
    assert_eq!(before, after);

    let refuse = |unseen: &str, expected: &[&str]| {
        let arguments = [
            &arguments[..7],
            &[unseen, "--tasks", "pets", "--out", "other"],
        ]
        .concat();
        assert_refused(&world, &arguments, unseen, expected);
    };
    refuse("pets", &["in --tasks and in --unseen"]);
    refuse("anser", &["anser", "answer"]);
    let all = [&arguments[..7], &["pets,weather,answer", "--out", "other"]].concat();
    assert_refused(&world, &all, "all", &["leaves no task to train on"]);
}
