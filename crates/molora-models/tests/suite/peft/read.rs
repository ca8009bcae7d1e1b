//! Adapter files that are unusual, and ones that are wrong.

use std::path::Path;

use molora_models::Decoder;
use molora_models::peft::{PeftAdapter, merge_into};
use molora_testkit::{assert_close, device};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::world::{File, batch, bundled, logits, read_file, write_file};

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// A copy of a bundled adapter, changed.
fn changed(
    case: &str,
    config: impl FnOnce(&mut Value),
    tensors: impl FnOnce(&mut File),
) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let from = bundled("golden").join(case);
    let text = std::fs::read_to_string(from.join("adapter_config.json")).expect("readable");
    let mut fields: Value = serde_json::from_str(&text).expect("JSON");
    config(&mut fields);
    let to = folder.path().join("adapter_config.json");
    std::fs::write(to, fields.to_string()).expect("writable");
    let mut file = read_file(&from.join("adapter_model.safetensors"));
    tensors(&mut file);
    write_file(&folder.path().join("adapter_model.safetensors"), &file);
    folder
}

fn llama() -> Decoder {
    Decoder::from_folder(&bundled("golden/llama"), &device()).expect("the bundled Llama")
}

fn problem(folder: &Path) -> String {
    let adapter = PeftAdapter::open(folder).and_then(|adapter| adapter.resolve(&llama()));
    let text = adapter.expect_err("must fail").to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

fn refused(folder: &TempDir, words: &[&str]) {
    let text = problem(folder.path());
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
}

fn renamed(file: &mut File, rename: impl Fn(&str) -> String) {
    *file = std::mem::take(file)
        .into_iter()
        .map(|(name, value)| (rename(&name), value))
        .collect();
}

/// Both adapters change the model in the same way.
fn assert_same(one: &Path, other: &Path) {
    let logits = [one, other].map(|folder| {
        let mut model = llama();
        let adapter = PeftAdapter::open(folder).expect("readable");
        let adapter = adapter.resolve(&model).expect("of this model");
        merge_into(&mut model, &adapter);
        logits(&model, &batch(&device()))
    });
    let [one, other] = logits;
    assert_close(one, other, 0.0, "logits");
}

#[test]
fn keys_that_match_nothing_are_an_error() {
    let same = |_: &mut Value| {};
    let elsewhere = changed("peft_lora", same, |file| {
        renamed(file, |name| name.replace("self_attn", "attention"));
    });
    refused(
        &elsewhere,
        &[
            "none of the 8 tensors belongs to this model",
            "near",
            "q_proj",
        ]
        .map(|word| match word {
            "near" => "the model has",
            word => word,
        }),
    );
    let more = changed("peft_lora", same, |file| {
        file.insert(
            "base_model.model.model.extra.lora_A.weight".into(),
            (vec![1], vec![0.0]),
        );
    });
    refused(
        &more,
        &["adapter_model.safetensors", "model.extra.lora_A.weight"],
    );
    let odd = changed("peft_lora", same, |file| {
        file.insert(format!("{Q}.lora_A.scale.of"), (vec![1], vec![0.0]));
    });
    refused(&odd, &["lora_A.scale.of"]);
}

#[test]
fn incomplete_adapters_are_an_error() {
    let same = |_: &mut Value| {};
    let b = format!("{Q}.lora_B.weight");
    let missing_b = changed("peft_lora", same, |file| {
        file.remove(&b);
    });
    refused(&missing_b, &["adapter_model.safetensors", &b, "is missing"]);
    let missing_a = changed("peft_lora", same, |file| {
        file.remove(&format!("{Q}.lora_A.weight"));
    });
    refused(&missing_a, &["q_proj.lora_A.weight` is missing"]);
    let missing_site = changed("peft_lora", same, |file| {
        file.retain(|name, _| !name.starts_with(Q));
    });
    refused(&missing_site, &["q_proj.lora_A.weight` is missing"]);
    let missing_norm = changed("peft_dora", same, |file| {
        file.remove(&format!("{Q}.lora_magnitude_vector"));
    });
    refused(&missing_norm, &["q_proj.lora_magnitude_vector` is missing"]);
    let unsaid = changed(
        "peft_dora",
        |config| config["use_dora"] = false.into(),
        |_| {},
    );
    refused(&unsaid, &["use_dora is false", "lora_magnitude_vector"]);
    let unsaved = |config: &mut Value| config["modules_to_save"] = json!(["lm_head"]);
    refused(
        &changed("peft_lora", unsaved, |_| {}),
        &["lm_head.weight` is missing"],
    );
}

#[test]
fn wrong_shapes_are_an_error() {
    let key = format!("{Q}.lora_A.weight");
    let short = changed(
        "peft_lora",
        |_| {},
        |file| {
            file.insert(key.clone(), (vec![4, 31], vec![0.0; 4 * 31]));
        },
    );
    refused(&short, &[&key, "[4, 31]", "[4, 32]"]);
    let rank = changed("peft_lora", |config| config["r"] = 3.into(), |_| {});
    refused(&rank, &["lora_A.weight", "[4, 32]", "[3, 32]"]);
}

#[test]
fn folders_without_one_adapter_are_an_error() {
    let empty = tempfile::tempdir().expect("a folder");
    assert!(problem(empty.path()).contains("no adapter_config.json"));
    let several = problem(&bundled("golden/peft_merge"));
    assert!(several.ends_with("expected one: a, b, c"), "{several}");
    let pickled = changed("peft_lora", |_| {}, |_| {});
    let path = |name| pickled.path().join(name);
    std::fs::rename(path("adapter_model.safetensors"), path("adapter_model.bin")).expect("moved");
    refused(&pickled, &["adapter_model.bin: is a pickle"]);
    let named = PeftAdapter::open_named(&bundled("golden/peft_merge"), "b");
    assert_eq!(named.expect("there").name(), "b");
}

#[test]
fn state_dictionaries_and_bare_models_are_understood() {
    let plain = bundled("golden/peft_lora");
    for name in ["default", "0", "layers", "lora_A", "weight"] {
        let in_memory = changed(
            "peft_lora",
            |_| {},
            |file| {
                renamed(file, |key| {
                    key.replace(".weight", &format!(".{name}.weight"))
                });
            },
        );
        let adapter = PeftAdapter::open(in_memory.path()).expect("readable");
        assert_eq!(adapter.name(), name);
        assert_same(&plain, in_memory.path());
    }
    // Of a model without its head, and with names that only its own paths have.
    let bare = changed(
        "peft_lora",
        |config| config["target_modules"] = r"layers\.\d\.self_attn\.[qv]_proj".into(),
        |file| {
            renamed(file, |name| {
                name.replace("model.model.model.", "model.model.")
            })
        },
    );
    assert_same(&plain, bare.path());
}

#[test]
fn sharded_adapters_are_read() {
    let sharded = changed("peft_lora", |_| {}, |_| {});
    let path = |name: &str| sharded.path().join(name);
    let whole = read_file(&path("adapter_model.safetensors"));
    std::fs::remove_file(path("adapter_model.safetensors")).expect("removed");
    let (mut map, mut files) = (json!({}), [File::new(), File::new()]);
    for (index, (name, tensor)) in whole.into_iter().enumerate() {
        map[&name] = format!("{}.safetensors", index % 2).into();
        files[index % 2].insert(name, tensor);
    }
    for (index, file) in files.iter().enumerate() {
        write_file(&path(&format!("{index}.safetensors")), file);
    }
    let index = json!({"weight_map": map}).to_string();
    std::fs::write(path("adapter_model.safetensors.index.json"), index).expect("writable");
    assert_same(&bundled("golden/peft_lora"), sharded.path());
    std::fs::remove_file(path("1.safetensors")).expect("removed");
    refused(&sharded, &["1.safetensors, which is not in this folder"]);
}

#[test]
fn targets_that_are_nowhere_and_patterns_that_never_end_are_refused() {
    let set = |targets: Value| {
        changed(
            "peft_lora",
            |fields| fields["target_modules"] = targets,
            |_| {},
        )
    };
    refused(
        &set(json!(["query", "value"])),
        &["adapter_config.json: target_modules matches no module of the model, which has"],
    );
    // Nested repetition without an end that fits, behind a look-ahead that the fast engine has not.
    refused(
        &set(json!(r"(?=.)((?:[a-z_.0-9]+)+)+(?<=x)!")),
        &[
            "target_modules has the regular expression",
            "too many steps",
        ],
    );
}
