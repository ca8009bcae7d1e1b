//! `molora models`: every family that loads, as it describes itself.

use std::collections::BTreeSet;
use std::path::Path;

use molora_models::{Backbone, Family};
use molora_testkit::device;

use crate::world::{World, read_json};

/// What the program prints.
fn printed(arguments: &[&str]) -> String {
    let output = World::new().run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    assert_eq!(errors, "", "{arguments:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The `model_type` of every bundled model that loads.
fn loaded() -> BTreeSet<String> {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../molora-models/tests/golden");
    let folders = std::fs::read_dir(golden).expect("bundled");
    let folders = folders.map(|entry| entry.expect("an entry").path());
    let models = folders.filter(|folder| folder.join("model.safetensors").exists());
    let read = |folder: std::path::PathBuf| {
        Backbone::from_folder(&folder, &device()).expect("a whole model");
        let config = read_json(&folder.join("config.json"));
        config["model_type"].as_str().expect("a text").to_owned()
    };
    models.map(read).collect()
}

#[test]
fn every_family_that_loads_is_listed() {
    let text = printed(&["models"]);
    let listed: BTreeSet<String> = text
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    assert_eq!(listed, loaded());
    assert!(text.contains("sliding window in all layers"), "{text}");
}

#[test]
fn a_family_shows_its_fields_and_what_is_refused() {
    let text = printed(&["models", "--show", "mistral"]);
    for line in [
        "mistral: Mistral",
        "decoder, no biases, a sliding window in all layers",
        "train, merge, PEFT, generate, transformers, GGUF; --base-dtype f32, bf16, q8, q4",
        "  hidden_size                      needed  a whole number of at least 1",
        "  sliding_window                           a whole number of at least 1",
        "  attention_bias                   false or nothing: this family has no biases",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(text.contains("kv_lora_rank"), "{text}");
    for family in Family::all() {
        let name = family.about.model_type;
        printed(&["models", "--show", name]);
    }
    let output = World::new().run(&["models", "--show", "albert"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let words = "error: there is no family albert, expected one of bert, roberta";
    assert!(errors.starts_with(words), "{errors}");
}

/// The tables of the documentation say what the families say.
#[test]
fn the_documentation_has_the_same_words() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/adding-a-model.md");
    let page = std::fs::read_to_string(page).expect("documentation");
    for family in Family::all() {
        let about = family.about;
        let (models, name, special) = (about.models, about.model_type, about.special);
        let row = format!("| {models} | `{name}` | {special} |");
        assert!(page.contains(&row), "{row}");
    }
}
