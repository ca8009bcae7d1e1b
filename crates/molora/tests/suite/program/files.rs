//! What a run leaves behind, whether it learned, and whether a fresh process agrees.

use std::path::Path;

use molora_train::recipe;
use molora_train::recipe::StageConfig;
use serde_json::Value;

use crate::world::{LAYERS, World, own_files, read_json, read_tensors, run_files, small, steps};

/// Runs the program's `eval --json` and returns what it printed.
fn eval_json(world: &World, run: &Path, more: &[&str]) -> Value {
    let run = run.to_str().expect("UTF-8");
    let output = world.run(&[&["eval", run, "--json"], more].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[test]
fn every_recipe_learns_and_a_fresh_process_gives_its_scores() {
    for name in recipe::names() {
        let world = World::new();
        let mut recipe = small(name);
        let trains = |stage: &&mut StageConfig| stage.transform.is_none();
        for stage in recipe.stages.iter_mut().filter(trains) {
            stage.steps = 90;
            stage.optimizer.learning_rate = 5e-3;
        }
        let run = world.train(&recipe, "run");
        assert_eq!(own_files(&run), run_files(name), "{name}");

        let steps = steps(&run);
        let mean = |part: &[molora_train::report::StepRecord]| {
            part.iter().map(|step| step.loss).sum::<f64>() / part.len() as f64
        };
        // A stage may begin with another task or model, so each is looked at alone.
        let stage: Vec<_> = steps
            .iter()
            .filter(|step| step.stage == steps[0].stage)
            .cloned()
            .collect();
        assert_eq!(stage.len(), 90, "{name}");
        if stage[0].expert.is_none() {
            let (first, last) = (mean(&stage[..15]), mean(&stage[75..]));
            assert!(last < 0.7 * first, "{name}: loss {first} became {last}");
        }

        let written = read_json(&run.join("eval.json"));
        let pets = &written["tasks"]["pets"];
        assert!(pets["value"].as_f64() >= Some(0.85), "{name}: {written}");
        assert_eq!(pets["n"], 24);

        let found = eval_json(&world, &run, &[]);
        for task in ["answer", "pets", "weather"] {
            for key in ["metric", "value", "n", "accuracy"] {
                let (found, expected) = (&found["tasks"][task][key], &written["tasks"][task][key]);
                assert!(
                    !found.is_null() && found == expected,
                    "{name}: {task}.{key} is {found}"
                );
            }
        }
        assert_eq!(found["mean"], written["mean"], "{name}");
        let keys: Vec<&String> = found.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["mean", "mean_accuracy", "split", "tasks"]);
        let data = world.path("data");
        let there = eval_json(&world, &run, &["--data", data.to_str().expect("UTF-8")]);
        assert_eq!(there, found);
    }
}

#[test]
fn a_plain_lora_has_the_files_of_peft() {
    let world = World::new();
    let run = world.train(&small("lora"), "run");
    let config = read_json(&run.join("adapter_config.json"));
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(
        (&config["r"], &config["lora_alpha"]),
        (&4.into(), &16.into())
    );
    let targets = serde_json::json!(["query", "key", "value", "attention.output.dense"]);
    assert_eq!(config["target_modules"], targets);
    assert_eq!(
        (&config["bias"], &config["fan_in_fan_out"]),
        (&"none".into(), &false.into())
    );
    let tensors = read_tensors(&run.join("adapter_model.safetensors"));
    assert_eq!(tensors.len(), 2 * 4 * LAYERS, "A and B of four sites");
    for site in ["self.query", "self.key", "self.value", "output.dense"] {
        for layer in 0..LAYERS {
            let path = format!("base_model.model.encoder.layer.{layer}.attention.{site}");
            assert_eq!(tensors[&format!("{path}.lora_A.weight")].0, [4, 32]);
            assert_eq!(tensors[&format!("{path}.lora_B.weight")].0, [32, 4]);
        }
    }
}

#[test]
fn a_mixture_has_files_that_peft_refuses_by_their_type() {
    let world = World::new();
    let run = world.train(&small("samora"), "run");
    let config = read_json(&run.join("adapter_config.json"));
    assert_eq!(config["peft_type"], "MOLORA");
    let tensors = read_tensors(&run.join("adapter_model.safetensors"));
    let path = "base_model.model.encoder.layer.0.attention.self.query";
    assert_eq!(tensors[&format!("{path}.experts.lora_A")].0, [1, 4, 32]);
    assert_eq!(tensors[&format!("{path}.experts.lora_B")].0, [3, 32, 4]);
    assert_eq!(tensors[&format!("{path}.router.keys")].0, [3, 4]);
    let heads = read_tensors(&run.join("heads.safetensors"));
    assert_eq!(heads["weather.weight"].0, [3, 32]);
    assert_eq!(heads["answer.bias"].0, [2]);
}

#[test]
fn the_program_prints_task_by_task_and_parameters() {
    let world = World::new();
    let set = [
        "--set",
        "adapter.bank.rank=4",
        "--set",
        "data.max_length=24",
    ];
    let arguments = [
        "train", "samora", "--model", "model", "--data", "data", "--steps", "5",
    ];
    let output = world.run(&[&arguments[..], &set].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(
        errors.contains("step 5/5"),
        "plain lines without a terminal: {errors}"
    );
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    for text in [
        "answer", "pets", "weather", "accuracy", "24", "routers", "gates", "heads",
    ] {
        assert!(table.contains(text), "{text} is missing in {table}");
    }
    assert_eq!(own_files(&world.path("runs/samora")), run_files("samora"));
}

#[test]
fn some_of_the_tasks_can_be_chosen() {
    let world = World::new();
    let mut request = world.request(small("samora"), "run");
    request.tasks = Some(vec!["weather".into(), "pets".into()]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    molora_train::run::train(&request, &stop, &mut |_| {}).expect("a whole run");
    let found = eval_json(&world, &request.out, &[]);
    let names: Vec<&String> = found["tasks"]
        .as_object()
        .expect("an object")
        .keys()
        .collect();
    assert_eq!(names, ["pets", "weather"]);
    assert_eq!(
        found["mean"],
        read_json(&request.out.join("eval.json"))["mean"]
    );
}
