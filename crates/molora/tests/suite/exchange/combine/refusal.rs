//! What cannot be merged, in one line each.

use crate::world::World;

use super::super::decoder::Llama;
use super::world;

/// `combine` of some experts, with `--how cat` unless it says otherwise, is refused with these words.
fn refuse(world: &Llama, experts: &[&str], more: &[&str], words: &str) {
    let mut arguments = vec!["combine"];
    arguments.extend(experts);
    arguments.extend(["--base", "base", "--out", "out"]);
    if !more.contains(&"--how") {
        arguments.extend(["--how", "cat"]);
    }
    arguments.extend(more);
    world.refused(&arguments, &[words]);
}

#[test]
fn an_expert_counts_once() {
    let world = world();
    refuse(
        &world,
        &["law", "other", "./law"],
        &[],
        "./law: is given twice",
    );
    for how in ["svd", "ties"] {
        refuse(
            &world,
            &["law", "law"],
            &["--how", how],
            "law: is given twice",
        );
    }
}

#[test]
fn options_and_folders_that_cannot_be_combined() {
    let world = world();
    std::fs::create_dir(world.path("empty")).expect("a new folder");
    let refused =
        |experts: &[&str], more: &[&str], words: &str| refuse(&world, experts, more, words);
    let both = ["law", "other"];
    refused(&["law", "nowhere"], &[], "nowhere");
    refused(
        &["law", "empty"],
        &[],
        "empty: is no run and has no adapter_config.json",
    );
    refused(
        &["law", "base/config.json"],
        &[],
        "base/config.json: is no run",
    );
    refused(&["law", "dora"], &[], "dora: is a DoRA adapter");
    for (more, words) in [
        (
            vec!["--weights", "1"],
            "combine --how cat: --weights are 1 for 2 experts, expected one for each",
        ),
        (
            vec!["--weights", "1,nan"],
            "--weights has NaN, expected finite numbers",
        ),
        (vec!["--density", "0.5"], "reads no --density"),
        (vec!["--sign", "total"], "elects no --sign"),
        (vec!["--rank", "2"], "reads no --rank"),
        (
            vec!["--how", "svd", "--rank", "0"],
            "--rank is 0, expected at least 1",
        ),
        (
            vec!["--how", "ties", "--density", "1.5"],
            "--density is 1.5, expected a number above 0 and up to 1",
        ),
        (vec!["--steps", "3"], "reads no --steps"),
        (
            vec!["--how", "svd", "--rank", "2", "--weights", "1e39,1e39"],
            "what law and other add to model.layers.0.",
        ),
        (
            vec!["--weights", "1e39,1e39"],
            "is beyond the range of f32 under these weights; make --weights smaller",
        ),
        (vec!["--shots", "3"], "reads neither --shots nor --exclude"),
        (
            vec!["--how", "r-mtllmf"],
            "learns from records of tasks: give --data",
        ),
        (
            vec!["--how", "r-mtllmf", "--data", "x", "--shots", "0"],
            "--shots is 0, expected at least 1",
        ),
        (
            vec!["--how", "r-mtllmf", "--data", "x", "--exclude", "regex:("],
            "regex:(",
        ),
        (
            vec!["--how", "wemoe"],
            "learns from records of tasks: give --data",
        ),
        (
            vec!["--how", "wemoe", "--data", "x", "--whole"],
            "makes a run, which is no whole model",
        ),
        (
            vec!["--how", "e-wemoe", "--data", "x", "--weights", "1,1"],
            "learns its weights",
        ),
        (
            vec!["--how", "adamerging"],
            "learns from records of tasks: give --data",
        ),
        (
            vec!["--how", "concrete", "--data", "x", "--steps", "0"],
            "--steps is 0, expected at least 1",
        ),
        (
            vec!["--how", "adamerging", "--data", "x", "--weights", "1,2"],
            "learns its weights",
        ),
        (
            vec!["--how", "concrete", "--data", "x", "--density", "0.1"],
            "reads no --density",
        ),
        (
            vec!["--how", "dare", "--density", "0"],
            "--density is 0, expected",
        ),
        (
            vec!["--how", "svd", "--rank", "2", "--whole"],
            "--whole asks for a whole model",
        ),
    ] {
        refused(&both, &more, words);
    }
}

#[test]
fn experts_that_do_not_fit_each_other() {
    let world = world();
    let refused =
        |experts: &[&str], more: &[&str], words: &str| refuse(&world, experts, more, words);
    for (how, advice) in [
        ("linear", "--how cat or svd take any"),
        ("ties", "--rank R works on the deltas"),
    ] {
        let words =
            ["sums factors, and at model.layers.0.self_attn.q_proj law has rank 4 but med 3"];
        refused(&["law", "med"], &["--how", how], words[0]);
        refused(&["law", "med"], &["--how", how], advice);
    }
    World::edit(&world.path("med/adapter_config.json"), |config| {
        config["base_model_name_or_path"] = "org/other".into();
    });
    let words = "med: belongs to the base model org/other, but expert law to golden/llama";
    refused(&["law", "med"], &[], words);
    let words = ["base: exists already and is not empty"];
    world.refused(
        &[
            "combine", "law", "--how", "cat", "--base", "base", "--out", "base",
        ],
        &words,
    );
    World::edit(&world.path("law/adapter_config.json"), |config| {
        config["base_model_name_or_path"] = serde_json::Value::Null;
    });
    let words = ["law: does not say of which base model it is: give that with --base"];
    world.refused(&["combine", "law", "--how", "cat", "--out", "out"], &words);
    world.refused(
        &[
            "combine", "other", "--how", "cat", "--base", "none", "--out", "out",
        ],
        &["none", "org/name on the Hub"],
    );
}

#[test]
fn a_mixture_is_no_expert() {
    let world = Llama::new();
    world.assemble("arrow", &[]);
    let words = [
        "no single LoRA computes what this mixture does",
        "molora export run --expert",
    ];
    world.refused(&["combine", "run", "--how", "cat", "--out", "out"], &words);
}
