//! Files that llama.cpp has to compute as molora does.

use std::path::Path;

use molora_models::peft::{PeftAdapter, attach};
use molora_testkit::assert_close;
use molora_train::data::TextTokenizer;
use serde_json::json;

use super::{IDS, TOLERANCE, close, output, read};
use crate::exchange::decoder::{Llama, byte_pairs, golden};
use crate::world::{copy_folder, read_json, write_json};

/// Texts that the rules cut into words differently.
const TEXTS: [&str; 4] = [
    "abc wab  w",
    "it's 2024 and 31 abcs",
    "<|start|>wabc<|end|>\n\n  a",
    "x=  y;\n\tw'll",
];

/// Models of all families, and a LoRA beside a Llama and a Qwen, in files of f32.
#[test]
fn models_and_adapters() {
    for (name, family, adapter) in [
        ("llama-gguf", "llama", Some("peft_lora")),
        ("llama-gguf-rslora", "llama", Some("peft_rslora_all")),
        ("llama-gguf-ranks", "llama", Some("peft_rank_pattern")),
        ("llama-gguf-scaled", "llama_tied_scaled_rope", None),
        ("qwen2-gguf", "qwen2", Some("peft_qwen2_all_linear")),
        ("qwen3-gguf", "qwen3", None),
    ] {
        let world = Llama::new();
        let base = world.path(family);
        copy_folder(&golden(family), &base);
        let size = read_json(&base.join("config.json"))["vocab_size"].as_u64();
        let size = size.expect("a number") as usize;
        write_json(&base.join("tokenizer.json"), &byte_pairs(size));
        world.done(&["export", family, "--format", "gguf", "--out", "model.gguf"]);
        let mut expected = vec![("model", output(&read(&base)))];
        if let Some(adapter) = adapter {
            copy_folder(&golden(adapter), &world.path("adapter"));
            let export = ["export", "adapter", "--model", family, "--format", "gguf"];
            world.done(&[&export[..], &["--out", "adapter.gguf"]].concat());
            let mut model = read(&base);
            let resolved = PeftAdapter::open(&world.path("adapter")).expect("an adapter");
            let resolved = resolved.resolve(&model).expect("of this model");
            attach(&mut model, &resolved);
            let merge = ["merge", "adapter", "--model", family, "--out", "merged"];
            world.done(&merge);
            let merged = output(&read(&world.path("merged")));
            assert_close(output(&model), merged, TOLERANCE, name);
            expected.push(("adapter", output(&model)));
        }
        keep(&world, name, &base, &expected);
    }
}

/// Puts the files, ids of texts and scores into a folder of this name, if there is a place for them.
fn keep(world: &Llama, name: &str, base: &Path, expected: &[(&str, burn::tensor::Tensor<3>)]) {
    let tokenizer = TextTokenizer::from_folder(base).expect("a tokenizer");
    let ids = |text: &str| tokenizer.encode_whole(text, false).expect("tokens");
    let texts: Vec<_> = TEXTS.map(|text| json!([text, ids(text)])).into();
    assert!(texts.iter().all(|text| text[1][0].is_number()));
    let Some(root) = std::env::var_os("MOLORA_PARITY") else {
        return;
    };
    let out = Path::new(&root).join(name);
    std::fs::create_dir_all(&out).expect("a new folder");
    for (file, _) in expected {
        let file = format!("{file}.gguf");
        std::fs::copy(world.path(&file), out.join(&file)).expect("writable");
    }
    let case = json!({"kind": "causal", "method": "gguf", "input_ids": IDS, "texts": texts});
    close(&out, &case, expected);
}
