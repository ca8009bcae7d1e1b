//! Runs on a model that writes its answers.

use std::sync::atomic::AtomicBool;

use molora_train::recipe::Recipe;
use molora_train::report::{EvalReport, read_steps};
use molora_train::run::{Finished, evaluate_run, train};
use molora_train::{TrainError, recipe};
use serde_json::Value;

use super::writer;
use super::writer::request;
use crate::world::{
    World, assert_same_run, copy_folder, read_json, resume_to_end, small, train_until, write_json,
};

pub(crate) fn run(world: &World, recipe: Recipe, tasks: &[&str], out: &str) -> Finished {
    let request = request(world, recipe, tasks, out);
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run")
}

fn losses(world: &World, out: &str) -> Vec<f64> {
    let steps = read_steps(&world.path(out).join("steps.jsonl")).expect("whole records");
    steps.iter().map(|step| step.loss).collect()
}

fn score(eval: &EvalReport, task: &str) -> f64 {
    eval.tasks[task].value
}

/// Labels, choices and written numbers are learned together, and a number that a head tells.
#[test]
fn every_kind_of_task_is_learned() {
    let world = writer::world();
    let tasks = ["pets", "sky", "sums", "length"];
    let mut recipe = writer::recipe("samora", 160);
    recipe.objective.terms.clear();
    let finished = run(&world, recipe, &tasks, "run");
    for (task, least) in [("pets", 0.95), ("sky", 0.9), ("sums", 0.6), ("length", 0.9)] {
        let found = score(&finished.eval, task);
        assert!(
            found >= least,
            "{task}: {found}, {:?}",
            finished.eval.tasks[task]
        );
    }
    let sums = &finished.eval.tasks["sums"];
    assert_eq!(sums.metric, "exact_match");
    assert_eq!(sums.accuracy, Some(sums.value));
    assert!((sums.also["answer_nll"].exp() - sums.also["perplexity"]).abs() < 1e-9);
    let sky = &finished.eval.tasks["sky"];
    assert!(sky.also["accuracy_per_character"] > 0.5 && sky.also["right_nll"] < 1.0);
    assert_eq!(finished.eval.tasks["length"].accuracy, None);
    let accuracies: Vec<f64> = finished
        .eval
        .tasks
        .values()
        .filter_map(|t| t.accuracy)
        .collect();
    let mean = accuracies.iter().sum::<f64>() / 3.0;
    assert!((finished.eval.mean_accuracy - mean).abs() < 1e-12);
    // All but the regression's head is written, and every task has its share in the routing.
    let parameters = &finished.summary.parameters;
    assert_eq!(parameters.heads, writer::WIDTH + 1);
    assert!(
        finished
            .routing
            .sites
            .iter()
            .all(|site| site.weights.len() == tasks.len())
    );
    let predictions = read_json(&world.path("run").join("predictions.json"));
    assert!(predictions["tasks"]["sums"][0].is_string());
    assert!(predictions["tasks"]["length"][0].is_f64());
    assert!(predictions["tasks"]["sky"][0].is_u64());
    // Read again it is the same model.
    let (again, _) = evaluate_run(&world.path("run"), None, None).expect("a finished run");
    assert_eq!(again.tasks.len(), tasks.len());
    for (task, score) in &again.tasks {
        let expected = &finished.eval.tasks[task];
        assert_eq!(
            (score.value, score.accuracy),
            (expected.value, expected.accuracy)
        );
        for (name, value) in &score.also {
            let gap = (value - expected.also[name]).abs();
            assert!(gap < 1e-5, "{task}: {name} differs by {gap}");
        }
    }
}

#[test]
fn every_recipe_trains_a_decoder() {
    let world = writer::world();
    for name in recipe::names() {
        let mut recipe = writer::recipe(name, 24);
        if name == "at-moe" {
            let all = ["pets", "sky"].map(String::from);
            *recipe.adapter.task_groups_mut().expect("it has groups") =
                [("all".into(), all.to_vec())].into();
        }
        let finished = run(&world, recipe, &["pets", "sky"], name);
        for (task, score) in &finished.eval.tasks {
            assert!((0.0..=1.0).contains(&score.value), "{name}: {task}");
        }
        assert!(writer::has(&world.path(name), "summary.json"), "{name}");
        let losses = losses(&world, name);
        assert!(losses.iter().all(|loss| loss.is_finite()), "{name}");
    }
}

/// Packed rows ask for the same tokens, and nothing of one example reaches another.
#[test]
fn packing_changes_the_rows_and_not_the_losses() {
    let world = writer::world();
    for name in ["lora", "samora", "mosld"] {
        let of = |packing: bool, micro: usize, out: &str| {
            let mut recipe = writer::recipe(name, 6);
            recipe.data.writing.packing = packing;
            recipe.adapter.bank.dropout = 0.0;
            recipe.adapter.bank.weight_dropout = 0.0;
            recipe.objective.terms.clear();
            recipe.stages[0].micro_batch_size = micro;
            let finished = run(&world, recipe, &["pets", "sums"], out);
            (losses(&world, out), finished.summary.padding_share)
        };
        let (alone, padding) = of(false, 0, &format!("{name}-alone"));
        let (packed, packed_padding) = of(true, 0, &format!("{name}-packed"));
        let (micro, _) = of(true, 1, &format!("{name}-micro"));
        for (place, (alone, packed)) in alone.iter().zip(&packed).enumerate() {
            assert!(
                (alone - packed).abs() < 1e-4 * alone,
                "{name} {place}: {alone} {packed}"
            );
            let micro = micro[place];
            assert!(
                (alone - micro).abs() < 1e-4 * alone,
                "{name} {place}: {alone} {micro}"
            );
        }
        assert!(packed_padding < 1.0 && padding < 1.0);
    }
}

#[test]
fn a_stopped_run_goes_on_as_if_it_had_not_been() {
    let world = writer::world();
    let tasks = ["sky", "length", "sums"];
    let whole = request(&world, writer::recipe("samora", 12), &tasks, "whole");
    train(&whole, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let cut = request(&world, writer::recipe("samora", 12), &tasks, "cut");
    train_until(&cut, 7);
    resume_to_end(&cut.out);
    assert_same_run(&cut.out, &whole.out);
}

#[test]
fn an_encoder_refuses_what_has_to_be_written() {
    let world = writer::world();
    let mut request = request(&world, small("lora"), &["pets", "sky", "sums"], "run");
    request.model = world.path("model").to_str().expect("UTF-8").into();
    let error = train(&request, &AtomicBool::new(false), &mut |_| {}).expect_err("no writer");
    assert_eq!(
        error.to_string(),
        "sky is multiple_choice, sums is generation: an encoder writes no answers; choose a decoder \
         or an encoder-decoder with --model, or other tasks with --tasks"
    );
    assert!(!world.path("run").exists());
}

fn refusal(world: &World, recipe: Recipe) -> String {
    let request = request(world, recipe, &["pets"], "run");
    let error = train(&request, &AtomicBool::new(false), &mut |_| {}).expect_err("refused");
    assert!(
        matches!(error, TrainError::Recipe { .. } | TrainError::Run { .. }),
        "{error:?}"
    );
    assert!(!world.path("run").exists());
    error.to_string()
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let world = writer::world();
    let mut recipe = writer::recipe("lora", 2);
    recipe.data.writing.max_length = 49;
    let text = refusal(&world, recipe);
    assert!(
        text.contains("data.writing.max_length 49 exceeds the model's 48 positions"),
        "{text}"
    );
    let mut recipe = writer::recipe("moa", 2);
    recipe.data.writing.packing = true;
    let text = refusal(&world, recipe);
    assert!(
        text.contains("data.writing.packing is true, but the routers decide"),
        "{text}"
    );
    let mut recipe = writer::recipe("lora", 2);
    recipe.data.writing.prompt = molora_train::data::PromptStyle::Chat;
    let text = refusal(&world, recipe);
    assert!(text.contains("the model has no chat template"), "{text}");
}

/// T5 reads the prompt and writes the answer.
#[test]
fn an_encoder_decoder_learns_too() {
    let world = writer::world();
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../molora-models/tests/golden/t5"
    );
    copy_folder(golden.as_ref(), &world.path("t5"));
    let mut tokenizer = read_json(&world.path("writer").join("tokenizer.json"));
    tokenizer["post_processor"]["single"] = serde_json::json!([
        {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]);
    tokenizer["post_processor"]["special_tokens"] =
        serde_json::json!({"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}});
    // The number that T5's own configuration gives the end of a text.
    let vocab = &mut tokenizer["model"]["vocab"];
    (vocab["</s>"], vocab["<s>"]) = (1.into(), 2.into());
    tokenizer["added_tokens"][1]["content"] = "</s>".into();
    tokenizer["added_tokens"][2]["content"] = "<s>".into();
    write_json(&world.path("t5").join("tokenizer.json"), &tokenizer);
    for name in ["lora", "samora"] {
        let mut recipe = writer::recipe(name, 120);
        recipe.objective.terms.clear();
        let mut request = request(&world, recipe, &["pets", "sky", "sums", "length"], name);
        request.model = world.path("t5").to_str().expect("UTF-8").into();
        let run = train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
        let losses = losses(&world, name);
        assert!(
            losses[119] < 0.7 * losses[0],
            "{name}: {} {}",
            losses[0],
            losses[119]
        );
        assert!(
            score(&run.eval, "pets") > 0.6,
            "{name}: {:?}",
            run.eval.tasks["pets"]
        );
        let (again, _) = evaluate_run(&request.out, None, None).expect("a finished run");
        assert_eq!(score(&again, "pets"), score(&run.eval, "pets"), "{name}");
    }
}

/// A model that writes can be asked anything: tasks of other runs, and without any adapter.
#[test]
fn other_tasks_and_the_base_model_are_scored() {
    let world = writer::world();
    run(
        &world,
        writer::recipe("samora", 30),
        &["pets", "sky"],
        "run",
    );
    let asked = |arguments: &[&str]| {
        let output = world.run(&[&["eval"], arguments, &["--json"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let own = asked(&["run"]);
    let both = asked(&["run", "--tasks", "sums,pets"]);
    assert_eq!(both["tasks"]["pets"], own["tasks"]["pets"]);
    assert!(both["tasks"]["sums"]["also"]["answer_nll"].is_f64());
    let base = asked(&["writer", "--data", "texts", "--tasks", "pets,sums"]);
    assert!(
        base["tasks"]["pets"]["also"]["right_nll"] != own["tasks"]["pets"]["also"]["right_nll"]
    );
    for (arguments, expected) in [
        (
            &["writer", "--data", "texts"][..],
            "task length is regression, which only a head",
        ),
        (
            &["writer"][..],
            "writer is no run: give the tasks' folder with --data",
        ),
        (
            &["model", "--data", "texts"][..],
            "an encoder has no heads before it is trained",
        ),
        (
            &["run", "--set", "data.max_length=8"][..],
            "--set is for base models",
        ),
        (&["run", "--tasks", "sumz"][..], "sums"),
        (
            &["writer", "--data", "texts", "--query", "request"][..],
            "writer is no run: --query",
        ),
        (
            &["run", "--tasks", "sums", "--query", "request"][..],
            "no [instructions]",
        ),
    ] {
        let output = world.run(&[&["eval"], arguments].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && errors.contains(expected),
            "{errors}"
        );
    }
}

/// Gives the model a chat template.
fn write_template(world: &World) {
    let template = "{% for m in messages %}{{ m.role + ' : ' + m.content }}\
                    {% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ 'assistant :' }}{% endif %}";
    let config = serde_json::json!({"chat_template": template, "eos_token": "</s>"});
    write_json(&world.path("writer").join("tokenizer_config.json"), &config);
}

/// A named recipe has the numbers of its base model, and its prompts; what is said wins.
#[test]
fn a_recipe_fits_its_base_model() {
    let world = writer::world();
    let text = |arguments: &[&str]| {
        let output = world.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let has = |text: &str, lines: &[&str]| {
        for line in lines {
            assert!(
                text.lines().any(|found| found == *line),
                "no {line} in {text}"
            );
        }
    };
    let shown = text(&["list", "--show", "samora", "--model", "writer"]);
    let numbers = ["learning_rate = 0.008", "batch_size = 16", "steps = 300"];
    has(&shown, &numbers);
    has(&shown, &["prompt = \"auto\""]);
    has(
        &text(&["list", "--show", "samora"]),
        &["learning_rate = 0.004", "batch_size = 32", "steps = 600"],
    );
    let train = |recipe: &str, out: &str, more: &[&str]| {
        let set = [
            "--set",
            "data.writing.max_length=40",
            "--set",
            "data.writing.max_new_tokens=3",
        ];
        let arguments = [
            "train", recipe, "--model", "writer", "--data", "texts", "--tasks", "pets", "--out",
            out, "--steps", "2",
        ];
        text(&[&arguments[..], &set, more].concat());
        let run = world.path(out).join("run.toml");
        std::fs::read_to_string(run).expect("readable")
    };
    let numbers = [
        "learning_rate = 0.002",
        "batch_size = 16",
        "prompt = \"plain\"",
    ];
    has(&train("lora", "plain", &[]), &numbers);
    let said = ["--set", "data.sampling.batch_size=4"];
    has(&train("lora", "said", &said), &["batch_size = 4"]);
    write_template(&world);
    has(&train("lora", "chat", &[]), &["prompt = \"chat\""]);
    let said = ["--set", "data.writing.prompt=plain"];
    has(&train("lora", "still", &said), &["prompt = \"plain\""]);
    // A file says everything itself.
    std::fs::write(world.path("mine.toml"), text(&["list", "--show", "lora"])).expect("writable");
    has(&train("mine.toml", "file", &[]), &["batch_size = 32"]);
}

/// Files of other programs: instructions, chats through the model's template, and plain text.
#[test]
fn files_of_other_programs_are_trained_on() {
    let world = writer::world();
    write_template(&world);
    let line = |index: usize, form: &str| {
        let (animal, sound) = [("cat", "purr"), ("dog", "bark")][index % 2];
        let filler = ["w0", "w1", "w2", "w3"][index / 2 % 4];
        let rest = ["w4", "w5", "yes", "no"][index / 8 % 4];
        let input = format!("{filler} {rest} {sound}");
        match form {
            "alpaca" => serde_json::json!({"instruction": "which ?", "input": input,
                "output": animal}),
            "chat" => serde_json::json!({"messages": [
                {"role": "user", "content": format!("which ? {input}")},
                {"role": "assistant", "content": animal}]}),
            _ => serde_json::json!({"text": format!("{input} {animal}")}),
        }
    };
    for form in ["alpaca", "chat", "text"] {
        let lines: String = (0..64)
            .map(|index| format!("{}\n", line(index, form)))
            .collect();
        std::fs::write(world.path(&format!("{form}.jsonl")), lines).expect("writable");
        let mut recipe = writer::recipe("lora", 60);
        if form == "chat" {
            recipe.data.writing.prompt = molora_train::data::PromptStyle::Chat;
        }
        let mut request = request(&world, recipe, &[form], form);
        let file = world.path(&format!("{form}.jsonl"));
        request.data = file.to_str().expect("UTF-8").into();
        request.tasks = None;
        let run = train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
        let score = &run.eval.tasks[form];
        if form == "text" {
            assert_eq!(
                (&score.metric[..], score.accuracy),
                ("token_probability", None)
            );
            assert!((score.value - (-score.also["answer_nll"]).exp()).abs() < 1e-12);
        } else {
            assert_eq!(score.metric, "exact_match");
            assert!(score.value > 0.9, "{form}: {score:?}");
        }
        assert!(
            score.n >= 1 && score.n < 10,
            "{form}: {} records held out",
            score.n
        );
    }
}

/// A comparison and a growing run on a decoder go the way that they go on an encoder.
#[test]
fn decoders_are_compared_and_grow() {
    let world = writer::world();
    let shared = ["--model", "writer", "--data", "texts", "--steps", "24"];
    let set = [
        "--set",
        "data.writing.max_length=40",
        "--set",
        "data.writing.max_new_tokens=3",
    ];
    let run = |arguments: &[&str]| {
        let output = world.run(&[arguments, &shared[..], &set[..]].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let table = run(&[
        "compare",
        "lora,hydralora",
        "--tasks",
        "pets,sums",
        "--seeds",
        "2",
        "--budget",
        "steps",
        "--out",
        "both",
        "--set",
        "adapter.targets=[\"all-linear\"]",
    ]);
    assert!(
        table.contains("hydralora") && table.contains("exact_match"),
        "{table}"
    );
    run(&["train", "moa", "--tasks", "pets,sky", "--out", "moa"]);
    let output = world.run(&["add-expert", "moa", "--task", "sums"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let eval = read_json(&world.path("moa").join("eval.json"));
    assert!(eval["tasks"]["sums"]["value"].is_f64(), "{eval}");
}

/// GPT-2 holds queries, keys and values as one layer, which a LoRA of PEFT adapts as a whole: ours of
/// its parts is not written as one.
#[test]
fn parts_of_a_layer_are_no_peft_adapter() {
    let world = writer::world();
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../molora-models/tests/golden/gpt2"
    );
    copy_folder(golden.as_ref(), &world.path("gpt2"));
    let tokenizer = read_json(&world.path("writer").join("tokenizer.json"));
    write_json(&world.path("gpt2").join("tokenizer.json"), &tokenizer);
    for (target, kind) in [("all-attention", "MOLORA"), ("attn.c_proj", "LORA")] {
        let mut recipe = writer::recipe("lora", 4);
        recipe.adapter.targets = vec![target.into()];
        recipe.data.writing.max_length = 24;
        let mut request = request(&world, recipe, &["pets"], target);
        request.model = world.path("gpt2").to_str().expect("UTF-8").into();
        let run = train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
        let config = read_json(&request.out.join("adapter_config.json"));
        assert_eq!(config["peft_type"], kind, "{target}");
        let (again, _) = evaluate_run(&request.out, None, None).expect("a finished run");
        assert_eq!(score(&again, "pets"), score(&run.eval, "pets"), "{target}");
    }
}
