//! Runs of experts that were trained elsewhere.

use molora_testkit::assert_close;
use serde_json::Value;

use super::decoder::{Llama, logits};
use crate::world::{World, read_json, read_tensors, small};

fn done(world: &World, arguments: &[&str]) {
    let output = world.run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
}

/// Equal but for the last digits of numbers.
pub(super) fn assert_alike(found: &Value, expected: &Value, what: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            let keys =
                |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(found), keys(expected), "{what}");
            found
                .iter()
                .for_each(|(key, found)| assert_alike(found, &expected[key], what));
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{what}");
            let pairs = found.iter().zip(expected);
            pairs.for_each(|(found, expected)| assert_alike(found, expected, what));
        }
        (Value::Number(found), Value::Number(expected)) => {
            let number = |n: &serde_json::Number| n.as_f64().expect("finite");
            let gap = (number(found) - number(expected)).abs();
            assert!(gap < 1e-5, "{what}: {found} {expected}");
        }
        _ => assert_eq!(found, expected, "{what}"),
    }
}

/// Arguments that put the pool of a world's run together again.
fn pool<'a>(router: &'a str, out: &'a str) -> Vec<&'a str> {
    let mut arguments = vec!["assemble", "--base", "model", "--data", "data"];
    arguments.extend(["--expert", "answer=run/experts/answer"]);
    arguments.extend(["--expert", "pets=run/experts/pets"]);
    arguments.extend(["--expert", "weather=run/experts/weather"]);
    arguments.extend(["--router", router, "--out", out]);
    arguments
}

/// Experts, gates and heads of a run make the same run again.
#[test]
fn a_pool_makes_the_run_that_it_came_from() {
    for router in ["phatgoose", "glider"] {
        let world = World::new();
        world.train(&small(router), "run");
        done(&world, &pool(router, "again"));
        let tensors = |run: &str| {
            ["adapter_model.safetensors", "heads.safetensors"]
                .map(|file| read_tensors(&world.path(run).join(file)))
        };
        assert_eq!(tensors("again"), tensors("run"), "{router}");
        for file in ["eval.json", "predictions.json", "routing.json"] {
            let [found, expected] =
                ["again", "run"].map(|run| read_json(&world.path(run).join(file)));
            // The one was scored within its training, the other without gradients.
            assert_alike(&found, &expected, &format!("{router}: {file}"));
        }
        let output = world.run(&["eval", "again", "--json"]);
        let scores: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let run = read_json(&world.path("run/eval.json"));
        assert_eq!(scores["mean"], run["mean"], "{router}");
    }
}

#[test]
fn routers_train_on_given_experts() {
    let world = World::new();
    world.train(&small("phatgoose"), "run");
    let arguments = [pool("arrow", "again"), vec!["--steps", "6"]].concat();
    done(&world, &arguments);
    let again = read_tensors(&world.path("again/adapter_model.safetensors"));
    let before = read_tensors(&world.path("run/adapter_model.safetensors"));
    for (name, tensor) in &again {
        let is_expert = name.contains(".experts.");
        assert!(!is_expert || before[name] == *tensor, "{name} was frozen");
    }
    let heads = |run: &str| read_tensors(&world.path(run).join("heads.safetensors"));
    assert_eq!(heads("again"), heads("run"), "heads came with the experts");
    assert_eq!(read_json(&world.path("again/summary.json"))["steps"], 6);
}

/// Tensors of a run of the Llama.
fn tensors(world: &Llama) -> crate::world::Tensors {
    read_tensors(&world.path("run/adapter_model.safetensors"))
}

#[test]
fn unequal_ranks_and_targets_are_filled_up() {
    let world = Llama::new();
    world.assemble("arrow", &[]);
    let tensors = tensors(&world);
    let at = |site: &str, name: &str| {
        tensors[&format!("base_model.model.model.layers.0.{site}.{name}")].clone()
    };
    // Two experts of rank 4, the larger one, for 32 inputs.
    let (shape, a) = at("self_attn.q_proj", "experts.lora_A");
    assert_eq!(shape, [2, 4, 32]);
    assert!(
        a[7 * 32..].iter().all(|value| *value == 0.0),
        "`med` has rank 3"
    );
    let (_, b) = at("mlp.down_proj", "experts.lora_B");
    let (law, med) = b.split_at(b.len() / 2);
    assert!(law.iter().all(|value| *value == 0.0), "`law` is not there");
    assert!(med.iter().any(|value| *value != 0.0));
    let (_, directions) = at("mlp.down_proj", "router.prototypes");
    let norm = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
    let (law, med) = directions.split_at(directions.len() / 2);
    assert_eq!(norm(law), 0.0);
    assert!((norm(med) - 1.0).abs() < 1e-5);
}

/// With one expert every router gives it all the weight.
#[test]
fn one_expert_is_itself_under_any_router() {
    for router in ["arrow", "uniform", "glider"] {
        let world = Llama::new();
        let mut arguments = vec!["assemble", "--base", "base", "--expert", "med=med"];
        arguments.extend(["--router", router, "--out", "run"]);
        if router == "glider" {
            arguments.extend(["--instruction", "med=Answer medical questions."]);
        }
        world.done(&arguments);
        world.done(&["export", "run", "--expert", "med", "--out", "peft"]);
        let found = logits(&world.model(Some(&world.path("peft"))));
        let expected = logits(&world.model(Some(&world.path("med"))));
        assert_close(found, expected, 1e-5, router);
        let text = |source: &str| {
            let prompt = "w3 w17 w5 w80 w21";
            world.done(&[
                "generate",
                source,
                "--prompt",
                prompt,
                "--max-new-tokens",
                "12",
            ])
        };
        world.done(&["merge", "run", "--expert", "med", "--out", "merged"]);
        assert_eq!(text("run"), text("merged"), "{router}");
    }
}
