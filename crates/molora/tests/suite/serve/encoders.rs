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
    let answer = served.post("/v1/embeddings", &json!({"model": "run", "input": "w0"}));
    assert_eq!(answer.status, 400);
}
