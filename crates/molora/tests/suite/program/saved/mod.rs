//! Embeddings and heads that train whole beside the adapter: PEFT's `modules_to_save`.

mod files;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use molora_kernels::random::Seed;
use molora_models::peft::{PeftAdapter, attach};
use molora_models::{Adaptable, Backbone, BaseDtype, ParameterKind, SavedModule, load_adapter};
use molora_testkit::device;
use molora_train::recipe::{FinalState, Recipe};
use molora_train::run::{Request, train};

use super::{checkpointing, writer};
use crate::world::{
    Tensors, World, assert_same_run, read_json, read_tensors, resume_to_end, small, steps,
    train_until,
};
use SavedModule::{Embeddings, Head};

const TOLERANCE: f32 = 1e-5;
const TASKS: [&str; 2] = ["pets", "sums"];
const FRONT: &str = "base_model.model.";

/// A world, the request for a run in its folder `run`, the folder of the base, and the trained tables.
struct Case {
    world: World,
    request: Request,
    base: &'static str,
    tables: &'static [&'static str],
}

fn encoder(name: &str) -> Case {
    let world = World::new();
    let mut recipe = small(name);
    recipe.adapter.modules_to_save = vec![Embeddings];
    Case {
        request: world.request(recipe, "run"),
        world,
        base: "model",
        tables: &["embeddings.word_embeddings"],
    }
}

/// The base has one table for both.
fn decoder(name: &str, modules: &[SavedModule]) -> Case {
    let world = writer::world();
    let mut recipe = writer::recipe(name, 20);
    recipe.adapter.modules_to_save = modules.to_vec();
    Case {
        request: writer::request(&world, recipe, &TASKS, "run"),
        world,
        base: "writer",
        tables: match modules {
            [Embeddings] => &["model.embed_tokens"],
            [Head] => &["lm_head"],
            _ => &["model.embed_tokens", "lm_head"],
        },
    }
}

fn both(name: &str) -> [Case; 2] {
    [encoder(name), decoder(name, &[Embeddings, Head])]
}

impl Case {
    fn train(&self) {
        train(&self.request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    }

    fn tensors(&self, file: &str) -> Tensors {
        read_tensors(&self.world.path(file))
    }

    fn base(&self) -> Backbone {
        Backbone::from_folder(&self.world.path(self.base), &device()).expect("a model")
    }

    /// The model of the run.
    fn model(&self) -> Backbone {
        let (mut model, spec) = (self.base(), &self.request.recipe.adapter);
        model
            .attach(&spec.to_be_filled(), 3, Seed::new(0), &device())
            .expect("it fits");
        load_adapter(&self.world.path("run"), &mut model, spec).expect("its files");
        model
    }

    /// The base with an adapter in PEFT's files.
    fn adapted(&self, folder: &str) -> Backbone {
        let mut model = self.base();
        let adapter = PeftAdapter::open(&self.world.path(folder)).expect("an adapter");
        let adapter = adapter.resolve(&model).expect("of this model");
        attach(&mut model, &adapter);
        model
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.world.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn refused(&self, arguments: &[&str], words: &[&str]) {
        let output = self.world.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        let line = errors.lines().last().unwrap_or_default();
        for word in words {
            assert!(line.contains(word), "{word}: {errors}");
        }
        assert!(!self.world.path("out").exists(), "{arguments:?}");
    }
}

fn mean_loss(run: &Path, last: bool) -> f64 {
    let losses: Vec<f64> = steps(run).iter().map(|step| step.task_loss).collect();
    let part = match last {
        true => &losses[losses.len() - 5..],
        false => &losses[..5],
    };
    part.iter().sum::<f64>() / 5.0
}

#[test]
fn tables_train_and_the_base_stays_as_it_was() {
    for case in both("lora") {
        let file = format!("{}/model.safetensors", case.base);
        let before = case.tensors(&file);
        case.train();
        let run = case.world.path("run");
        assert!(
            mean_loss(&run, true) < mean_loss(&run, false),
            "{}",
            case.base
        );
        let saved = case.tensors("run/adapter_model.safetensors");
        let mut count = 0;
        for table in case.tables {
            let (shape, values) = &saved[&format!("{FRONT}{table}.weight")];
            // Tied tables begin alike.
            let name = format!("{table}.weight").replace("lm_head", "model.embed_tokens");
            assert_eq!(shape, &before[&name].0, "{table}");
            assert_ne!(values, &before[&name].1, "{table} did not change");
            count += values.len();
        }
        let counts = &read_json(&run.join("summary.json"))["parameters"];
        assert_eq!(counts["saved"], count);
        assert!(
            std::fs::read_to_string(run.join("report.html"))
                .expect("text")
                .contains("saved modules")
        );
        case.done(&["merge", "run", "--out", "merged", "--dtype", "f32"]);
        let merged = case.tensors("merged/model.safetensors");
        let targets: Vec<String> = case.model().site_paths();
        for (name, (_, values)) in &before {
            let path = name.trim_end_matches(".weight");
            let changes =
                targets.iter().any(|target| target == path) || case.tables.contains(&path);
            let is_same = merged[name].1 == *values;
            assert_ne!(is_same, changes, "{name}");
        }
        assert_eq!(before, case.tensors(&file));
        case.done(&["verify", "run"]);
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_bit_for_bit() {
    for name in ["lora", "samora"] {
        for mut case in both(name) {
            case.request.recipe.checkpoint.final_state = FinalState::Best;
            case.train();
            let whole = case.request.out.clone();
            case.request.out.set_file_name("stopped");
            for step in [3, 7] {
                case.request.force = true;
                train_until(&case.request, step);
                resume_to_end(&case.request.out);
                assert_same_run(&case.request.out, &whole);
            }
        }
    }
}

#[test]
fn layers_that_are_computed_again_give_the_same() {
    for name in ["lora", "samora", "hmora"] {
        for mut case in both(name) {
            case.request.recipe.set_total_steps(8);
            case.request.recipe.stages[0].micro_batch_size = 3;
            case.request.recipe.stages[0].neftune_alpha = 5.0;
            checkpointing::check(&mut case.request, name);
        }
    }
}

#[test]
fn micro_batches_give_the_losses_of_the_whole_batch() {
    for mut case in both("lora") {
        case.request.recipe.adapter.bank.dropout = 0.0;
        case.request.recipe.set_total_steps(8);
        let mut losses = Vec::new();
        for rows in [0, 3] {
            case.request.recipe.stages[0].micro_batch_size = rows;
            case.request.force = true;
            case.train();
            let run = case.world.path("run");
            losses.push(
                steps(&run)
                    .iter()
                    .map(|step| step.task_loss)
                    .collect::<Vec<_>>(),
            );
        }
        for (whole, cut) in losses[0].iter().zip(&losses[1]) {
            assert!((whole - cut).abs() < 1e-4, "{whole} {cut}");
        }
    }
}

#[test]
fn a_stage_says_whether_they_train_and_how_fast() {
    let case = encoder("lora");
    let table = format!("{FRONT}{}.weight", case.tables[0]);
    let trained = |change: &dyn Fn(&mut Recipe), out: &str| {
        let mut request = case.request.clone();
        change(&mut request.recipe);
        request.out.set_file_name(out);
        train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
        case.tensors(&format!("{out}/adapter_model.safetensors"))[&table].clone()
    };
    let base = &case.tensors("model/model.safetensors")["embeddings.word_embeddings.weight"];
    let still = trained(
        &|recipe| {
            let rates = &mut recipe.stages[0].optimizer.learning_rates;
            rates.insert(ParameterKind::Saved, 1e-30);
        },
        "still",
    );
    assert_eq!(still, *base);
    let mut request = case.request.clone();
    request.recipe.stages[0].trainable = vec![ParameterKind::Adapters, ParameterKind::Heads];
    let error = train(&request, &AtomicBool::new(false), &mut |_| {}).expect_err("refused");
    let expected =
        "adapter.modules_to_save trains in no stage: expected saved in a stage's trainable";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn a_base_of_fewer_bits_has_tables_in_f32_and_as_many_parameters() {
    let mut counts = Vec::new();
    for dtype in [BaseDtype::Bf16, BaseDtype::Q8, BaseDtype::Q4] {
        for mut case in both("lora") {
            case.request.base_dtype = dtype;
            case.request.recipe.set_total_steps(4);
            case.train();
            let saved = case.tensors("run/adapter_model.safetensors");
            let base = case.tensors(&format!("{}/model.safetensors", case.base));
            for table in case.tables {
                let name = format!("{table}.weight").replace("lm_head", "model.embed_tokens");
                let (_, values) = &saved[&format!("{FRONT}{table}.weight")];
                assert_ne!(values, &base[&name].1, "{dtype}");
                // Numbers of bf16 end with 16 bits of zero.
                assert!(values.iter().any(|value| value.to_bits() & 0xffff != 0));
            }
            case.done(&["verify", "run"]);
            let summary = std::fs::read(case.world.path("run/summary.json")).expect("readable");
            let summary: serde_json::Value = serde_json::from_slice(&summary).expect("JSON");
            counts.push(summary["parameters"]["base"].as_u64().expect("a count"));
        }
    }
    let [encoder, decoder] = [counts[0], counts[1]];
    assert_eq!(counts, [encoder, decoder].repeat(3));
}

#[test]
fn the_program_takes_them_as_a_text_and_counts_them() {
    let world = writer::world();
    let fixed = [
        "train", "lora", "--model", "writer", "--data", "texts", "--tasks", "pets",
    ];
    let more = [
        "--steps",
        "4",
        "--out",
        "run",
        "--set",
        "data.writing.max_length=40",
        "--set",
    ];
    let set = "adapter.modules_to_save=embed_tokens,head";
    let run = |last: &[&str]| {
        let output = world.run(&[&fixed[..], &more, &[set], last].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let dry = run(&["--dry-run"]);
    assert!(
        dry.contains("saved modules") && dry.contains("2,048"),
        "{dry}"
    );
    assert!(run(&[]).contains("saved modules"));
    let text = std::fs::read_to_string(world.path("run/run.toml")).expect("text");
    assert!(
        text.contains(r#"modules_to_save = ["embeddings", "head"]"#),
        "{text}"
    );
}
