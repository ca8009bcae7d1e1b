//! Runs on models of every family that writes: stopped and not, in few bits, merged, exported and asked.

use std::sync::atomic::AtomicBool;

use molora_models::{BaseDtype, Family, FamilyKind};
use molora_testkit::golden::MOLORA_GOLDEN;
use molora_train::Recipe;
use molora_train::run::{Request, train};

use super::families::{ENCODER_DECODERS, about, done, golden, targets, writing_world};
use super::writer;
use crate::world::{World, assert_same_run, entries, resume_to_end, train_until};

/// Bundled cases of decoders, one for each kind of layer.
const SOME: [&str; 8] = [
    "gemma2",
    "gemma3",
    "gpt_neox",
    "mixtral",
    "olmo2",
    "opt",
    "phi3",
    "qwen3_moe",
];

/// Longer than every window, and no longer than the shortest table of positions.
const MAX_LENGTH: usize = 24;

/// Folders of models that write: all decoders of the folder that `MOLORA_GOLDEN` names, or some that are bundled.
fn cases() -> Vec<String> {
    let Some(folder) = std::env::var_os(MOLORA_GOLDEN) else {
        let all = SOME.into_iter().chain(ENCODER_DECODERS);
        return all.map(str::to_owned).collect();
    };
    let names = entries(folder.as_ref()).into_iter();
    let writes = |name: &String| {
        let family = Family::of(&golden(name));
        family.is_ok_and(|family| family.kind != FamilyKind::Encoder)
    };
    names.filter(writes).collect()
}

fn recipe(name: &str, steps: usize) -> Recipe {
    let mut recipe = writer::recipe(name, steps);
    recipe.data.writing.max_length = MAX_LENGTH;
    recipe
}

fn request(world: &World, family: &str, mut recipe: Recipe, out: &str) -> Request {
    recipe.adapter.targets = targets(world, family);
    let mut request = writer::request(world, recipe, &["pets"], out);
    request.model = world.path(family).to_str().expect("UTF-8").into();
    request
}

fn whole(request: &Request, what: &str) {
    let run = train(request, &AtomicBool::new(false), &mut |_| {});
    run.unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn runs_that_were_stopped_end_as_those_that_were_not() {
    for family in cases() {
        let world = writing_world(&family);
        for name in ["lora", "samora"] {
            let run = request(&world, &family, recipe(name, 5), name);
            whole(&run, &format!("{family}: {name}"));
            let stopped = request(&world, &family, recipe(name, 5), &format!("{name}-stopped"));
            train_until(&stopped, 3);
            resume_to_end(&stopped.out);
            assert_same_run(&stopped.out, &run.out);
        }
        done(&world, &["merge", "lora", "--out", "merged"]);
        done(&world, &["export", "lora", "--out", "peft"]);
        done(
            &world,
            &[
                "generate",
                "merged",
                "--prompt",
                "purr",
                "--max-new-tokens",
                "4",
            ],
        );
        let about = about(&world, &family);
        for (format, is_written, words) in [
            (
                "transformers",
                about.transformers,
                "written with a mixture for transformers",
            ),
            (
                "gguf",
                about.gguf.is_some(),
                "the families that are written as GGUF",
            ),
        ] {
            let arguments = ["export", "lora", "--format", format, "--out", format];
            let output = world.run(&arguments);
            let errors = String::from_utf8_lossy(&output.stderr);
            let is_refused =
                errors.contains("config.json: model_type is") && errors.contains(words);
            match is_written {
                // What of a family is written may be refused by another field: a window, a scaling.
                true => assert!(!is_refused, "{family}: {errors}"),
                false => assert!(is_refused && !output.status.success(), "{family}: {errors}"),
            }
        }
    }
}

#[test]
fn bases_in_few_bits_train_and_write() {
    for family in cases() {
        let world = writing_world(&family);
        for dtype in [BaseDtype::Q8, BaseDtype::Q4] {
            let name = dtype.name();
            let mut run = request(&world, &family, recipe("samora", 4), name);
            run.base_dtype = dtype;
            whole(&run, &format!("{family}: {name}"));
            let prompt = ["--prompt", "purr", "--max-new-tokens", "4"];
            done(&world, &[&["generate", name][..], &prompt].concat());
            let base = ["generate", &family, "--base-dtype", name];
            done(&world, &[&base[..], &prompt].concat());
        }
    }
}
