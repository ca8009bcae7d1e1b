//! Files that transformers and PEFT have to read as molora does: `cargo xtask parity` lets this test
//! write them into the folder `MOLORA_PARITY` and compares. Without it they go away, after molora
//! itself has read them again.

mod gguf;
mod transformers;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::module::Param;
use burn::tensor::{Int, Tensor};
use molora_kernels::random::{Seed, normal};
use molora_models::peft::{
    PeftAbout, PeftAdapter, attach, merge_into, open_poly, static_mixture, write_adapter,
};
use molora_models::{
    Adaptable, AdapterSpec, Backbone, DecoderInput, EncoderInput, ForwardContext, SavedModule,
};
use molora_testkit::{assert_close, device};
use molora_train::Recipe;
use molora_train::run::{Request, train};
use serde_json::{Value, json};

use super::decoder::{Llama, golden};
use crate::program::{families, writer};
use crate::world::{Tensors, World, copy_folder, small, write_json, write_tensors};

const TOLERANCE: f32 = 1e-5;

/// Two texts of the same length, for vocabularies of at least 32.
const IDS: [[i64; 6]; 2] = [[3, 17, 5, 30, 21, 8], [11, 2, 30, 4, 9, 1]];

/// What an encoder-decoder writes.
const TARGET: [[i64; 3]; 2] = [[0, 7, 4], [0, 12, 3]];

/// What a model returns for these texts: scores, or an encoder's hidden states.
pub(crate) fn output(model: &Backbone) -> Tensor<3> {
    let text = |ids: Tensor<2, Int>| DecoderInput {
        mask: Tensor::full(ids.dims(), true, &device()),
        ids,
        segments: None,
    };
    let read = text(Tensor::from_data(IDS, &device()));
    let context = ForwardContext::new(read.mask.clone().float());
    match model {
        Backbone::Encoder(model) => {
            let input = EncoderInput {
                type_ids: Tensor::zeros(read.ids.dims(), &device()),
                ids: read.ids,
                mask: read.mask,
            };
            model.forward(&input, &context).hidden
        }
        Backbone::Decoder(model) => model.logits(model.forward(&read, &context).hidden),
        Backbone::EncoderDecoder(model) => {
            let target = text(Tensor::from_data(TARGET, &device()));
            let encoded = model.encode(&read, &context);
            model.logits(model.decode(&target, &encoded, &context).hidden)
        }
    }
}

fn kind(model: &Backbone) -> &'static str {
    match model {
        Backbone::Encoder(_) => "encoder",
        Backbone::Decoder(_) => "causal",
        Backbone::EncoderDecoder(_) => "seq2seq",
    }
}

fn read(folder: &Path) -> Backbone {
    Backbone::from_folder(folder, &device()).expect("a whole model")
}

/// Puts a base, an exported adapter or a merged model, and what molora computes with them into a
/// folder of this name, if there is a place for them.
fn keep(name: &str, base: &Path, adapter: &Path, merged: &Path) {
    let mut adapted = read(base);
    let resolved = PeftAdapter::open(adapter).expect("an adapter");
    let resolved = resolved.resolve(&adapted).expect("of this model");
    attach(&mut adapted, &resolved);
    let found = output(&adapted);
    let whole = output(&read(merged));
    assert_close(found.clone(), whole.clone(), TOLERANCE, name);
    let difference = (found.clone() - output(&read(base))).abs().max();
    assert!(
        difference.into_scalar::<f32>() > 1e-3,
        "{name} does nothing"
    );
    let Some(root) = std::env::var_os("MOLORA_PARITY") else {
        return;
    };
    let out = Path::new(&root).join(name);
    for (from, to) in [(base, "base"), (adapter, "adapter"), (merged, "merged")] {
        copy_folder(from, &out.join(to));
    }
    let case = json!({"kind": kind(&adapted), "input_ids": IDS, "decoder_input_ids": TARGET});
    close(&out, &case, &[("adapter", found), ("merged", whole)]);
}

/// Writes what the check reads beside the folders.
fn close(out: &Path, case: &Value, expected: &[(&str, Tensor<3>)]) {
    write_json(&out.join("case.json"), case);
    let mut tensors = Tensors::new();
    for (name, tensor) in expected {
        let shape = tensor.dims().to_vec();
        let values = tensor.to_data().iter::<f32>().collect();
        tensors.insert((*name).into(), (shape, values));
    }
    write_tensors(&out.join("expected.safetensors"), &tensors);
}

#[test]
fn an_expert_and_a_static_mixture_of_a_llama() {
    let world = Llama::new();
    world.assemble("uniform", &[]);
    for (name, choice) in [
        ("llama-lora", &["--expert", "law"][..]),
        ("llama-rslora", &["--expert", "med"]),
        ("llama-static-mixture", &[]),
    ] {
        let [adapter, merged] = ["peft", "merged"].map(|kind| format!("{kind}-{name}"));
        world.done(&[&["export", "run", "--out", &adapter], choice].concat());
        world.done(&[&["merge", "run", "--out", &merged], choice].concat());
        let path = |folder: &str| world.path(folder);
        keep(name, &path("base"), &path(&adapter), &path(&merged));
    }
}

/// A random LoRA for a model, written by molora.
fn random_lora(model: &mut Backbone, targets: &[&str], folder: &Path) {
    let spec = AdapterSpec {
        targets: targets.iter().map(|&target| target.into()).collect(),
        ..AdapterSpec::default()
    };
    let spec = spec.one_expert(false);
    model
        .attach(&spec, 1, Seed::new(1), &device())
        .expect("the targets are there");
    for (path, site) in model.sites_mut() {
        let b = normal(
            site.bank.b.dims(),
            0.1,
            Seed::new(2).child(&path),
            &device(),
        );
        site.bank.b = Param::from_tensor(b);
    }
    let adapter = static_mixture(model).expect("one expert");
    let about = PeftAbout {
        name: "default".into(),
        base_model: "base".into(),
        task_type: Some(model.task_type().into()),
    };
    write_adapter(folder, model, &adapter, &about).expect("writable");
}

/// Fused attention of GPT-2 and both stacks of T5, as experts of one bank.
#[test]
fn static_mixtures_of_other_families() {
    for (family, targets) in [
        ("gpt2", &["c_attn.q", "c_attn.v", "mlp.c_fc"][..]),
        ("t5", &["q", "v", "wo"]),
        ("t5_v1_1", &["SelfAttention.q", "EncDecAttention.k", "wi_1"]),
        ("umt5", &["SelfAttention.q", "EncDecAttention.k", "wi_0"]),
        ("bart", &["self_attn.q_proj", "encoder_attn.k_proj", "fc2"]),
        ("qwen3", &["q_proj", "gate_proj"]),
    ] {
        let world = Llama::new();
        std::fs::remove_dir_all(world.path("base")).expect("the Llama goes");
        copy_folder(&golden(family), &world.path("base"));
        let tokenizer = world.path("base/tokenizer.json");
        write_json(&tokenizer, &super::decoder::tokenizer(32));
        let mut model = read(&world.path("base"));
        for name in ["one", "two"] {
            let targets = if name == "one" {
                targets
            } else {
                &targets[..1]
            };
            random_lora(&mut model, targets, &world.path(name));
        }
        let mut arguments = vec!["assemble", "--base", "base", "--router", "uniform"];
        arguments.extend(["--expert", "one=one", "--expert", "two=two", "--out", "run"]);
        world.done(&arguments);
        world.done(&["export", "run", "--out", "peft"]);
        world.done(&["merge", "run", "--out", "merged"]);
        let path = |folder: &str| world.path(folder);
        let name = format!("{family}-static-mixture");
        keep(&name, &path("base"), &path("peft"), &path("merged"));
    }
}

#[test]
fn a_trained_lora_of_an_encoder() {
    let world = World::new();
    world.train(&small("lora"), "run");
    keep_lora(&world, "bert");
}

/// At every linear layer, as PEFT's `all-linear`.
#[test]
fn trained_loras_of_other_encoders() {
    for (family, tokenizer) in families::ENCODERS {
        let world = families::world(family, tokenizer);
        let mut recipe = small("lora");
        recipe.adapter.targets = vec!["all-linear".into()];
        world.train(&recipe, "run");
        keep_lora(&world, family);
    }
}

/// At every linear layer, those of a base's experts too.
#[test]
fn trained_loras_of_decoders() {
    for family in [
        "gemma2",
        "gemma3",
        "gpt_neox",
        "granite",
        "mixtral",
        "olmo2",
        "opt",
        "phi3",
        "qwen3_moe",
        "smollm3",
    ] {
        let world = families::writing_world(family);
        let mut recipe = writer::recipe("lora", 20);
        recipe.adapter.targets = families::targets(&world, family);
        let request = writer::request(&world, recipe, &["pets"], "run");
        let model = world.path(family).to_str().expect("UTF-8").to_owned();
        let request = Request { model, ..request };
        train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
        copy_folder(&world.path(family), &world.path("model"));
        keep_lora(&world, family);
    }
}

/// Exports and merges a run, and keeps both.
fn keep_lora(world: &World, family: &str) {
    for arguments in [
        ["export", "run", "--out", "peft"],
        ["merge", "run", "--out", "merged"],
    ] {
        let output = world.run(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{family}: {arguments:?}: {errors}");
    }
    let path = |folder: &str| world.path(folder);
    let name = format!("{family}-lora");
    keep(&name, &path("model"), &path("peft"), &path("merged"));
}

/// PEFT's `modules_to_save`; the decoder's tables are tied in its base.
#[test]
fn tables_that_trained_whole() {
    let (encoder, decoder) = (World::new(), writer::world());
    let with = |mut recipe: Recipe, modules: &[SavedModule]| {
        recipe.adapter.modules_to_save = modules.to_vec();
        recipe
    };
    let embeddings = [SavedModule::Embeddings];
    let reads = encoder.request(with(small("lora"), &embeddings), "run");
    let recipe = with(
        writer::recipe("lora", 20),
        &[SavedModule::Embeddings, SavedModule::Head],
    );
    let writes = writer::request(&decoder, recipe, &["pets"], "run");
    for (name, world, base, request) in [
        ("bert-saved", &encoder, "model", reads),
        ("llama-saved", &decoder, "writer", writes),
    ] {
        train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
        for arguments in [
            ["export", "run", "--out", "peft"],
            ["merge", "run", "--out", "merged"],
        ] {
            assert!(world.run(&arguments).status.success(), "{arguments:?}");
        }
        let path = |folder: &str| world.path(folder);
        keep(name, &path(base), &path("peft"), &path("merged"));
    }
}

/// Every task of skills that the program exported.
#[test]
fn skills_of_an_encoder() {
    let world = World::new();
    world.train(&small("mhr"), "run");
    assert!(
        world
            .run(&["export", "run", "--out", "peft"])
            .status
            .success()
    );
    let base = read(&world.path("model"));
    let tasks = open_poly(&world.path("peft"), &base).expect("an adapter of the base");
    let found: Vec<_> = tasks
        .iter()
        .map(|task| {
            let mut model = base.clone();
            merge_into(&mut model, task);
            output(&model)
        })
        .collect();
    let [one, two, three] = <[_; 3]>::try_from(found).expect("three tasks");
    let difference = (one.clone() - output(&base)).abs().max();
    assert!(difference.into_scalar::<f32>() > 1e-3, "skills do nothing");
    let Some(root) = std::env::var_os("MOLORA_PARITY") else {
        return;
    };
    let out = Path::new(&root).join("bert-mhr");
    for (from, to) in [("model", "base"), ("peft", "adapter")] {
        copy_folder(&world.path(from), &out.join(to));
    }
    let case = json!({"kind": "encoder", "method": "poly", "input_ids": IDS});
    let expected = [("task 0", one), ("task 1", two), ("task 2", three)];
    close(&out, &case, &expected);
}

/// A mixture that no LoRA equals, as the nearest one.
#[test]
fn a_distilled_lora_of_an_encoder() {
    let world = World::new();
    world.train(&small("hydralora"), "run");
    let distill = ["distill", "run", "--rank", "2", "--out", "peft"];
    assert!(world.run(&distill).status.success());
    // What is merged is the LoRA: a run of it as the only expert.
    let mut arguments = vec!["assemble", "--base", "model", "--data", "data"];
    arguments.extend([
        "--expert",
        "pets=peft",
        "--router",
        "uniform",
        "--out",
        "again",
    ]);
    assert!(world.run(&arguments).status.success());
    let merge = ["merge", "again", "--out", "merged"];
    assert!(world.run(&merge).status.success());
    let path = |folder: &str| world.path(folder);
    keep(
        "bert-distilled",
        &path("model"),
        &path("peft"),
        &path("merged"),
    );
}

/// What `combine` makes of adapters is what PEFT's `add_weighted_adapter` makes of them.
#[test]
fn merges_of_llama_adapters() {
    let world = super::combine::world();
    let density = ["--density", "0.4"];
    let ranked = ["--density", "0.4", "--rank", "3"];
    let pruned = |mode: &str| json!({"combination_type": mode, "density": 0.4});
    let both: &[&str] = &["law", "other"];
    let other_ranks: &[&str] = &["law", "med"];
    for (how, experts, weights, more, merge) in [
        (
            "linear",
            both,
            [0.7, -0.4],
            &[][..],
            json!({"combination_type": "linear"}),
        ),
        (
            "cat",
            other_ranks,
            [0.7, -0.4],
            &[],
            json!({"combination_type": "cat"}),
        ),
        (
            "svd",
            other_ranks,
            [0.5, 0.5],
            &["--rank", "2"],
            json!({"combination_type": "svd", "svd_rank": 2}),
        ),
        ("ties", both, [0.7, 0.4], &density, pruned("ties")),
        (
            "magnitude",
            both,
            [0.7, -0.4],
            &density,
            pruned("magnitude_prune"),
        ),
        (
            "ties",
            other_ranks,
            [0.7, 0.4],
            &ranked,
            json!({"combination_type": "ties_svd", "density": 0.4, "svd_rank": 3}),
        ),
    ] {
        let name = format!("merge-{}", merge["combination_type"].as_str().expect("set"));
        let given = weights.map(|weight| weight.to_string()).join(",");
        let common = [
            "--base",
            "base",
            "--how",
            how,
            "--out",
            &name,
            "--weights",
            &given,
        ];
        world.done(&[&["combine"][..], experts, &common, more].concat());
        let mut merge = merge;
        merge["weights"] = json!(weights);
        let mut adapted = read(&world.path("base"));
        let adapter = PeftAdapter::open(&world.path(&name)).expect("an adapter");
        let adapter = adapter.resolve(&adapted).expect("of this model");
        attach(&mut adapted, &adapter);
        let found = output(&adapted);
        let difference = (found.clone() - output(&read(&world.path("base"))))
            .abs()
            .max();
        assert!(
            difference.into_scalar::<f32>() > 1e-3,
            "{name} does nothing"
        );
        let Some(root) = std::env::var_os("MOLORA_PARITY") else {
            continue;
        };
        let out = Path::new(&root).join(&name);
        let adapters = experts.iter().map(|expert| (*expert, *expert));
        for (from, to) in adapters.chain([("base", "base"), (&name, "adapter")]) {
            copy_folder(&world.path(from), &out.join(to));
        }
        let case = json!({"kind": "causal", "method": "merge", "input_ids": IDS,
            "experts": experts, "merge": merge});
        close(
            &out,
            &case,
            &[("adapter", found.clone()), ("merged", found)],
        );
    }
}
