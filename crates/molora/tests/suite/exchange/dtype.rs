//! Types of the numbers of a merged model.

use std::path::Path;

use molora_models::peft::{MergedDtype, save_merged};
use molora_models::{Backbone, Weights};
use molora_testkit::device;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::decoder::{Llama, golden};
use crate::world::{World, copy_folder, read_json, small};

/// Types of the tensors of a model, each once.
fn types(folder: &Path) -> Vec<Dtype> {
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut types: Vec<Dtype> = file.tensors().iter().map(|(_, t)| t.dtype()).collect();
    types.dedup();
    types
}

/// Every number is the one of `exact`, rounded to so many bits.
fn assert_rounded(folder: &Path, exact: &Path, bits: i32) {
    let [rounded, exact] = [folder, exact]
        .map(|folder| Weights::open(&folder.join("model.safetensors")).expect("whole"));
    let mut changed = 0;
    for name in exact.names() {
        let shape = exact.shape(name).expect("there").to_vec();
        let [found, expected] =
            [&rounded, &exact].map(|file| file.values(name, &shape).expect("f32"));
        for (found, expected) in found.into_iter().zip(expected) {
            // Half a unit of the last bit, and f16's smallest step.
            let limit = expected.abs() * 2f32.powi(-bits - 1) + 2f32.powi(-25);
            assert!(
                (found - expected).abs() <= limit,
                "{name}: {found} {expected}"
            );
            changed += usize::from(found != expected);
        }
    }
    assert!(changed > 0, "numbers that need rounding are rounded");
}

#[test]
fn a_merged_decoder_keeps_the_type_of_its_base() {
    let world = Llama::new();
    for (dtype, kind, name, bits) in [
        ("bf16", Dtype::BF16, "bfloat16", 7),
        ("f16", Dtype::F16, "float16", 10),
    ] {
        let paths = ["base", "merged", "exact"].map(|what| format!("{dtype}-{what}"));
        let [base, merged, exact] = &paths;
        world.done(&[
            "merge", "law", "--model", "base", "--dtype", dtype, "--out", base,
        ]);
        assert_eq!(types(&world.path(base)), [kind]);
        let config = read_json(&world.path(base).join("config.json"));
        assert_eq!(config["dtype"], name);
        world.done(&["merge", "med", "--model", base, "--out", merged]);
        world.done(&[
            "merge", "med", "--model", base, "--dtype", "f32", "--out", exact,
        ]);
        assert_eq!(types(&world.path(merged)), [kind]);
        let config = read_json(&world.path(merged).join("config.json"));
        assert_eq!(config["dtype"], name);
        assert_eq!(types(&world.path(exact)), [Dtype::F32]);
        assert_rounded(&world.path(merged), &world.path(exact), bits);
        let experts = [
            "combine", "law", "med", "--how", "cat", "--whole", "--base", base,
        ];
        let out = format!("{dtype}-combined");
        world.done(&[&experts[..], &["--out", &out]].concat());
        assert_eq!(types(&world.path(&out)), [kind]);
    }
}

#[test]
fn a_merged_encoder_keeps_the_type_of_its_base() {
    let world = World::new();
    world.train(&small("lora"), "run");
    for arguments in [
        &["export", "run", "--out", "peft"][..],
        &["merge", "run", "--dtype", "f16", "--out", "half"],
        &["merge", "peft", "--model", "half", "--out", "merged"],
        &[
            "merge", "peft", "--model", "half", "--dtype", "f32", "--out", "exact",
        ],
    ] {
        let output = world.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
    }
    for (folder, kind) in [
        ("half", Dtype::F16),
        ("merged", Dtype::F16),
        ("exact", Dtype::F32),
    ] {
        assert_eq!(types(&world.path(folder)), [kind], "{folder}");
    }
    assert_rounded(&world.path("merged"), &world.path("exact"), 10);
}

/// The head of a tied model that gets a table of its own has the type of that table.
#[test]
fn a_head_that_the_base_lacks_has_the_type_of_its_table() {
    let world = Llama::new();
    copy_folder(&golden("peft_tied_embedding"), &world.path("embedding"));
    let tied = golden("llama_tied_scaled_rope");
    let model = Backbone::from_folder(&tied, &device()).expect("a whole model");
    save_merged(&model, &tied, &world.path("tied"), MergedDtype::BFloat16).expect("writable");
    world.done(&["merge", "embedding", "--model", "tied", "--out", "merged"]);
    let file = std::fs::read(world.path("merged/model.safetensors")).expect("readable");
    let file = SafeTensors::deserialize(&file).expect("a safetensors file");
    let head = file.tensor("lm_head.weight").expect("its own");
    assert_eq!(head.dtype(), Dtype::BF16);
}

#[test]
fn a_number_that_the_type_cannot_hold_is_refused() {
    let world = Llama::new();
    World::edit(&world.path("law/adapter_config.json"), |config| {
        config["lora_alpha"] = 1e9.into();
    });
    let arguments = [
        "merge", "law", "--model", "base", "--dtype", "f16", "--out", "out",
    ];
    let words = [
        "base/model.safetensors: ",
        "q_proj.weight` is ",
        "inf in F16",
        "f32 or bf16",
    ];
    world.refused(&arguments, &words);
    world.done(&[
        "merge", "law", "--model", "base", "--dtype", "bf16", "--out", "out",
    ]);
}
