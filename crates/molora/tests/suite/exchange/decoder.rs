//! A folder with the golden Llama, a tokenizer of whole words and PEFT's adapters for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::Tensor;
use molora_models::peft::{PeftAdapter, attach};
use molora_models::{Backbone, Decoder, DecoderInput, ForwardContext};
use molora_testkit::device;
use serde_json::json;
use tempfile::TempDir;

use crate::world::{copy_folder, write_json};

/// Tokens of the golden Llama.
const VOCABULARY: usize = 96;

/// A temporary folder with the model `base` and the adapters `law` (rank 4 on q and v), `med` (rank
/// 3 on all layers, rsLoRA) and `dora`.
pub(crate) struct Llama {
    folder: TempDir,
}

impl Llama {
    pub(crate) fn new() -> Self {
        let world = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        for (from, to) in [
            ("llama", "base"),
            ("peft_lora", "law"),
            ("peft_rslora_all", "med"),
            ("peft_dora", "dora"),
        ] {
            copy_folder(&golden(from), &world.path(to));
        }
        write_json(&world.path("base/tokenizer.json"), &tokenizer(VOCABULARY));
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program in this folder.
    pub(crate) fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_molora"));
        command.args(arguments).current_dir(self.folder.path());
        command.env_remove("RUST_LOG");
        command
    }

    /// Runs the program in this folder to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.program(arguments)
            .output()
            .expect("the program starts")
    }

    /// Runs the program, which has to succeed, and returns what it prints.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Runs the program, which has to fail with one line that has these words and write nothing.
    pub(crate) fn refused(&self, arguments: &[&str], words: &[&str]) {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        let line = errors.lines().last().unwrap_or_default();
        assert!(line.starts_with("error: "), "{errors}");
        for word in words {
            assert!(line.contains(word), "{word}: {line}");
        }
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(!self.path("out").exists(), "{arguments:?}");
    }

    /// Puts `law` and `med` together in the run `run`.
    pub(crate) fn assemble(&self, router: &str, more: &[&str]) {
        let mut arguments = vec!["assemble", "--base", "base", "--expert", "law=law"];
        arguments.extend(["--expert", "med=med", "--router", router, "--out", "run"]);
        arguments.extend(more);
        self.done(&arguments);
    }

    /// The base model with an adapter beside its weights, or as it is.
    pub(crate) fn model(&self, adapter: Option<&Path>) -> Decoder {
        let base = self.path("base");
        let mut model = Decoder::from_folder(&base, &device()).expect("the golden Llama");
        if let Some(folder) = adapter {
            let adapter = PeftAdapter::open(folder).expect("an adapter");
            let adapter = adapter.resolve(&model).expect("of this model");
            attach(&mut model, &adapter);
        }
        model
    }

    /// A model of a folder.
    pub(crate) fn read(&self, name: &str) -> Decoder {
        let model = Backbone::from_folder(&self.path(name), &device()).expect("a whole model");
        match model {
            Backbone::Decoder(model) => model,
            _ => panic!("{name} is a Llama"),
        }
    }
}

/// Scores of two padded texts at their last tokens.
pub(crate) fn logits(model: &Decoder) -> Tensor<3> {
    let rows = [vec![3, 17, 5, 80, 21, 8], vec![11, 2, 90]];
    let input = DecoderInput::from_sequences(&rows, &device());
    let context = ForwardContext::new(input.mask.clone().float());
    let logits = model.logits(model.forward(&input, &context).hidden);
    logits.narrow(1, 5, 1)
}

pub(crate) fn golden(name: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../molora-models/tests/golden");
    Path::new(root).join(name)
}

/// Pairs of bytes as SmolLM cuts texts, for a model with rows for `size` tokens: two special tokens, the printable
/// characters of ASCII as far as there is room, and three pairs.
pub(crate) fn byte_pairs(size: usize) -> serde_json::Value {
    let special = ["<|start|>", "<|end|>"];
    let pairs = [("a", "b"), ("\u{120}", "w"), ("ab", "c")];
    let mut tokens: Vec<String> = special.map(str::to_owned).into();
    tokens.extend(pairs.map(|(first, second)| format!("{first}{second}")));
    tokens.extend(["\u{120}".into(), "\u{10a}".into()]);
    // Letters first.
    let characters = (b'a'..=b'z').chain(b'!'..=b'`').chain(b'{'..=b'~');
    tokens.extend(characters.map(|byte| char::from(byte).to_string()));
    tokens.truncate(size);
    let ids = tokens.iter().enumerate();
    let vocab: BTreeMap<&String, usize> = ids.map(|(id, token)| (token, id)).collect();
    let added = |(id, text): (usize, &str)| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let added: Vec<_> = special.into_iter().enumerate().map(added).collect();
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
            "merges": pairs.map(|(first, second)| format!("{first} {second}"))}})
}

/// Words `w0`, `w1`, ... for all tokens.
pub(crate) fn tokenizer(size: usize) -> serde_json::Value {
    let vocab: BTreeMap<String, usize> = (0..size).map(|n| (format!("w{n}"), n)).collect();
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}})
}
