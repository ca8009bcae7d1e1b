//! What a run with trained tables is written as, begins with, and cannot be.

use std::sync::atomic::AtomicBool;

use molora_models::Backbone;
use molora_models::SavedModule::{Embeddings, Head};
use molora_testkit::{assert_close, device};
use molora_train::run::{evaluate_run, train};

use super::{TOLERANCE, both, decoder};
use crate::exchange::parity::output;
use crate::world::read_json;

#[test]
fn one_of_tied_tables_trains_alone() {
    for (module, trained, other) in [
        (Embeddings, "model.embed_tokens", "lm_head"),
        (Head, "lm_head", "model.embed_tokens"),
    ] {
        let case = decoder("lora", &[module]);
        let table = case.tensors("writer/model.safetensors")["model.embed_tokens.weight"].clone();
        case.train();
        case.done(&["merge", "run", "--out", "merged", "--dtype", "f32"]);
        let merged = case.tensors("merged/model.safetensors");
        assert_ne!(merged[&format!("{trained}.weight")], table);
        assert_eq!(merged[&format!("{other}.weight")], table);
        let config = read_json(&case.world.path("merged/config.json"));
        assert_eq!(config["tie_word_embeddings"], false);
        let merged = Backbone::from_folder(&case.world.path("merged"), &device());
        let merged = merged.expect("a whole model");
        assert_close(output(&merged), output(&case.model()), TOLERANCE, "merged");
    }
}

#[test]
fn what_is_exported_and_merged_computes_what_the_run_does() {
    for case in both("lora") {
        case.train();
        let expected = output(&case.model());
        let text = case.done(&["export", "run", "--out", "peft"]);
        let whole = format!(" and {} whole, ", {
            let mut tables = case.tables.to_vec();
            tables.sort_unstable_by_key(|table| *table == "lm_head");
            tables.join(", ")
        });
        assert!(text.contains(&whole), "{whole}: {text}");
        let config = read_json(&case.world.path("peft/adapter_config.json"));
        let mut listed = case.tables.to_vec();
        listed.sort_unstable();
        assert_eq!(config["modules_to_save"], serde_json::json!(listed));
        // A plain LoRA's own files are PEFT's already.
        let file = "adapter_model.safetensors";
        let [own, exported] = ["run", "peft"].map(|run| case.tensors(&format!("{run}/{file}")));
        assert_eq!(own, exported);
        for folder in ["peft", "run"] {
            assert_close(
                output(&case.adapted(folder)),
                expected.clone(),
                TOLERANCE,
                folder,
            );
        }
        case.done(&["merge", "run", "--out", "merged"]);
        case.done(&["merge", "peft", "--model", case.base, "--out", "again"]);
        for folder in ["merged", "again"] {
            let merged = Backbone::from_folder(&case.world.path(folder), &device());
            let merged = output(&merged.expect("a whole model"));
            assert_close(merged, expected.clone(), TOLERANCE, folder);
        }
        case.done(&["verify", "merged"]);
        case.done(&["verify", "peft"]);
        let scores = read_json(&case.world.path("run/eval.json"));
        let (again, _) = evaluate_run(&case.world.path("run"), None, None).expect("a finished run");
        for (task, score) in &again.tasks {
            assert_eq!(scores["tasks"][task]["value"], score.value, "{task}");
        }
    }
    let case = decoder("lora", &[Embeddings, Head]);
    case.train();
    case.done(&["export", "run", "--out", "peft"]);
    case.done(&["merge", "run", "--out", "merged"]);
    let write = |source: &[&str]| {
        let prompt = [
            "--prompt",
            "which ? w0 purr",
            "--raw",
            "--max-new-tokens",
            "6",
        ];
        case.done(&[&["generate"], source, &prompt].concat())
    };
    let expected = write(&["run"]);
    assert_eq!(write(&["merged"]), expected);
    assert_eq!(write(&["peft", "--model", "writer"]), expected);
}

#[test]
fn a_training_begins_with_tables() {
    for case in both("lora") {
        case.train();
        case.done(&["export", "run", "--out", "peft"]);
        for (from, out) in [("run", "next"), ("peft", "other")] {
            let mut request = case.request.clone();
            request.init = Some(case.world.path(from));
            request.out.set_file_name(out);
            let stage = &mut request.recipe.stages[0];
            stage.steps = 1;
            stage.optimizer.learning_rate = 1e-30;
            stage.optimizer.learning_rates.clear();
            train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
            let file = "adapter_model.safetensors";
            let [found, expected] = [out, "run"].map(|run| case.tensors(&format!("{run}/{file}")));
            assert_eq!(found, expected, "{from}");
        }
        let mut request = case.request.clone();
        request.recipe.adapter.modules_to_save.clear();
        request.out.set_file_name("refused");
        for (from, words) in [
            ("run", "in adapter.modules_to_save"),
            ("peft", case.tables[0]),
        ] {
            request.init = Some(case.world.path(from));
            let error = train(&request, &AtomicBool::new(false), &mut |_| {});
            let error = error.expect_err("other tables").to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}

#[test]
fn what_cannot_have_them_is_named() {
    let case = decoder("lora", &[Embeddings]);
    case.train();
    case.refused(
        &["export", "run", "--format", "gguf", "--out", "out"],
        &["holds a whole parameter of model.embed_tokens"],
    );
    case.refused(
        &["distill", "run", "--rank", "2", "--out", "out"],
        &[
            "trained its embeddings or head whole",
            "a distilled LoRA would leave that out",
        ],
    );
    case.done(&["export", "run", "--out", "peft"]);
    case.done(&["export", "run", "--out", "again"]);
    let words = ["holds model.embed_tokens whole, which has no weighted sum"];
    let how = ["--how", "ties", "--out", "out"];
    case.refused(&[&["combine", "run", "again"], &how[..]].concat(), &words);
    let folders = ["combine", "peft", "again", "--base", "writer"];
    case.refused(&[&folders[..], &how].concat(), &words);
    let assemble = [
        "assemble", "--base", "writer", "--expert", "a=peft", "--out", "out",
    ];
    case.refused(
        &[&assemble[..], &["--router", "uniform"]].concat(),
        &["changes model.embed_tokens in a way that cannot be one of several experts"],
    );
    case.refused(
        &["add-expert", "run", "--task", "sky"],
        &["its embeddings or head train whole, for all tasks in common"],
    );
    let set = "adapter.modules_to_save=embeddings";
    let fixed = [
        "--model", "writer", "--data", "texts", "--out", "out", "--set",
    ];
    for (recipe, set, words) in [
        (
            "moa",
            set,
            "experts that train alone stand on one base model",
        ),
        (
            "lora",
            "adapter.modules_to_save=norm",
            "unknown variant `norm`",
        ),
        (
            "lora",
            "adapter.modules_to_save=head,head",
            "names head twice",
        ),
    ] {
        case.refused(&[&["train", recipe], &fixed[..], &[set]].concat(), &[words]);
    }
    let fixed = ["--model", "model", "--data", "data", "--out", "out"];
    let fixed = [&fixed[..], &["--set", "data.max_length=24", "--set"]].concat();
    case.refused(
        &[
            &["train", "lora"],
            &fixed[..],
            &["adapter.modules_to_save=head"],
        ]
        .concat(),
        &["adapter.modules_to_save has head, expected embeddings alone"],
    );
    let poly = decoder("poly", &[Embeddings]);
    poly.train();
    poly.refused(
        &["export", "run", "--out", "out"],
        &["its embeddings or head train whole (adapter.modules_to_save)"],
    );
}
