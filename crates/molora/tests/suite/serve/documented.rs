//! The OpenAPI document, against what the server reads.

use serde_json::{Map, Value, json};

use super::client::Served;
use super::texts::trained;
use crate::world::{World, small};

/// The properties of a schema, those of its parts included.
fn properties(document: &Value, schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(place) = schema["$ref"].as_str() {
        let schema = document.pointer(place.trim_start_matches('#'));
        return properties(document, schema.expect(place));
    }
    let own = schema["properties"].as_object().into_iter().flatten();
    found.extend(own.map(|(name, _)| name.clone()));
    for part in schema["allOf"].as_array().into_iter().flatten() {
        found.extend(properties(document, part));
    }
    found
}

/// Sends every field that the document describes of a path's body: none is unknown.
fn all_are_read(served: &Served, path: &str, model: &str, needed: Value) {
    let document: Value = serde_json::from_str(&served.get("/openapi.json").body).expect("JSON");
    let body = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"];
    let names = properties(&document, &body["schema"]);
    assert!(names.len() >= 2, "{path}: {document:#}");
    let mut request: Map<String, Value> = names
        .iter()
        .map(|name| (name.clone(), Value::Null))
        .collect();
    request.insert("model".into(), model.into());
    request.extend(needed.as_object().expect("an object").clone());
    request
        .entry("max_tokens")
        .and_modify(|most| *most = 2.into());
    let answer = served.post(path, &request.into());
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
}

#[test]
fn fields_of_texts_are_read() {
    let world = trained("samora");
    let served = Served::start(world.program(&["serve", "run"]));
    all_are_read(&served, "/v1/completions", "run", json!({"prompt": "w1"}));
    all_are_read(&served, "/tokenize", "run", json!({"prompt": "w1"}));
    all_are_read(&served, "/detokenize", "run", json!({"tokens": [1]}));
}

#[test]
fn fields_of_encoders_are_read() {
    let world = World::new();
    let mut recipe = small("lora");
    recipe.set_total_steps(4);
    world.train(&recipe, "run");
    let served = Served::start(world.program(&["serve", "run", "model"]));
    all_are_read(&served, "/v1/embeddings", "model", json!({"input": "w1"}));
    let listed: Value = serde_json::from_str(&served.get("/v1/models").body).expect("JSON");
    let models = listed["data"].as_array().expect("a list").iter();
    let task = models
        .filter_map(|model| model["id"].as_str())
        .find(|name| name.contains(":task="));
    all_are_read(
        &served,
        "/v1/classify",
        task.expect("a task"),
        json!({"input": "w1"}),
    );
}
