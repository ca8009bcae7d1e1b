//! A tiny decoder and tiny tasks whose answers are written, beside those of [`World`].

use molora_models::ExpertCount;
use std::collections::BTreeMap;
use std::path::Path;

use molora_train::recipe::Recipe;
use molora_train::run::Request;
use serde_json::{Value, json};

use crate::world::{Draw, Tensors, World, small, write_json, write_tensors};

pub(crate) const WIDTH: usize = 32;
const INNER: usize = 48;
const LAYERS: usize = 2;

/// All words that the tasks use; the first three are special.
const WORDS: [&str; 32] = [
    "<unk>",
    "<s>",
    "</s>",
    "answer",
    ":",
    "which",
    "?",
    "cat",
    "dog",
    "purr",
    "bark",
    "yes",
    "no",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "plus",
    "sun",
    "rain",
    "warm",
    "wet",
    "w0",
    "w1",
    "w2",
    "w3",
    "w4",
    "w5",
    "user",
    "assistant",
];

/// A world with a folder `writer` for the model and `texts` for the tasks: `pets` with labels, `sky`
/// with choices, `sums` whose answers are numbers that are written, `length` whose are told.
pub(crate) fn world() -> World {
    let world = World::new();
    let model = world.path("writer");
    std::fs::create_dir(&model).expect("a new folder");
    write_json(&model.join("config.json"), &config());
    write_json(&model.join("tokenizer.json"), &tokenizer());
    write_tensors(&model.join("model.safetensors"), &weights());
    let mut draw = Draw(3);
    let pets = |draw: &mut Draw, index: usize| {
        let label = index % 2;
        let input = draw.words(&["w0", "w1", "w2"], ["purr", "bark"][label]);
        let output = ["cat", "dog"][label];
        json!({"input": input, "label": label, "output": output, "choices": null})
    };
    write_task(
        &world,
        "pets",
        "classification",
        json!(["cat", "dog"]),
        "accuracy",
        |index| pets(&mut draw, index),
    );
    let mut draw = Draw(4);
    write_task(
        &world,
        "sky",
        "multiple_choice",
        Value::Null,
        "accuracy",
        |index| {
            let answer = index % 2;
            let input = draw.words(&["w3", "w4"], ["sun", "rain"][answer]);
            let mut choices = vec!["warm", "wet", "yes wet"];
            choices.rotate_left(index % 3);
            let wanted = ["warm", "wet"][answer];
            let label = choices.iter().position(|choice| *choice == wanted);
            json!({"input": input, "label": label, "output": wanted, "choices": choices})
        },
    );
    write_task(
        &world,
        "sums",
        "generation",
        Value::Null,
        "exact match",
        |index| {
            let (a, b) = (1 + index % 3, 1 + index / 3 % 3);
            json!({"input": format!("{a} plus {b}"), "label": null, "output": format!("{}", a + b),
            "choices": null})
        },
    );
    let mut draw = Draw(5);
    write_task(
        &world,
        "length",
        "regression",
        Value::Null,
        "spearman",
        |index| {
            let count = 1 + index % 4;
            let text: Vec<&str> = (0..count).map(|_| ["w0", "w5"][draw.below(2)]).collect();
            json!({"input": text.join(" "), "label": count as f64 / 2.0, "output": "", "choices": null})
        },
    );
    world
}

/// A request for a run of a bundled recipe on tasks of the world.
pub(crate) fn request(world: &World, recipe: Recipe, tasks: &[&str], out: &str) -> Request {
    let text = |name| world.path(name).to_str().expect("UTF-8").to_owned();
    Request {
        model: text("writer"),
        data: text("texts"),
        tasks: Some(tasks.iter().map(|&task| task.into()).collect()),
        ..world.request(recipe, out)
    }
}

/// A bundled recipe for the tiny decoder.
pub(crate) fn recipe(name: &str, steps: usize) -> Recipe {
    let mut recipe = small(name);
    recipe.data.writing.max_length = 40;
    recipe.data.writing.max_new_tokens = 3;
    recipe.data.sampling.batch_size = 12;
    recipe.adapter.targets = vec!["all-linear".into()];
    if recipe.adapter.bank.start.reads_weight() {
        // Segments of a matrix of width 16 for all experts.
        recipe.adapter.bank.rank = 2;
    }
    if let ExpertCount::ByLayer(list) = &mut recipe.adapter.experts {
        list.truncate(LAYERS);
    }
    recipe.set_total_steps(steps);
    for stage in &mut recipe.stages {
        stage.optimizer.learning_rate = 1e-2;
        stage.optimizer.learning_rates.clear();
    }
    recipe
}

fn write_task(
    world: &World,
    name: &str,
    kind: &str,
    labels: Value,
    metric: &str,
    mut record: impl FnMut(usize) -> Value,
) {
    let folder = world.path("texts").join(name);
    std::fs::create_dir_all(&folder).expect("a new folder");
    let meta = json!({"task": name, "type": kind, "instruction": "which ?", "labels": labels,
        "metric": metric});
    write_json(&folder.join("task.json"), &meta);
    for (split, records) in [("train", 48), ("validation", 6), ("test", 24)] {
        let line = |index: usize| {
            let mut line = record(index);
            let fixed = json!({"id": format!("{name}-{split}-{index}"), "task": name, "type": kind,
                "instruction": "which ?", "input_b": null});
            let fixed = fixed.as_object().expect("an object").clone();
            line.as_object_mut().expect("an object").extend(fixed);
            format!("{line}\n")
        };
        let lines: String = (0..records).map(line).collect();
        std::fs::write(folder.join(format!("{split}.jsonl")), lines).expect("writable");
    }
}

fn config() -> Value {
    json!({"model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
        "vocab_size": WORDS.len(), "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 48, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": true})
}

/// Whole words, each text behind `<s>`.
fn tokenizer() -> Value {
    let vocab: BTreeMap<&str, usize> = WORDS.into_iter().zip(0..).collect();
    let special = |id: usize| {
        json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}})
}

fn weights() -> Tensors {
    let mut tensors = Tensors::new();
    let mut draw = Draw(11);
    let mut add = |name: String, shape: &[usize], bound: f32| {
        let count = shape.iter().product();
        let values = (0..count).map(|_| bound * draw.number()).collect();
        tensors.insert(name, (shape.to_vec(), values));
    };
    add(
        "model.embed_tokens.weight".into(),
        &[WORDS.len(), WIDTH],
        1.0,
    );
    let mut norms = vec!["model.norm".to_owned()];
    for layer in 0..LAYERS {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        for (part, input, output) in [
            ("self_attn.q_proj", WIDTH, WIDTH),
            ("self_attn.k_proj", WIDTH, WIDTH / 2),
            ("self_attn.v_proj", WIDTH, WIDTH / 2),
            ("self_attn.o_proj", WIDTH, WIDTH),
            ("mlp.gate_proj", WIDTH, INNER),
            ("mlp.up_proj", WIDTH, INNER),
            ("mlp.down_proj", INNER, WIDTH),
        ] {
            let bound = (3.0 / input as f32).sqrt();
            add(format!("{}.weight", at(part)), &[output, input], bound);
        }
        norms.extend([at("input_layernorm"), at("post_attention_layernorm")]);
    }
    for norm in norms {
        tensors.insert(format!("{norm}.weight"), (vec![WIDTH], vec![1.0; WIDTH]));
    }
    tensors
}

/// Whether a folder holds a file.
pub(crate) fn has(folder: &Path, file: &str) -> bool {
    folder.join(file).is_file()
}
