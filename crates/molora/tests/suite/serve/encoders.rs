//! Vectors and classes of encoders.

use serde_json::{Value, json};

use super::client::Served;
use crate::world::{World, small};

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_f64)
        .collect()
}

#[test]
fn texts_become_vectors_of_length_one() {
    let world = World::new();
    let served = Served::start(world.program(&["serve", "model"]));
    let body = json!({"model": "model", "input": ["w0 purr", "w0 purr", "bark"]});
    let found = served.ask("/v1/embeddings", &body);
    let vectors: Vec<Vec<f64>> = (0..3)
        .map(|n| numbers(&found["data"][n]["embedding"]))
        .collect();
    let length: f64 = vectors[0].iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    assert_eq!(vectors[0], vectors[1]);
    assert_ne!(vectors[0], vectors[2]);
    assert!(found["usage"]["total_tokens"].as_u64().expect("a number") >= 5);
    // What Python's client asks for.
    let body = json!({"model": "model", "input": "w0 purr", "encoding_format": "base64"});
    let coded = served.ask("/v1/embeddings", &body)["data"][0]["embedding"].clone();
    let coded = coded.as_str().expect("a text").len();
    assert_eq!(coded, (vectors[0].len() * 4).div_ceil(3) * 4);
    let long = json!({"model": "model", "input": "w0 ".repeat(2000)});
    let answer = served.post("/v1/embeddings", &long);
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("tokens"), "{}", answer.body);
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    let answer = served.post(
        "/v1/completions",
        &json!({"model": "model", "prompt": "w0"}),
    );
    assert_eq!(answer.status, 400);
    assert!(
        answer.message().contains("writes no texts"),
        "{}",
        answer.body
    );
}

#[test]
fn texts_get_the_classes_that_predict_gives() {
    let world = World::new();
    let mut recipe = small("samora");
    recipe.set_total_steps(6);
    world.train(&recipe, "run");
    let served = Served::start(world.program(&["serve", "run"]));
    let texts = ["w0 purr w1", "bark w2", "w3"];
    std::fs::write(world.path("texts.txt"), texts.join("\n") + "\n").expect("writable");
    let arguments = ["predict", "run", "--task", "pets", "--input", "texts.txt"];
    let output = world.run(&arguments);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let body = json!({"model": "run:task=pets", "input": texts});
    let found = served.ask("/v1/classify", &body);
    for (index, line) in printed.lines().enumerate() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let entry = &found["data"][index];
        assert_eq!(entry["label"], line["label"]);
        let scores = line["scores"].as_object().expect("scores");
        for (place, label) in ["cat", "dog"].iter().enumerate() {
            let (value, expected) = (entry["probs"][place].as_f64(), scores[*label].as_f64());
            let far = value.expect("a number") - expected.expect("a number");
            assert!(far.abs() < 1e-5, "{entry} {line}");
        }
    }
    let records = json!([{"input": "w0", "input_b": "surely"}]);
    let body = json!({"model": "run:task=answer", "records": records});
    assert_eq!(
        served.ask("/v1/classify", &body)["data"][0]["num_classes"],
        2
    );
    let answer = served.post("/v1/classify", &json!({"model": "run", "input": "w0"}));
    assert!(
        answer.message().contains("run:task=weather"),
        "{}",
        answer.body
    );
}

/// The vectors of a model for two texts.
fn vectors(served: &Served, model: &str) -> Vec<Vec<f64>> {
    let body = json!({"model": model, "input": ["w0 purr w3", "bark"]});
    let found = served.ask("/v1/embeddings", &body);
    let data = found["data"].as_array().expect("a list");
    data.iter()
        .map(|entry| numbers(&entry["embedding"]))
        .collect()
}

/// The largest difference between two lists of vectors.
fn difference(found: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn a_runs_vectors_are_those_of_the_model_that_it_is_merged_into() {
    let world = World::new();
    let mut recipe = small("lora");
    recipe.set_total_steps(6);
    world.train(&recipe, "run");
    let output = world.run(&["merge", "run", "--out", "merged"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let served = Served::start(world.program(&["serve", "run", "merged", "model"]));
    let run = vectors(&served, "run");
    assert!(difference(&run, &vectors(&served, "merged")) < 1e-5);
    assert!(difference(&run, &vectors(&served, "model")) > 1e-3);
    // LoRA reads no tasks.
    assert_eq!(run, vectors(&served, "run:task=pets"));
    let long = json!({"model": "run", "input": "w0 ".repeat(2000)});
    let answer = served.post("/v1/embeddings", &long);
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
}

#[test]
fn a_task_is_told_to_gates_where_it_is_named() {
    let world = World::new();
    let mut recipe = small("samora");
    recipe.set_total_steps(6);
    world.train(&recipe, "run");
    let served = Served::start(world.program(&["serve", "run"]));
    let names = ["run", "run:task=pets", "run:task=answer"];
    let found = names.map(|name| vectors(&served, name));
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        let far = difference(&found[one], &found[other]);
        assert!(far > 1e-6, "{} {}: {far}", names[one], names[other]);
    }
    // Answers to classes leave no trace in those that follow.
    let body = json!({"model": "run:task=pets", "input": "purr"});
    served.ask("/v1/classify", &body);
    assert_eq!(vectors(&served, "run"), found[0]);
    let body = json!({"model": "run:task=none", "input": "purr"});
    assert_eq!(served.post("/v1/embeddings", &body).status, 404);
}

/// Routers that are guided by a text have no instruction of a task that nobody names.
#[test]
fn runs_that_are_guided_by_texts_give_vectors() {
    let world = World::new();
    for name in ["glider", "mocle"] {
        let mut recipe = small(name);
        recipe.set_total_steps(6);
        world.train(&recipe, name);
    }
    let served = Served::start(world.program(&["serve", "glider", "mocle"]));
    for name in ["glider", "glider:task=pets", "mocle", "mocle:task=pets"] {
        for vector in vectors(&served, name) {
            let length: f64 = vector.iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-5, "{name}: {length}");
        }
    }
}
