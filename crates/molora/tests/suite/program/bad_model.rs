//! Model folders that cannot be used.

use std::fs;

use molora_models::Bert;
use molora_train::base::DeviceSpec;
use molora_train::data::TextTokenizer;
use serde_json::json;

use super::refusal::{Mistake, check, nothing};
use crate::world::{VOCABULARY, World, edit_tensors, write_json};

const QUERY: &str = "encoder.layer.1.attention.self.query.weight";

fn remove(world: &World, file: &str) {
    fs::remove_file(world.model(file)).expect("a file of the model");
}

fn config(world: &World, key: &str, value: serde_json::Value) {
    World::edit(&world.model("config.json"), |config| config[key] = value);
}

/// Cuts the end off a file.
fn cut(world: &World, file: &str, keep: impl Fn(usize) -> usize) {
    let bytes = fs::read(world.model(file)).expect("readable");
    fs::write(world.model(file), &bytes[..keep(bytes.len())]).expect("writable");
}

/// Writes zeros of another type of number as the query's weight.
fn retype(world: &World, dtype: &str, size: usize) {
    let path = world.model("model.safetensors");
    let bytes = fs::read(&path).expect("readable");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: serde_json::Value =
        serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let end = bytes.len() - 8 - length;
    header[QUERY]["dtype"] = json!(dtype);
    // The old place stays behind as another tensor, so that the file has no gap.
    let old = header[QUERY]["data_offsets"].clone();
    header["old"] = json!({"dtype": "F32", "shape": [32, 32], "data_offsets": old});
    header[QUERY]["data_offsets"] = json!([end, end + 32 * 32 * size]);
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(&bytes[8 + length..]);
    file.extend(vec![0; 32 * 32 * size]);
    fs::write(path, file).expect("writable");
}

#[test]
fn files_that_are_missing_or_cut() {
    check(&[
        Mistake {
            name: "no model folder",
            damage: nothing,
            arguments: &["--model", "modle"],
            expected: &["modle", "No such file"],
        },
        Mistake {
            name: "no bundled model",
            damage: nothing,
            arguments: &["--model", "bundled:nothing"],
            expected: &["nothing", "No such file"],
        },
        Mistake {
            name: "no tensors",
            damage: |world| remove(world, "model.safetensors"),
            arguments: &[],
            expected: &["model: neither model.safetensors nor model.safetensors.index.json"],
        },
        Mistake {
            name: "cut tensors",
            damage: |world| cut(world, "model.safetensors", |size| size - 1000),
            arguments: &[],
            expected: &["model/model.safetensors: the file has", "bytes"],
        },
        Mistake {
            name: "cut header",
            damage: |world| cut(world, "model.safetensors", |_| 100),
            arguments: &[],
            expected: &["model/model.safetensors: not a whole safetensors file"],
        },
        Mistake {
            name: "empty tensors",
            damage: |world| cut(world, "model.safetensors", |_| 0),
            arguments: &[],
            expected: &["model/model.safetensors: 0 bytes"],
        },
        Mistake {
            name: "a web page instead of tensors",
            damage: |world| {
                let page = "<!DOCTYPE html><html>not found</html>";
                fs::write(world.model("model.safetensors"), page).expect("writable");
            },
            arguments: &[],
            expected: &["model/model.safetensors: not a whole safetensors file"],
        },
    ]);
}

#[test]
fn tensors_that_do_not_fit() {
    check(&[
        Mistake {
            name: "wrong shape",
            damage: |world| {
                edit_tensors(world, |tensors| {
                    tensors.insert(QUERY.into(), (vec![16, 32], vec![0.0; 512]));
                });
            },
            arguments: &[],
            expected: &[
                "model.safetensors: tensor `",
                QUERY,
                "has shape [16, 32], expected [32, 32]",
            ],
        },
        Mistake {
            name: "missing tensor",
            damage: |world| {
                edit_tensors(world, |tensors| {
                    let value = tensors.remove(QUERY).expect("a tensor");
                    tensors.insert(QUERY.replace("query", "qeury"), value);
                });
            },
            arguments: &[],
            expected: &[
                QUERY,
                "is missing; near names: encoder.layer.1.attention.self.qeury",
            ],
        },
        Mistake {
            name: "f64",
            damage: |world| retype(world, "F64", 8),
            arguments: &[],
            expected: &[
                "model.safetensors: tensor `",
                QUERY,
                "holds F64, expected F32, F16 or BF16",
            ],
        },
        Mistake {
            name: "i64",
            damage: |world| retype(world, "I64", 8),
            arguments: &[],
            expected: &[QUERY, "holds I64"],
        },
        Mistake {
            name: "more layers than tensors",
            damage: |world| config(world, "num_hidden_layers", json!(5)),
            arguments: &[],
            expected: &["tensor `encoder.layer.4.", "is missing"],
        },
        Mistake {
            name: "another vocabulary",
            damage: |world| config(world, "vocab_size", json!(40)),
            arguments: &[],
            expected: &["embeddings.word_embeddings.weight` has shape [32, 32], expected [40, 32]"],
        },
    ]);
}

#[test]
fn configurations_that_cannot_be_read() {
    check(&[
        Mistake {
            name: "no configuration",
            damage: |world| remove(world, "config.json"),
            arguments: &[],
            expected: &["model/config.json: No such file"],
        },
        Mistake {
            name: "broken configuration",
            damage: |world| cut(world, "config.json", |size| size / 2),
            arguments: &[],
            expected: &["model/config.json: ", "line 1 column"],
        },
    ]);
}

#[test]
fn configurations_that_cannot_be_used() {
    check(&[
        Mistake {
            name: "another family",
            damage: |world| config(world, "model_type", json!("albert")),
            arguments: &[],
            expected: &[
                "model/config.json: model_type is \"albert\", expected bert, roberta, ",
                "`molora models`",
            ],
        },
        Mistake {
            name: "heads that do not divide the width",
            damage: |world| config(world, "num_attention_heads", json!(5)),
            arguments: &[],
            expected: &["config.json: hidden_size 32 is no multiple of num_attention_heads 5"],
        },
        Mistake {
            name: "no heads",
            damage: |world| config(world, "num_attention_heads", json!(0)),
            arguments: &[],
            expected: &[
                "config.json: num_attention_heads is 0, expected a whole number of at least 1",
            ],
        },
        Mistake {
            name: "a word for a number",
            damage: |world| config(world, "hidden_size", json!("wide")),
            arguments: &[],
            expected: &["config.json: hidden_size is \"wide\", expected a whole number"],
        },
        Mistake {
            name: "an unknown activation",
            damage: |world| config(world, "hidden_act", json!("mish")),
            arguments: &[],
            expected: &["config.json: hidden_act is \"mish\", expected gelu, "],
        },
        Mistake {
            name: "relative positions",
            damage: |world| config(world, "position_embedding_type", json!("relative_key")),
            arguments: &[],
            expected: &[
                "config.json: position_embedding_type is \"relative_key\", expected absolute",
            ],
        },
        Mistake {
            name: "a missing key",
            damage: |world| {
                World::edit(&world.model("config.json"), |config| {
                    config
                        .as_object_mut()
                        .expect("an object")
                        .remove("hidden_act");
                });
            },
            arguments: &[],
            expected: &["config.json: hidden_act is missing"],
        },
    ]);
}

#[test]
fn tokenizers_that_cannot_be_used() {
    check(&[
        Mistake {
            name: "no tokenizer",
            damage: |world| remove(world, "tokenizer.json"),
            arguments: &[],
            expected: &["model/tokenizer.json: cannot be read: No such file"],
        },
        Mistake {
            name: "broken tokenizer",
            damage: |world| cut(world, "tokenizer.json", |size| size / 2),
            arguments: &[],
            expected: &["model/tokenizer.json: no usable tokenizer"],
        },
        Mistake {
            name: "no tokenizer at all",
            damage: |world| write_json(&world.model("tokenizer.json"), &json!([1, 2])),
            arguments: &[],
            expected: &["model/tokenizer.json: no usable tokenizer"],
        },
        Mistake {
            name: "ids beyond the vocabulary",
            damage: |world| {
                World::edit(&world.model("tokenizer.json"), |tokenizer| {
                    tokenizer["model"]["vocab"]["more"] = json!(VOCABULARY);
                });
            },
            arguments: &[],
            expected: &[
                "tokenizer.json: yields token ids up to 32",
                "has 32 entries",
            ],
        },
        Mistake {
            name: "token types that the model does not have",
            damage: |world| {
                config(world, "type_vocab_size", json!(1));
                edit_tensors(world, |tensors| {
                    let table = (vec![1, 32], vec![0.0; 32]);
                    tensors.insert("embeddings.token_type_embeddings.weight".into(), table);
                });
            },
            arguments: &[],
            expected: &["tokenizer.json", "type_vocab_size"],
        },
    ]);
}

/// Changes single bytes at the beginning of a file, each to several values, and loads the model.
fn load_with_changed_bytes(file: &str, limit: usize) {
    let world = World::new();
    let device = DeviceSpec::Cpu.open().expect("the processor");
    let whole = fs::read(world.model(file)).expect("readable");
    for place in 0..limit.min(whole.len()) {
        for value in [b'"', b'9', b'-', 0xff] {
            let mut bytes = whole.clone();
            bytes[place] = value;
            fs::write(world.model(file), &bytes).expect("writable");
            let model = Bert::from_folder(&world.path("model"), &device);
            let tokenizer = TextTokenizer::from_folder(&world.path("model"));
            let errors = [
                model.err().map(|e| e.to_string()),
                tokenizer.err().map(|e| e.to_string()),
            ];
            for error in errors.into_iter().flatten() {
                let is_fine = error.contains("/model/") && !error.contains('\n');
                assert!(is_fine, "byte {place} as {value}: {error}");
            }
        }
    }
}

#[test]
fn a_changed_byte_is_an_error_of_one_line_or_nothing() {
    load_with_changed_bytes("model.safetensors", 250);
    load_with_changed_bytes("config.json", 250);
    load_with_changed_bytes("tokenizer.json", 400);
}
