//! Runs on encoders and encoder-decoders of every family, with tokenizers of the kinds that they have. With
//! `MOLORA_GOLDEN` the models are those of that folder.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use molora_models::{About, Family};
use molora_testkit::golden::MOLORA_GOLDEN;
use molora_train::run::train;
use serde_json::{Value, json};

use super::checkpointing;
use super::writer;
use crate::world::{
    World, assert_same_run, copy_folder, read_json, resume_to_end, small, steps, train_until,
    write_json,
};

/// Makes a family's configuration or tokenizer.
type Make = fn() -> Value;

/// Folders of the encoders' families with the tokenizers that they have.
pub(crate) const ENCODERS: [(&str, Make); 8] = [
    ("roberta", byte_pairs),
    ("xlm_roberta", unigrams),
    ("distilbert", words),
    ("electra", words),
    ("mpnet", byte_pairs),
    ("modernbert", byte_pairs),
    ("deberta_v2", unigrams),
    ("deberta_v2_conv", unigrams),
];

/// Words of the world's texts that have a meaning.
const WORDS: [&str; 8] = [
    "purr", "bark", "sun", "rain", "snow", "never", "surely", "w",
];

/// The model of a golden case: of the folder that the environment names, if it has one of this name.
pub(crate) fn golden(family: &str) -> PathBuf {
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/../molora-models/tests/golden");
    let given = std::env::var_os(MOLORA_GOLDEN).map(|folder| PathBuf::from(folder).join(family));
    let given = given.filter(|folder| folder.is_dir());
    given.unwrap_or_else(|| PathBuf::from(bundled).join(family))
}

/// The world with the model of a family and its tokenizer in the place of the tiny BERT.
pub(crate) fn world(family: &str, tokenizer: fn() -> Value) -> World {
    let world = World::new();
    let own = read_json(&world.model("tokenizer.json"));
    copy_folder(&golden(family), &world.path("model"));
    let made = tokenizer();
    write_json(
        &world.model("tokenizer.json"),
        if made.is_null() { &own } else { &made },
    );
    world
}

/// BERT's, as the world has it: second texts are of type 1, whether the model has types or not.
fn words() -> Value {
    Value::Null
}

fn special(names: [&str; 4]) -> Vec<Value> {
    let token = |(id, name): (usize, &str)| {
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    names.into_iter().enumerate().map(token).collect()
}

/// RoBERTa's kind: pairs of bytes, of which U+0120 is a space, and two marks between two texts.
fn byte_pairs() -> Value {
    let names = ["<s>", "<pad>", "</s>", "<unk>"];
    let mut tokens: Vec<String> = names.map(String::from).to_vec();
    let letters = ('a'..='z').chain('0'..='9').chain(['\u{120}']);
    tokens.extend(letters.map(String::from));
    let mut merges = Vec::new();
    for word in WORDS {
        let mut front = "\u{120}".to_owned();
        for letter in word.chars() {
            let longer = format!("{front}{letter}");
            if !tokens.contains(&longer) {
                merges.push(format!("{front} {letter}"));
                tokens.push(longer.clone());
            }
            front = longer;
        }
    }
    let vocab: serde_json::Map<String, Value> = tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": special(names),
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0],
            "trim_offsets": true, "add_prefix_space": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false,
            "vocab": vocab, "merges": merges}})
}

/// XLM-R's and DeBERTa's kind: the likeliest pieces; here with types of second texts, which models
/// without them do not read.
fn unigrams() -> Value {
    let names = ["<s>", "<pad>", "</s>", "<unk>"];
    let mut vocab: Vec<Value> = names.map(|name| json!([name, 0.0])).to_vec();
    vocab.extend(WORDS.map(|word| json!([format!("\u{2581}{word}"), -1.0])));
    let letters = ('a'..='z').chain('0'..='9').chain(['\u{2581}']);
    vocab.extend(letters.map(|letter| json!([letter.to_string(), -5.0])));
    let token = |name: &str, kind: usize| json!({"SpecialToken": {"id": name, "type_id": kind}});
    let text = |name: &str, kind: usize| json!({"Sequence": {"id": name, "type_id": kind}});
    let known = |name: &str, id: usize| json!({"id": name, "ids": [id], "tokens": [name]});
    let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always",
        "split": true});
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": special(names),
        "normalizer": null, "pre_tokenizer": metaspace, "decoder": metaspace,
        "post_processor": {"type": "TemplateProcessing",
            "single": [token("<s>", 0), text("A", 0), token("</s>", 0)],
            "pair": [token("<s>", 0), text("A", 0), token("</s>", 0), text("B", 1),
                token("</s>", 1)],
            "special_tokens": {"<s>": known("<s>", 0), "</s>": known("</s>", 2)}},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": false}})
}

pub(crate) fn done(world: &World, arguments: &[&str]) {
    let output = world.run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
}

/// What the family of a model in the world says of itself.
pub(crate) fn about(world: &World, model: &str) -> &'static About {
    Family::of(&world.path(model)).expect("a family").about
}

/// One LoRA: a run that was stopped ends as one that was not; merged, exported and asked.
#[test]
fn encoders_learn_and_are_written() {
    for (family, tokenizer) in ENCODERS {
        let world = world(family, tokenizer);
        let mut recipe = small("lora");
        recipe.adapter.targets = vec!["all-linear".into()];
        let whole = world.train(&recipe, "run");
        let losses = steps(&whole);
        let (first, last) = (losses[0].loss, losses[losses.len() - 1].loss);
        assert!(last < first, "{family}: {first} to {last}");
        let request = world.request(recipe, "stopped");
        train_until(&request, 7);
        resume_to_end(&request.out);
        assert_same_run(&request.out, &whole);
        done(&world, &["merge", "run", "--out", "merged"]);
        done(&world, &["export", "run", "--out", "peft"]);
        done(&world, &["eval", "run"]);
        let python = [
            "export",
            "run",
            "--format",
            "transformers",
            "--out",
            "python",
        ];
        match about(&world, "model").transformers {
            true => done(&world, &python),
            false => {
                let output = world.run(&python);
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(
                    !output.status.success() && errors.contains("DeBERTa"),
                    "{errors}"
                );
            }
        }
    }
}

/// A mixture with routers: stopped and not, and with layers that are computed again.
#[test]
fn encoders_learn_mixtures() {
    for (family, tokenizer) in ENCODERS {
        let world = world(family, tokenizer);
        let mut recipe = small("samora");
        recipe.adapter.targets = vec!["all-linear".into()];
        let whole = world.train(&recipe, "run");
        let request = world.request(recipe.clone(), "stopped");
        train_until(&request, 7);
        resume_to_end(&request.out);
        assert_same_run(&request.out, &whole);
        for name in ["lora", "samora", "hydralora"] {
            let mut recipe = small(name);
            recipe.adapter.targets = vec!["all-linear".into()];
            let mut request = world.request(recipe, "again");
            request.recipe.set_total_steps(4);
            checkpointing::check(&mut request, &format!("{family}: {name}"));
        }
    }
}

/// The tokenizer of the writer with the marks of a family: the token behind a text, and that in front.
fn marked(world: &World, front: Option<(&str, usize)>, end: (&str, usize)) -> Value {
    let mut tokenizer = read_json(&world.path("writer").join("tokenizer.json"));
    let mark = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}}), mark(end.0)];
    let mut known = json!({end.0: {"id": end.0, "ids": [end.1], "tokens": [end.0]}});
    if let Some((name, id)) = front {
        single.insert(0, mark(name));
        known[name] = json!({"id": name, "ids": [id], "tokens": [name]});
    }
    tokenizer["post_processor"]["single"] = json!(single);
    tokenizer["post_processor"]["special_tokens"] = known;
    tokenizer
}

/// Folders of encoder-decoders.
pub(crate) const ENCODER_DECODERS: [&str; 3] = ["mt5", "umt5", "bart"];

/// The world of the writer with the model of a family that writes, in a folder of its name.
pub(crate) fn writing_world(family: &str) -> World {
    let world = writer::world();
    copy_folder(&golden(family), &world.path(family));
    let own = read_json(&world.path("writer").join("tokenizer.json"));
    if !ENCODER_DECODERS.contains(&family) {
        write_json(&world.path(family).join("tokenizer.json"), &own);
        return world;
    }
    let id = |name: &str| own["model"]["vocab"][name].as_u64().map(|id| id as usize);
    let (start, end) = (id("<s>"), id("</s>"));
    let (Some(start), Some(end)) = (start, end) else {
        panic!("the writer has marks: {}", own["model"]["vocab"]);
    };
    let front = (family == "bart").then_some(("<s>", start));
    let tokenizer = marked(&world, front, ("</s>", end));
    write_json(&world.path(family).join("tokenizer.json"), &tokenizer);
    // The number that the tokenizer gives the end of a text.
    World::edit(&world.path(family).join("config.json"), |config| {
        config["eos_token_id"] = json!(end);
    });
    world
}

/// Every linear layer that PEFT has a place for: of Qwen3-MoE not those of layers without experts.
pub(crate) fn targets(world: &World, family: &str) -> Vec<String> {
    let all = match about(world, family).model_type {
        "qwen3_moe" => "regex:.*(self_attn|experts).*",
        _ => "all-linear",
    };
    vec![all.into()]
}

/// Encoder-decoders read the prompt and write the answer.
#[test]
fn encoder_decoders_learn_too() {
    for family in ENCODER_DECODERS {
        let world = writing_world(family);
        for name in ["lora", "samora"] {
            let mut recipe = writer::recipe(name, 120);
            recipe.objective.terms.clear();
            let mut request = writer::request(&world, recipe, &["pets", "sky"], name);
            request.model = world.path(family).to_str().expect("UTF-8").into();
            let run = train(&request, &AtomicBool::new(false), &mut |_| {});
            let run = run.unwrap_or_else(|error| panic!("{family}: {name}: {error}"));
            let losses = steps(&request.out);
            let (first, last) = (losses[0].loss, losses[losses.len() - 1].loss);
            assert!(last < 0.8 * first, "{family}: {name}: {first} to {last}");
            assert!(run.eval.tasks.contains_key("pets"), "{family}: {name}");
        }
        done(&world, &["merge", "lora", "--out", "merged"]);
        done(&world, &["export", "lora", "--out", "peft"]);
        done(
            &world,
            &[
                "generate",
                "lora",
                "--prompt",
                "purr",
                "--max-new-tokens",
                "4",
            ],
        );
        let python = [
            "export",
            "samora",
            "--format",
            "transformers",
            "--out",
            "python",
        ];
        done(&world, &python);
    }
}
