//! Runs that transformers has to compute as molora does, with the Python of their exports.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Tensor, TensorData};
use molora_adapters::task_selector;
use molora_kernels::random::Seed;
use molora_models::{
    Adaptable, AdapterSpec, Backbone, Decoder, DecoderInput, ForwardContext, GenerateOptions, T5,
    load_adapter,
};
use molora_routing::{Granularity, Guidance};
use molora_testkit::device;
use molora_train::data::{PromptStyle, TextTokenizer};
use molora_train::guide::{Clusters, Instructions};
use molora_train::recipe::{self, Recipe, Transform};
use molora_train::run::train;
use serde_json::{Value, json};

use super::{close, kind};
use crate::exchange::decoder::golden;
use crate::program::{families, writer};
use crate::world::{World, copy_folder, read_json, small, write_json};

/// Prompts of different lengths, so that one is padded.
const PROMPTS: [&str; 2] = ["which ? w0 purr w1 : answer", "w3 sun w1 which"];
/// Tokens of a prompt that the first pass with a cache reads.
const FIRST: usize = 3;
/// Tokens that are written.
const WRITTEN: usize = 32;
const TASKS: [&str; 2] = ["pets", "sky"];
/// What an encoder-decoder has written so far.
const TARGET: [i64; 4] = [0, 7, 4, 9];

/// Recipes whose mixtures do not act at linear layers.
const REFUSED: [&str; 5] = ["jiuzhang", "lily", "mixlora", "mtlora", "x-lora"];

/// A recipe for the tasks of the tiny decoder, whose texts are compared by the tiny encoder.
fn tiny(world: &World, name: &str) -> Recipe {
    let mut recipe = writer::recipe(name, 12);
    let model = world.path("model").to_str().expect("UTF-8").to_owned();
    if let Some(instructions) = recipe.instructions_mut() {
        instructions.encoder = model;
    }
    if let Some(groups) = recipe.adapter.task_groups_mut() {
        *groups = [("all".into(), TASKS.map(String::from).to_vec())].into();
    }
    recipe
}

/// Trains a decoder or an encoder-decoder of a folder, and exports the run to `out`.
fn exported(world: &World, model: &str, recipe: Recipe) {
    let mut request = writer::request(world, recipe, &TASKS, "run");
    request.model = world.path(model).to_str().expect("UTF-8").into();
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    export(world);
}

fn export(world: &World) {
    let output = world.run(&["export", "run", "--format", "transformers", "out"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

/// A run that was exported to `out`, as molora reads it.
struct Run<'a> {
    world: &'a World,
    model: Backbone,
    tokenizer: TextTokenizer,
}

impl<'a> Run<'a> {
    fn open(world: &'a World, base: &str) -> Self {
        let config = read_json(&world.path("out/config.json"));
        let spec = config["molora"]["adapter"].clone();
        let spec: AdapterSpec = serde_json::from_value(spec).expect("a specification");
        let base = world.path(base);
        let mut model = Backbone::from_folder(&base, &device()).expect("a whole model");
        let tasks = config["molora"]["tasks"].as_array().expect("a list").len();
        model
            .attach(&spec.to_be_filled(), tasks, Seed::new(0), &device())
            .expect("the run's specification");
        load_adapter(&world.path("run"), &mut model, &spec).expect("the run's adapter");
        Self {
            world,
            model,
            tokenizer: TextTokenizer::from_folder(&base).expect("a tokenizer"),
        }
    }

    fn ids(&self, text: &str) -> Vec<usize> {
        let ids = self.tokenizer.encode_whole(text, true).expect("tokens");
        ids.into_iter().map(|id| id as usize).collect()
    }

    /// What routers are told of texts of a task, and the vectors of the texts, if they are read.
    fn told(&self, texts: &[&str], task: Option<usize>) -> (ForwardContext, Option<Vec<Vec<f32>>>) {
        let run = self.world.path("run");
        let rows = |rows: &[Vec<f32>]| {
            let shape = [rows.len(), rows[0].len()];
            Tensor::<2>::from_data(TensorData::new(rows.concat(), shape), &device())
        };
        let tasks = vec![task; texts.len()];
        let mut context = ForwardContext::new(Tensor::ones([1, 1], &device()));
        context.tasks = Some(task_selector(&tasks, TASKS.len(), &device()).expect("a task"));
        let mut vectors = None;
        if run.join("instructions.json").is_file() {
            let known = Instructions::load(&run, &TASKS.map(String::from)).expect("instructions");
            let encoder = known.text_encoder(&device()).expect("the tiny model");
            let texts = encoder.embed(texts).expect("vectors");
            let queries = match task {
                Some(task) => vec![known.experts[task].vector.clone(); texts.len()],
                None => texts.clone(),
            };
            context.guidance.bias = Some(rows(&known.scores(&queries, &device())));
            vectors = Some(texts);
        }
        if run.join("clusters.json").is_file() {
            let count = read_json(&run.join("clusters.json"))["clusters"].as_u64();
            let known = Clusters::load(&run, count.expect("a number") as usize);
            let known = known.expect("clusters");
            let encoder = known.text_encoder(&device()).expect("the tiny model");
            let places = known.of_texts(texts, &encoder).expect("places");
            let one = |place: usize| {
                let mut row = vec![0.0; known.clusters];
                row[place] = 1.0;
                row
            };
            let clusters: Vec<_> = places.iter().map(|place| one(place.cluster)).collect();
            let similarities: Vec<_> = places.into_iter().map(|place| place.similarities).collect();
            context.guidance = Guidance {
                clusters: Some(rows(&clusters)),
                similarities: Some(rows(&similarities)),
                ..Guidance::default()
            };
            vectors = Some(encoder.embed(texts).expect("vectors"));
        }
        (context, vectors)
    }
}

fn with_mask(context: &ForwardContext, input: &DecoderInput) -> ForwardContext {
    ForwardContext {
        mask: input.mask.clone().float(),
        ..context.clone()
    }
}

fn sequence(ids: &[usize]) -> DecoderInput {
    DecoderInput::from_sequences(&[ids.to_vec()], &device())
}

/// Scores of a text, and of one that a cache reads in two parts.
fn scores(model: &Decoder, ids: &[usize], context: &ForwardContext) -> [Tensor<3>; 2] {
    let whole = sequence(ids);
    let alone = model.logits(model.forward(&whole, &with_mask(context, &whole)).hidden);
    let mut cache = model.cache();
    let parts = [&ids[..FIRST], &ids[FIRST..]].map(|part| {
        let part = sequence(part);
        let hidden = model.forward_cached(&part, &mut cache, &with_mask(context, &part));
        model.logits(hidden.hidden)
    });
    [alone, Tensor::cat(parts.to_vec(), 1)]
}

fn target_scores(model: &T5, ids: &[usize], context: &ForwardContext) -> Tensor<3> {
    let encoded = model.encode(&sequence(ids), context);
    let target = sequence(&TARGET.map(|id| id as usize));
    model.logits(model.decode(&target, &encoded, context).hidden)
}

/// Keeps the export of a run of a decoder or an encoder-decoder with what molora computes, if there is a place.
fn keep_writer(run: &Run<'_>, name: &str) {
    let rows: Vec<Vec<usize>> = PROMPTS.iter().map(|text| run.ids(text)).collect();
    let options = GenerateOptions {
        max_new_tokens: WRITTEN,
        ..GenerateOptions::default()
    };
    let (mut expected, mut written) = (Vec::new(), serde_json::Map::new());
    let (_, vectors) = run.told(&PROMPTS, None);
    for task in [None, Some(0)] {
        let of = task.map_or("none", |task: usize| TASKS[task]);
        for (row, (ids, text)) in rows.iter().zip(PROMPTS).enumerate() {
            let (context, _) = run.told(&[text], task);
            let name = format!("{of} {row}");
            match &run.model {
                Backbone::Decoder(model) => {
                    let [alone, cached] = scores(model, ids, &context);
                    expected.extend([(name.clone(), alone), (format!("{name} cached"), cached)]);
                }
                Backbone::EncoderDecoder(model) => {
                    expected.push((name, target_scores(model, ids, &context)));
                }
                Backbone::Encoder(_) => unreachable!("it writes"),
            }
        }
        let (context, _) = run.told(&PROMPTS, task);
        let prompts = DecoderInput::from_sequences(&rows, &device());
        let found = match &run.model {
            Backbone::Decoder(model) => model.generate(&prompts, &options, &context),
            Backbone::EncoderDecoder(model) => model.generate(&prompts, &options, &context),
            Backbone::Encoder(_) => unreachable!("it writes"),
        };
        let found: Vec<_> = found
            .expect("texts")
            .into_iter()
            .map(|row| row.tokens)
            .collect();
        program_writes(run, task, &found);
        written.insert(of.into(), json!(found));
    }
    let case = json!({"kind": kind(&run.model), "method": "transformers", "rows": rows, "first": FIRST,
        "written": written, "vectors": vectors, "target": TARGET});
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, of)| (&name[..], of.clone()))
        .collect();
    keep(run.world, name, &case, &expected);
}

fn keep(world: &World, name: &str, case: &Value, expected: &[(&str, Tensor<3>)]) {
    let Some(root) = std::env::var_os("MOLORA_PARITY") else {
        return;
    };
    let out = Path::new(&root).join(format!("transformers-{name}"));
    copy_folder(&world.path("out"), &out.join("model"));
    close(&out, case, expected);
}

/// `molora generate` writes these tokens, up to the one that ends a text.
fn program_writes(run: &Run<'_>, task: Option<usize>, expected: &[Vec<usize>]) {
    let end = read_json(&run.world.path("out/config.json"))["eos_token_id"].as_u64();
    let count = WRITTEN.to_string();
    let mut arguments = vec!["generate", "run", "--json", "--max-new-tokens", &count];
    arguments.extend(PROMPTS.iter().flat_map(|&prompt| ["--prompt", prompt]));
    arguments.extend(task.iter().flat_map(|&task| ["--task", TASKS[task]]));
    let output = run.world.run(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for (line, tokens) in text.lines().zip(expected) {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let tokens = tokens.iter().map(|&token| token as u32);
        let tokens: Vec<u32> = tokens.take_while(|&t| Some(t.into()) != end).collect();
        assert_eq!(line["tokens"], tokens.len(), "{line}");
        let text = run.tokenizer.decode(&tokens).expect("a text");
        let found = line["text"].as_str().expect("a text");
        assert_eq!(found.trim(), text.trim());
    }
}

#[test]
fn decoders_of_every_recipe_for_transformers() {
    for name in recipe::names().filter(|name| !REFUSED.contains(name)) {
        let world = writer::world();
        exported(&world, "writer", tiny(&world, name));
        keep_writer(&Run::open(&world, "writer"), name);
    }
}

/// A fused layer of GPT-2, normalised heads, magnitudes, and decisions for sequences in T5.
#[test]
fn other_families_for_transformers() {
    for (family, name, change) in [
        ("gpt2", "hydralora", "none"),
        ("gpt2", "lora", "dora"),
        ("qwen2", "samora", "none"),
        ("qwen3", "hydralora", "dora"),
        ("llama", "hydralora", "sequence"),
        ("llama", "moa", "first"),
        ("llama", "moa", "vote"),
        ("t5", "samora", "none"),
        ("t5_v1_1", "hydralora", "sequence"),
        ("mt5", "samora", "none"),
        ("umt5", "hydralora", "sequence"),
        ("bart", "samora", "none"),
        ("bart", "hydralora", "sequence"),
        ("gemma", "samora", "none"),
        ("gemma2", "hydralora", "sequence"),
        ("gemma3", "samora", "none"),
        ("granite", "hydralora", "dora"),
        ("mistral_window", "samora", "none"),
        ("olmo2", "hydralora", "sequence"),
        ("olmo2", "moa", "first"),
        ("phi3", "hydralora", "none"),
        ("smollm3", "samora", "none"),
    ] {
        let world = writer::world();
        copy_folder(&golden(family), &world.path("base"));
        let mut tokenizer = read_json(&world.path("writer/tokenizer.json"));
        if family.contains("t5") {
            ends_with_one(&mut tokenizer);
        }
        write_json(&world.path("base/tokenizer.json"), &tokenizer);
        let mut recipe = tiny(&world, name);
        recipe.adapter.dora |= change == "dora";
        match change {
            "first" => recipe.adapter.layer_rule = molora_routing::LayerRule::First,
            "vote" => recipe.adapter.layer_rule = molora_routing::LayerRule::Vote,
            _ => {}
        }
        if let Some(router) = recipe
            .adapter
            .router
            .as_mut()
            .filter(|_| change == "sequence")
        {
            router.granularity = Granularity::Sequence;
        }
        exported(&world, "base", recipe);
        keep_writer(
            &Run::open(&world, "base"),
            &format!("{family}-{name}-{change}"),
        );
    }
}

/// A model of ordinary size in the folder `MOLORA_PARITY_MODEL`, if one is named.
#[test]
fn a_given_decoder_for_transformers() {
    let Some(folder) = std::env::var_os("MOLORA_PARITY_MODEL") else {
        return;
    };
    for name in ["hydralora", "samora", "moa", "glider"] {
        let world = writer::world();
        copy_folder(Path::new(&folder), &world.path("base"));
        let mut recipe = tiny(&world, name);
        recipe.set_total_steps(6);
        // Prompts are compared as they are, also those of a model with a chat template.
        recipe.data.writing.prompt = PromptStyle::Plain;
        exported(&world, "base", recipe);
        keep_writer(&Run::open(&world, "base"), &format!("given-{name}"));
    }
}

/// The number that T5's own configuration gives the end of a text.
fn ends_with_one(tokenizer: &mut Value) {
    tokenizer["post_processor"]["single"] = json!([
        {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]);
    tokenizer["post_processor"]["special_tokens"] =
        json!({"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}});
    let vocab = &mut tokenizer["model"]["vocab"];
    (vocab["</s>"], vocab["<s>"]) = (1.into(), 2.into());
    tokenizer["added_tokens"][1]["content"] = "</s>".into();
    tokenizer["added_tokens"][2]["content"] = "<s>".into();
}

/// Scores of classes, as `molora predict` gives them.
#[test]
fn encoders_of_every_recipe_for_transformers() {
    for name in recipe::names().filter(|name| !REFUSED.contains(name)) {
        keep_encoder(&World::new(), "bert", name);
    }
}

/// By their own tokenizers.
#[test]
fn other_encoders_for_transformers() {
    let known = families::ENCODERS.into_iter();
    for (family, tokenizer) in known.filter(|(family, _)| !family.starts_with("deberta")) {
        for name in ["lora", "hydralora", "samora"] {
            keep_encoder(&families::world(family, tokenizer), family, name);
        }
    }
}

/// Trains an encoder by a recipe and keeps its export with the scores of classes.
fn keep_encoder(world: &World, family: &str, name: &str) {
    let mut recipe = small(name);
    if family != "bert" {
        recipe.adapter.targets = vec!["all-linear".into()];
    }
    let model = world.path("model").to_str().expect("UTF-8").to_owned();
    if let Some(instructions) = recipe.instructions_mut() {
        instructions.encoder = model.clone();
    }
    world.train(&recipe, "run");
    export(world);
    let tokenizer = TextTokenizer::from_folder(&world.path("model")).expect("a tokenizer");
    let has_clusters = recipe
        .stages
        .iter()
        .any(|stage| matches!(stage.transform, Some(Transform::Cluster(_))));
    let mut tasks = serde_json::Map::new();
    let mut expected = Vec::new();
    for task in ["pets", "weather"] {
        let text = std::fs::read_to_string(world.data(&format!("{task}/test.jsonl")));
        let records = text.expect("records");
        let records: Vec<Value> = records
            .lines()
            .take(5)
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let asked = records.iter().map(|record| {
            let line = json!({"id": record["id"], "input": record["input"]});
            format!("{line}\n")
        });
        let file = world.path("asked.jsonl");
        std::fs::write(&file, asked.collect::<String>()).expect("writable");
        let output = world.run(&["predict", "run", "--task", task, "--input", "asked.jsonl"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let labels = read_json(&world.data(&format!("{task}/task.json")))["labels"].clone();
        let labels = labels.as_array().expect("labels").clone();
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let scores: Vec<f32> = text
            .lines()
            .flat_map(|line| {
                let line: Value = serde_json::from_str(line).expect("JSON");
                let score = |label: &Value| line["scores"][label.as_str()?].as_f64();
                let scores = labels
                    .iter()
                    .map(|label| score(label).expect("a score") as f32);
                scores.collect::<Vec<_>>()
            })
            .collect();
        let shape = [1, records.len(), labels.len()];
        let scores = Tensor::<3>::from_data(TensorData::new(scores, shape), &device());
        expected.push((task, scores));
        let inputs: Vec<&str> = records
            .iter()
            .map(|record| record["input"].as_str().expect("a text"))
            .collect();
        let pairs: Vec<_> = inputs.iter().map(|&text| (text, None)).collect();
        let rows = tokenizer
            .encode_batch(&pairs, recipe.data.max_length)
            .expect("tokens");
        let rows: Vec<_> = rows.into_iter().map(|row| row.ids).collect();
        let vectors = has_clusters.then(|| {
            let encoder = molora_train::guide::TextEncoder::open(&model, &device());
            encoder
                .expect("the tiny model")
                .embed(&inputs)
                .expect("vectors")
        });
        tasks.insert(task.into(), json!({"rows": rows, "vectors": vectors}));
    }
    let case = json!({"kind": "encoder", "method": "heads", "tasks": tasks});
    keep(world, &format!("{family}-{name}"), &case, &expected);
}
