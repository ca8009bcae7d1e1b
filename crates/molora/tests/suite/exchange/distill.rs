//! The nearest LoRA of a mixture.

use serde_json::Value;

use super::decoder::Llama;
use crate::world::{World, copy_folder, entries, read_json, small};

const FILES: [&str; 4] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "heads.safetensors",
    "manifest.json",
];

fn distill(world: &World, rank: &str) -> Value {
    let arguments = [
        "distill",
        "run",
        "--rank",
        rank,
        "--samples",
        "60",
        "--json",
    ];
    let output = world.run(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("one object")
}

fn errors(report: &Value) -> Vec<f64> {
    let sites = report["sites"].as_array().expect("a list");
    sites
        .iter()
        .map(|site| site["error"].as_f64().expect("a number"))
        .collect()
}

#[test]
fn a_larger_rank_fits_better_and_the_scores_are_those_of_the_run() {
    let world = World::new();
    world.train(&small("hydralora"), "run");
    let [one, four] = ["1", "4"].map(|rank| distill(&world, rank));
    let (rough, fine) = (errors(&one), errors(&four));
    assert_eq!(fine.len(), 16, "four layers of four sites");
    for (rough, fine) in rough.iter().zip(&fine) {
        assert!(fine < rough && *fine < 0.5, "{fine} < {rough}");
    }
    let run = read_json(&world.path("run/eval.json"));
    for (name, task) in four["tasks"].as_object().expect("by task") {
        assert_eq!(task["mixture"], run["tasks"][name]["value"], "{name}");
    }
    for site in four["sites"].as_array().expect("a list") {
        let held_out = site["held_out"].as_f64().expect("there is validation");
        assert!(held_out < 1.0, "{site}");
    }
    assert_eq!(entries(&world.path("run/distilled-4")), FILES);
    let output = world.run(&["distill", "run", "--rank", "0"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("--rank is 0, expected at least 1"),
        "{error}"
    );
}

/// The LoRA of a plain LoRA is that LoRA.
#[test]
fn a_lora_is_its_own_nearest() {
    let world = World::new();
    world.train(&small("lora"), "run");
    let report = distill(&world, "4");
    for error in errors(&report) {
        assert!(error < 5e-3, "{error}");
    }
    for task in report["tasks"].as_object().expect("by task").values() {
        assert_eq!(task["mixture"], task["lora"]);
    }
}

/// An exported adapter is fitted to what the run is fitted to.
#[test]
fn an_adapter_of_an_encoder_is_a_teacher() {
    let world = World::new();
    world.train(&small("lora"), "run");
    let of_run = distill(&world, "2");
    let done = |arguments: &[&str]| {
        let output = world.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        output.stdout
    };
    done(&["export", "run", "--out", "peft"]);
    let adapter = [
        "distill",
        "peft",
        "--rank",
        "2",
        "--samples",
        "60",
        "--data",
        "data",
    ];
    let given = [
        "--model",
        "model",
        "--json",
        "--tasks",
        "answer,pets,weather",
        "--set",
        "data.max_length=24",
    ];
    let report = done(&[&adapter[..], &given].concat());
    let report: Value = serde_json::from_slice(&report).expect("one object");
    for (found, expected) in errors(&report).iter().zip(errors(&of_run)) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    assert_eq!(report["tasks"], of_run["tasks"]);
    assert_eq!(entries(&world.path("peft/distilled-2")), FILES);
    std::fs::remove_file(world.path("peft/heads.safetensors")).expect("removable");
    let output = world.run(&[&adapter[..], &given, &["--out", "out"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("peft: has no heads.safetensors"), "{error}");
    for (more, why) in [
        (
            &["distill", "peft", "--rank", "2"][..],
            "peft is no run: give",
        ),
        (
            &["distill", "run", "--rank", "2", "--tasks", "pets"],
            "run: --tasks and --set are for",
        ),
    ] {
        let output = world.run(more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn an_adapter_of_a_decoder_is_a_teacher() {
    let world = Llama::new();
    for task in ["pets", "weather"] {
        let folder = world.path("data").join(task);
        copy_folder(&World::new().data(task), &folder);
    }
    let arguments = [
        "--data",
        "data",
        "--model",
        "base",
        "--json",
        "--samples",
        "8",
        "--set",
        "data.writing.max_length=48",
    ];
    let report = world.done(&[&["distill", "law", "--rank", "4"][..], &arguments].concat());
    let report: Value = serde_json::from_str(&report).expect("one object");
    assert_eq!(errors(&report).len(), 4, "q and v of two layers");
    for error in errors(&report) {
        assert!(error < 5e-3, "rank 4 is its own: {error}");
    }
    for task in report["tasks"].as_object().expect("by task").values() {
        assert_eq!(task["mixture"], task["lora"]);
    }
    let files = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ];
    assert_eq!(entries(&world.path("law/distilled-4")), files);
    let dora = [
        &["distill", "dora", "--rank", "4", "--out", "out"][..],
        &arguments,
    ]
    .concat();
    world.refused(&dora, &["dora: is a DoRA adapter", "molora merge"]);
}

/// A LoRA is fitted to single layers: experts that none has to itself are refused, not left out.
#[test]
fn experts_that_no_layer_has_to_itself_are_refused() {
    let world = World::new();
    for (name, why) in [
        (
            "mtlora",
            "its experts stand beside whole feed-forward parts",
        ),
        ("lily", "its layers share their experts"),
    ] {
        world.train(&small(name), name);
        let output = world.run(&["distill", name, "--rank", "2"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{name}");
        assert!(error.contains(why), "{name}: {error}");
    }
}
