//! Prompts that a template of one's own writes, from training to answers.

use std::sync::atomic::AtomicBool;

use molora_train::data::PromptStyle;
use molora_train::recipe::Recipe;
use molora_train::report::read_steps;
use molora_train::run::{evaluate_run, train};
use molora_train::store::read_config;
use serde_json::{Value, json};

use super::writer::{self, request};
use crate::world::{World, assert_same_run, resume_to_end, small, train_until, write_json};

/// What `plain` writes for records with an instruction and one input.
const PLAIN: &str = "{{ instruction }}\n\n{{ input }}\nAnswer:";

fn recipe(template: &str, steps: usize) -> Recipe {
    let mut recipe = writer::recipe("lora", steps);
    recipe.data.writing.template = Some(template.into());
    recipe
}

fn losses(world: &World, recipe: Recipe, out: &str) -> Vec<f64> {
    let request = request(world, recipe, &["pets", "sums"], out);
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let steps = read_steps(&world.path(out).join("steps.jsonl")).expect("whole records");
    steps.iter().map(|step| step.loss).collect()
}

fn refusal(world: &World, recipe: Recipe) -> String {
    let request = request(world, recipe, &["pets", "sums"], "refused");
    let error = train(&request, &AtomicBool::new(false), &mut |_| {}).expect_err("refused");
    assert!(!world.path("refused").exists());
    error.to_string()
}

#[test]
fn a_template_that_writes_what_plain_writes_makes_the_same_run() {
    let world = writer::world();
    let plain = losses(&world, writer::recipe("lora", 6), "plain");
    assert_eq!(losses(&world, recipe(PLAIN, 6), "same"), plain);
    assert_ne!(losses(&world, recipe("{{ input }} ?", 6), "other"), plain);
    // The task's own counts before that for all.
    let mut by_task = recipe("{{ input }} ?", 6);
    for task in ["pets", "sums"] {
        by_task
            .data
            .writing
            .templates
            .insert(task.into(), PLAIN.into());
    }
    assert_eq!(losses(&world, by_task, "own"), plain);
    let kept = read_config(&world.path("same"))
        .expect("a run")
        .recipe
        .data
        .writing;
    assert_eq!(
        (kept.template.as_deref(), kept.prompt),
        (Some(PLAIN), PromptStyle::Plain)
    );
}

/// Validation, evaluation, predictions and generated texts are asked what the training has learned.
#[test]
fn every_command_asks_by_the_template_of_the_run() {
    let world = writer::world();
    let request = request(&world, recipe("{{ input }} which ?", 80), &["sums"], "run");
    let finished = train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let (again, _) = evaluate_run(&world.path("run"), None, None).expect("a finished run");
    let value = again.tasks["sums"].value;
    assert_eq!(value, finished.eval.tasks["sums"].value);
    assert!(value > 0.6, "{value}");
    let read = |text: &[u8]| -> Vec<Value> {
        let text = String::from_utf8_lossy(text).into_owned();
        let parse = |line: &str| serde_json::from_str(line).expect("JSON");
        text.lines().map(parse).collect()
    };
    let report = std::fs::read(world.path("run/predictions.json")).expect("readable");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    let test = std::fs::read(world.path("texts/sums/test.jsonl")).expect("readable");
    let asked: Vec<Value> = read(&test)
        .into_iter()
        .map(|r| r["input"].clone())
        .collect();
    let lines: String = asked
        .iter()
        .map(|t| format!("{}\n", t.as_str().expect("a text")))
        .collect();
    std::fs::write(world.path("asked.txt"), lines).expect("writable");
    let done = |arguments: &[&str]| {
        let output = world.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        read(&output.stdout)
    };
    let predicted = done(&["predict", "run", "--input", "asked.txt"]);
    let generate = [
        "generate",
        "run",
        "--prompts",
        "asked.txt",
        "--max-new-tokens",
        "3",
        "--json",
    ];
    let generated = done(&generate);
    let expected = report["tasks"]["sums"].as_array().expect("a list");
    assert_eq!(expected.len(), predicted.len());
    for (place, expected) in expected.iter().enumerate() {
        assert_eq!(&predicted[place]["text"], expected);
        assert_eq!(&generated[place]["text"], expected);
    }
    let raw = done(&[&generate[..], &["--raw"]].concat());
    assert!(
        raw.iter()
            .zip(&generated)
            .any(|(raw, asked)| raw["text"] != asked["text"])
    );
}

/// Without a task nothing says which template a text is for; as it is, it needs none.
#[test]
fn a_text_needs_a_task_where_tasks_have_templates_of_their_own() {
    let world = writer::world();
    let mut by_task = recipe("{{ input }}", 2);
    by_task.data.writing.template = None;
    let templates = &mut by_task.data.writing.templates;
    templates.insert("sums".into(), "{{ input }} which ?".into());
    let request = request(&world, by_task, &["sums", "sky"], "run");
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let generate = |more: &[&str]| {
        let given = ["generate", "run", "--prompt", "w1", "--max-new-tokens", "2"];
        world.run(&[&given[..], more].concat())
    };
    let output = generate(&[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("it has several tasks, name one: sums, sky"),
        "{error}"
    );
    assert!(!output.status.success());
    for more in [&["--task", "sums"][..], &["--task", "sky"], &["--raw"]] {
        let output = generate(more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{more:?}: {error}");
    }
}

#[test]
fn a_stopped_run_goes_on_with_its_template() {
    let world = writer::world();
    let make = |out: &str| {
        request(
            &world,
            recipe("{{ input }} which ?", 12),
            &["sums", "sky"],
            out,
        )
    };
    train(&make("whole"), &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let cut = make("cut");
    train_until(&cut, 7);
    resume_to_end(&cut.out);
    assert_same_run(&cut.out, &world.path("whole"));
}

#[test]
fn templates_that_cannot_be_are_refused_before_the_training() {
    let world = writer::world();
    let text = refusal(&world, recipe("{{ input }} {{ age }}", 2));
    assert!(
        text.contains("pets/train.jsonl:1: record pets-train-0: data.writing.template, line 1")
            && text.contains("`age` is undefined"),
        "{text}"
    );
    let text = refusal(&world, recipe("{% for %}", 2));
    assert!(text.contains("data.writing.template, line 1"), "{text}");
    let mut other = recipe(PLAIN, 2);
    other
        .data
        .writing
        .templates
        .insert("law".into(), PLAIN.into());
    let text = refusal(&world, other);
    assert!(
        text.contains("data.writing.templates names the task `law`"),
        "{text}"
    );
    let mut encoder = small("lora");
    encoder.data.writing.template = Some(PLAIN.into());
    let error = train(
        &world.request(encoder, "refused"),
        &AtomicBool::new(false),
        &mut |_| {},
    );
    let text = error.expect_err("an encoder").to_string();
    assert!(
        text.contains("data.writing.template is for models that write"),
        "{text}"
    );
}

/// Columns that molora has no name for are read, and a chat template frames what is written.
#[test]
fn a_template_reads_every_column_and_may_be_a_users_message() {
    let world = writer::world();
    let chatml = "{% for m in messages %}{{ m.role + ' ' + m.content + ' </s> ' }}{% endfor %}\
                  {% if add_generation_prompt %}assistant {% endif %}";
    write_json(
        &world.path("writer/tokenizer_config.json"),
        &json!({"chat_template": chatml, "eos_token": "</s>"}),
    );
    let lines = (0..40).map(|index| {
        let (word, output) = [("purr", "cat"), ("bark", "dog")][index % 2];
        let line = json!({"input": format!("w{}", index % 5), "noise": word, "output": output});
        format!("{line}\n")
    });
    std::fs::create_dir(world.path("noises")).expect("a new folder");
    std::fs::write(world.path("noises/train.jsonl"), lines.collect::<String>()).expect("writable");
    for style in [PromptStyle::Plain, PromptStyle::Chat] {
        let mut recipe = recipe("{{ input }} {{ noise }} ?", 100);
        recipe.data.writing.prompt = style;
        let mut request = request(&world, recipe, &["noises"], &format!("{style:?}"));
        request.data = world.path("noises").to_str().expect("UTF-8").into();
        let run = train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
        assert!(
            run.eval.tasks["noises"].value > 0.9,
            "{style:?}: {:?}",
            run.eval.tasks
        );
    }
}
