//! Runs of methods that PEFT has too, as its own adapters.

use std::sync::atomic::AtomicBool;

use molora_models::peft::{Lily, PeftAdapter, XLora, open_poly};
use molora_models::{Backbone, Composition, PoolConfig, PoolWeights};
use molora_testkit::{assert_close, device};
use molora_train::recipe::Recipe;
use molora_train::run::train;

use super::assemble::assert_alike;
use super::decoder::{Llama, golden, logits, tokenizer};
use crate::program::writer;
use crate::world::{World, copy_folder, entries, read_json, small, write_json};

const LORA: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
const MANIFEST: &str = "manifest.json";

fn done(world: &World, arguments: &[&str]) -> String {
    let output = world.run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn refused(world: &World, arguments: &[&str], words: &[&str]) {
    let output = world.run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    for word in words {
        assert!(errors.contains(word), "{word}: {errors}");
    }
    assert!(!world.path("out").exists(), "{arguments:?}");
}

fn written(recipe: Recipe) -> World {
    let world = writer::world();
    let request = writer::request(&world, recipe, &["pets", "sky"], "run");
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    world
}

fn base(world: &World, name: &str) -> Backbone {
    Backbone::from_folder(&world.path(name), &device()).expect("a whole model")
}

/// Imports `out`, which the run `run` was exported to: it is scored as the run was.
fn imported(world: &World, base: &str, data: &str, tasks: &[&str]) {
    let mut arguments = vec![
        "import", "out", "--base", base, "--data", data, "--out", "again",
    ];
    for task in tasks {
        arguments.extend(["--task", task]);
    }
    done(world, &arguments);
    for file in ["eval.json", "predictions.json"] {
        let [found, expected] = ["again", "run"].map(|run| read_json(&world.path(run).join(file)));
        assert_alike(&found, &expected, file);
    }
}

#[test]
fn polytropon_with_the_heads_of_an_encoder() {
    let world = World::new();
    world.train(&small("poly"), "run");
    let text = done(&world, &["export", "run", "--out", "out"]);
    assert!(
        text.contains("out: PolyTropon's skills of rank 4 on 16 modules"),
        "{text}"
    );
    assert!(text.contains("task_ids"), "{text}");
    let files = [LORA[0], LORA[1], "heads.safetensors", MANIFEST];
    assert_eq!(entries(&world.path("out")), files);
    imported(&world, "model", "data", &["answer", "pets", "weather"]);
    let tasks = open_poly(&world.path("out"), &base(&world, "model")).expect("its own files");
    assert_eq!(tasks.len(), 3);
    // A name is a folder, as for every adapter.
    done(
        &world,
        &["export", "run", "--name", "mine", "--out", "named"],
    );
    assert_eq!(entries(&world.path("named")), ["mine"]);
    assert_eq!(entries(&world.path("named/mine")), files);
}

#[test]
fn x_lora_with_a_folder_for_each_expert() {
    let world = written(writer::recipe("x-lora", 20));
    let text = done(&world, &["export", "run", "--out", "out"]);
    assert!(
        text.contains("out: an X-LoRA of rank 4 on 14 modules"),
        "{text}"
    );
    assert!(text.contains("README.md"), "{text}");
    assert_eq!(
        entries(&world.path("out")),
        ["0", "1", "README.md", LORA[0], LORA[1], MANIFEST]
    );
    let config = read_json(&world.path("out").join(LORA[0]));
    for number in ["0", "1"] {
        let path = world.path("out").join(number);
        assert_eq!(entries(&path), LORA);
        assert_eq!(config["adapters"][number], path.to_str().expect("UTF-8"));
    }
    imported(&world, "writer", "texts", &["pets", "sky"]);
    // After the folder has moved its own LoRAs are found.
    std::fs::rename(world.path("out"), world.path("moved")).expect("renamed");
    let xlora = XLora::open(&world.path("moved")).expect("its own files");
    let folders = xlora.expert_folders().expect("in the folder itself");
    assert_eq!(
        folders,
        ["0", "1"].map(|number| world.path("moved").join(number))
    );
    // One expert and a run's own name for it stay a LoRA.
    done(
        &world,
        &["export", "run", "--expert", "sky", "--out", "expert"],
    );
    assert_eq!(entries(&world.path("expert")), [LORA[0], LORA[1], MANIFEST]);
}

#[test]
fn x_lora_that_peft_cannot_load_is_refused() {
    let world = World::new();
    world.train(&small("x-lora"), "run");
    let words = [
        "no adapter of PEFT computes what this run does",
        "only for models whose layers are named model.layers",
        "molora export run --expert",
    ];
    refused(&world, &["export", "run", "--out", "out"], &words);
}

#[test]
fn lily_where_peft_mixes_alike() {
    let world = World::new();
    let mut recipe = small("lily");
    world.train(&recipe, "run");
    let words = [
        "no adapter of PEFT computes what this run does",
        "the mean over all tokens of the batch",
        "adapter.composition.pool.weights is per_token, expected released",
    ];
    refused(&world, &["export", "run", "--out", "out"], &words);
    recipe.adapter.composition = Composition::Pool(PoolConfig {
        stride: 2,
        weights: PoolWeights::Released,
    });
    std::fs::remove_dir_all(world.path("run")).expect("the first run goes");
    world.train(&recipe, "run");
    let text = done(&world, &["export", "run", "--out", "out"]);
    assert!(
        text.contains("out: a Lily of rank 4 on 16 modules"),
        "{text}"
    );
    assert!(text.contains("without padding"), "{text}");
    imported(&world, "model", "data", &["answer", "pets", "weather"]);
    let lily = Lily::open(&world.path("out")).expect("its own files");
    let spec = lily.spec(&base(&world, "model")).expect("of this model");
    assert_eq!(spec.composition, recipe.adapter.composition);
}

#[test]
fn arrow_as_folders_with_its_numbers() {
    let world = Llama::new();
    world.assemble("arrow", &["--top-k", "1"]);
    let text = world.done(&["export", "run", "--out", "out"]);
    assert!(
        text.contains("out: LoRAs for PEFT's Arrow of rank 4 on 14 modules"),
        "{text}"
    );
    let files = ["README.md", "law", MANIFEST, "med"];
    assert_eq!(entries(&world.path("out")), files);
    let readme = std::fs::read_to_string(world.path("out/README.md")).expect("written");
    assert!(readme.contains("top_k=1, router_temperature=1"), "{readme}");
    for name in ["law", "med"] {
        let found = world.path("out").join(name);
        let adapter = PeftAdapter::open(&found).expect("a LoRA");
        // PEFT wants the same rank for all.
        assert_eq!(adapter.config().rank, 4, "{name}");
        let [found, expected] = [found, world.path(name)];
        let [found, expected] = [found, expected].map(|path| logits(&world.model(Some(&path))));
        assert_close(found, expected, 1e-5, name);
    }
}

/// The base of what PEFT wrote, with a tokenizer, and one of its folders.
fn of_peft(case: &str) -> Llama {
    let world = Llama::new();
    let root = golden("../golden_peft_methods");
    copy_folder(&root.join("base"), &world.path("tiny"));
    write_json(&world.path("tiny/tokenizer.json"), &tokenizer(32));
    copy_folder(&root.join(case), &world.path(case));
    world
}

/// A prompt for the tiny model, with so many words that experts show.
fn writes(world: &Llama, run: &str) -> String {
    world.done(&[
        "generate",
        run,
        "--prompt",
        "w3 w17 w5",
        "--max-new-tokens",
        "8",
    ])
}

#[test]
fn what_peft_wrote_becomes_a_run() {
    for (case, router, more) in [
        ("xlora-layers", "x-lora", &[][..]),
        ("arrow", "arrow", &[]),
        ("lily", "lily", &[]),
        ("poly-2", "poly", &["--task", "1"]),
    ] {
        let world = of_peft(case);
        let folder = format!("{case}/adapter");
        let text = world.done(&["import", &folder, "--base", "tiny", "--out", "run"]);
        assert!(
            text.contains("run: 3 experts") || case == "poly-2",
            "{text}"
        );
        let run = std::fs::read_to_string(world.path("run/run.toml")).expect("written");
        assert!(
            run.contains(&format!("name = \"{router}\"")),
            "{case}: {run}"
        );
        world.done(&[&["generate", "run", "--prompt", "w3 w17 w5"][..], more].concat());
        // What is written again is what was read.
        world.done(&["export", "run", "--out", "out"]);
        let mut again = vec!["import", "out"];
        let experts = ["task_0", "task_1", "task_2"].map(|name| format!("{name}=out/{name}"));
        if case == "arrow" {
            again = vec!["assemble", "--router", "arrow", "--top-k", "2"];
            again.extend(experts.iter().flat_map(|expert| ["--expert", expert]));
            // `assemble` has no option for it.
            assert!(run.contains("temperature = 0.5"), "{run}");
            let other = run.replace("temperature = 0.5", "temperature = 1.0");
            std::fs::write(world.path("run/run.toml"), other).expect("writable");
        }
        again.extend(["--base", "tiny", "--out", "again"]);
        world.done(&again);
        assert_eq!(writes(&world, "again"), writes(&world, "run"), "{case}");
    }
}

#[test]
fn what_cannot_be_imported_says_why() {
    let world = of_peft("xlora");
    let refused = |folder: &str, more: &[&str], words: &[&str]| {
        let common = ["import", folder, "--base", "tiny", "--out", "out"];
        world.refused(&[&common[..], more].concat(), words);
    };
    refused("law", &[], &["law: is a LoRA", "molora assemble"]);
    let words = ["has 2 tasks (--task), and 1 are given"];
    refused("xlora/adapter", &["--task", "law"], &words);
    let words = ["has 2 LoRAs (--expert), and 1 are given"];
    refused("xlora/adapter", &["--expert", "xlora/experts/0"], &words);
    // Without the LoRAs' own folders there is only what PEFT has lost layers of.
    std::fs::rename(world.path("xlora/experts"), world.path("elsewhere")).expect("renamed");
    let words = [
        "0/adapter_model.safetensors",
        "name the folder that the LoRA came from",
    ];
    refused("xlora/adapter", &[], &words);
    let experts = ["--expert", "elsewhere/0", "--expert", "elsewhere/1"];
    let common = ["import", "xlora/adapter", "--base", "tiny", "--out", "run"];
    world.done(&[&common[..], &experts].concat());
    World::edit(&world.path("xlora/adapter").join(LORA[0]), |config| {
        config["use_trainable_adapters"] = true.into();
    });
    refused("xlora/adapter", &[], &["use_trainable_adapters is true"]);
    World::edit(&world.path("xlora/adapter").join(LORA[0]), |config| {
        config["peft_type"] = "IA3".into();
    });
    refused("xlora/adapter", &[], &["peft_type is \"IA3\""]);
}
