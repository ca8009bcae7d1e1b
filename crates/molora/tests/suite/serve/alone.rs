//! Experts and tasks as models of their own.

use std::ops::ControlFlow;

use molora_models::BaseDtype;
use molora_testkit::device;
use molora_train::base::AdapterFolder;
use molora_train::generate::Writer;
use serde_json::json;

use super::client::Served;
use super::texts::trained;
use crate::exchange::decoder::Llama;

/// An expert of a mixture writes what its adapter writes.
#[test]
fn an_expert_is_a_model_of_its_own() {
    let world = Llama::new();
    world.assemble("arrow", &[]);
    let sources = ["serve", "run", "law", "base", "--model", "base"];
    let served = Served::start(world.program(&sources));
    let list = served.get("/v1/models").json();
    let entries = list["data"].as_array().expect("models");
    let names: Vec<&str> = entries
        .iter()
        .filter_map(|model| model["id"].as_str())
        .collect();
    assert!(
        names.contains(&"run:expert=law") && names.contains(&"law"),
        "{names:?}"
    );
    let expert = entries
        .iter()
        .find(|model| model["id"] == "run:expert=law")
        .expect("listed");
    assert_eq!(
        (&expert["root"], &expert["parent"]),
        (&json!("run"), &json!("run"))
    );
    assert_eq!(&served.get("/v1/models/run:expert=law").json(), expert);
    let write = |model: &str| {
        let body = json!({"model": model, "prompt": "w3 w17 w5 w80", "max_tokens": 16,
            "temperature": 0});
        served.ask("/v1/completions", &body)["choices"][0]["text"].clone()
    };
    assert_eq!(write("run:expert=law"), write("law"));
    // The base has nothing of those that share its weights.
    let alone = [
        "generate",
        "base",
        "--raw",
        "--max-new-tokens",
        "16",
        "--prompt",
    ];
    let alone = world.done(&[&alone[..], &["w3 w17 w5 w80"]].concat());
    let beside = write("base");
    assert_eq!(alone.trim(), beside.as_str().expect("a text").trim());
    assert_ne!(beside, write("law"));
    let others = ["run", "run:expert=med"].map(write);
    assert!(others.iter().any(|other| *other != write("law")));
}

/// With a gate no weight of an expert is what it has alone.
#[test]
fn an_expert_that_is_not_itself_is_refused() {
    let world = trained("samora");
    let served = Served::start(world.program(&["serve", "run"]));
    let body = json!({"model": "run:expert=0", "prompt": "w0"});
    let answer = served.post("/v1/completions", &body);
    assert_eq!(answer.status, 400);
    assert!(
        answer
            .message()
            .contains("no expert of run can write alone"),
        "{}",
        answer.body
    );
    let body = json!({"model": "run:task=none", "prompt": "w0"});
    let answer = served.post("/v1/completions", &body);
    assert_eq!(answer.status, 404);
    assert!(
        answer.message().contains("run:task=pets"),
        "{}",
        answer.body
    );
}

/// What is read once is read no more: the file may even be gone.
#[test]
fn writers_on_one_base_share_its_weights() {
    let world = Llama::new();
    let base = world.path("base");
    let name = base.to_str().expect("UTF-8");
    let first = Writer::open(name, BaseDtype::F32, &device()).expect("the golden Llama");
    let law = AdapterFolder::find(&world.path("law"), Some(name), &mut |_| {
        ControlFlow::Continue(())
    });
    let law = law.expect("an adapter");
    std::fs::remove_file(base.join("model.safetensors")).expect("it was there");
    let open = |dtype: BaseDtype| Writer::open_beside(name, dtype, &device(), &[&first]);
    open(BaseDtype::F32).expect("the weights of the first");
    open(BaseDtype::Bf16).expect_err("other weights");
    let beside =
        |others: &[&Writer]| Writer::of_adapter_beside(&law, BaseDtype::F32, &device(), others);
    let adapted = beside(&[&first]).expect("the weights of the first");
    beside(&[&adapted]).expect("the weights of the first, without the adapter of another");
    beside(&[]).expect_err("no weights");
}
