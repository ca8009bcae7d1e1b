//! Chats with functions, and chats whose templates rewrite earlier turns.

use std::sync::atomic::AtomicBool;

use molora_train::TrainError;
use molora_train::run::{Finished, Request, train};
use serde_json::{Value, json};

use super::writer;
use crate::world::{World, assert_same_run, read_json, resume_to_end, train_until, write_json};

/// Functions, calls and all roles.
const TOOLS: &str = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}\
    {% for m in messages %}{{ m.role }} {{ m.content or '' }} \
    {% for c in m.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments.x }} {% endfor %}</s> \
    {% endfor %}{% if add_generation_prompt %}assistant {% endif %}";

/// Roles and contents.
const CONTENTS: &str = "{% for m in messages %}{% if m.role != 'tool' %}{{ m.role }} {{ m.content }} </s> \
    {% endif %}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}";

/// The last answer alone has thoughts.
const THINKING: &str = "{% for m in messages %}{{ m.role }} \
    {% if m.role == 'assistant' and loop.last %}{{ m.reasoning_content or '?' }} : {% endif %}\
    {{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}assistant {% endif %}";

fn world(template: &str) -> World {
    let world = writer::world();
    let config = json!({"chat_template": template, "eos_token": "</s>"});
    write_json(&world.path("writer/tokenizer_config.json"), &config);
    std::fs::create_dir(world.path("chats")).expect("a new folder");
    world
}

/// Sums that a function computes: `purr` is called with a word and its answer is said.
fn calls(index: usize) -> Value {
    let word = ["1", "2", "3"][index % 3];
    let filler = format!("w{}", index % 6);
    json!({
        "tools": [{"type": "function", "function": {"name": "purr", "description": "adds"}}],
        "messages": [
            {"role": "user", "content": format!("{filler} {word}")},
            {"role": "assistant", "content": null,
                "tool_calls": [{"type": "function", "function": {"name": "purr", "arguments": {"x": word}}}]},
            {"role": "tool", "content": format!("{} {}", index % 5, word)},
            {"role": "assistant", "content": format!("yes {word}")},
        ],
    })
}

/// Two turns with thoughts.
fn thoughts(index: usize) -> Value {
    let [first, second] = [["purr", "bark"][index % 2], ["sun", "rain"][index / 2 % 2]];
    let said = |word: &str| match word {
        "purr" => "cat",
        "bark" => "dog",
        "sun" => "warm",
        _ => "wet",
    };
    let filler = format!("w{}", index / 4 % 6);
    json!({"messages": [
        {"role": "user", "content": format!("{filler} {first}")},
        {"role": "assistant", "content": said(first), "reasoning_content": "plus"},
        {"role": "user", "content": second},
        {"role": "assistant", "content": said(second), "reasoning_content": "which"},
    ]})
}

fn request(world: &World, line: fn(usize) -> Value, steps: usize, out: &str) -> Request {
    let lines: String = (0..60).map(|index| format!("{}\n", line(index))).collect();
    std::fs::write(world.path("chats/train.jsonl"), lines).expect("writable");
    let mut recipe = writer::recipe("lora", steps);
    recipe.data.writing.max_new_tokens = 6;
    let request = writer::request(world, recipe, &["chats"], out);
    Request {
        data: world.path("chats").to_str().expect("UTF-8").into(),
        ..request
    }
}

fn run(request: &Request) -> Result<Finished, TrainError> {
    train(request, &AtomicBool::new(false), &mut |_| {})
}

fn lines(text: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(text);
    let parse = |line: &str| serde_json::from_str(line).expect("JSON");
    text.lines().map(parse).collect()
}

#[test]
fn calls_and_answers_are_learned_and_asked_for() {
    let world = world(TOOLS);
    let finished = run(&request(&world, calls, 120, "run")).expect("a whole run");
    assert!(
        finished.eval.tasks["chats"].value > 0.9,
        "{:?}",
        finished.eval.tasks
    );
    let asked = |index: usize, count: usize| {
        let mut chat = calls(index);
        let messages = chat["messages"].as_array_mut().expect("a list");
        messages.truncate(count);
        chat
    };
    // What is asked for first is a call, and behind its result an answer.
    for (count, expected) in [(1, "purr 1"), (3, "yes 1")] {
        let text = format!("{}\n{}\n", asked(3, count), asked(6, count));
        std::fs::write(world.path("asked.jsonl"), text).expect("writable");
        for command in [
            &["generate", "run", "--prompts", "asked.jsonl", "--json"][..],
            &["predict", "run", "--input", "asked.jsonl"],
        ] {
            let output = world.run(command);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{errors}");
            for line in lines(&output.stdout) {
                assert_eq!(
                    line["text"].as_str().map(str::trim),
                    Some(expected),
                    "{line}"
                );
            }
        }
    }
}

#[test]
fn a_call_may_be_the_answer_that_is_scored() {
    let world = world(TOOLS);
    let first_two = |index: usize| {
        let mut chat = calls(index);
        chat["messages"].as_array_mut().expect("a list").truncate(2);
        chat
    };
    let finished = run(&request(&world, first_two, 100, "run")).expect("a whole run");
    assert!(
        finished.eval.tasks["chats"].value > 0.9,
        "{:?}",
        finished.eval.tasks
    );
    let predictions = read_json(&world.path("run/predictions.json"));
    let answer = predictions["tasks"]["chats"][0].as_str().expect("a text");
    assert!(answer.starts_with("purr "), "{answer}");
}

#[test]
fn what_a_template_does_not_show_is_refused_or_named() {
    let world = world(CONTENTS);
    let error = run(&request(&world, calls, 2, "run"))
        .expect_err("no calls")
        .to_string();
    assert!(
        error.starts_with("record chats-")
            && error.contains(
                "it has \"tool_calls\" of messages, which \
            the model's chat template does not show"
            ),
        "{error}"
    );
    let mut plain = request(&world, calls, 2, "run");
    plain.recipe.data.writing.prompt = molora_train::data::PromptStyle::Plain;
    let error = run(&plain).expect_err("no roles").to_string();
    assert!(
        error.contains("which data.writing.prompt = \"plain\" does not show"),
        "{error}"
    );
    assert!(!world.path("run").exists());
    // Functions that are not called, and thoughts, are named in warnings.
    let aside = |index: usize| {
        let mut chat = thoughts(index);
        chat["tools"] = calls(0)["tools"].clone();
        chat
    };
    request(&world, aside, 2, "run");
    let command = [
        "train", "lora", "--model", "writer", "--data", "chats", "--steps", "2", "--out", "run",
    ];
    let small = [
        "--set",
        "data.writing.max_length=40",
        "--set",
        "data.sampling.batch_size=4",
    ];
    let output = world.run(&[&command[..], &small].concat());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    for part in ["\"tools\"", "\"reasoning_content\" of messages"] {
        let line = format!("task chats: the model's chat template does not show {part}");
        assert!(errors.contains(&line), "{errors}");
    }
    std::fs::write(world.path("asked.jsonl"), format!("{}\n", aside(0))).expect("writable");
    let text = std::fs::read_to_string(world.path("asked.jsonl")).expect("readable");
    let text = text.replace("\"role\":\"assistant\"", "\"role\":\"user\"");
    std::fs::write(world.path("asked.jsonl"), text).expect("writable");
    let output = world.run(&["generate", "run", "--prompts", "asked.jsonl"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("record 1: it has \"tools\""), "{errors}");
}

/// Every turn is an example of its own, and the last is what is evaluated.
#[test]
fn a_template_that_rewrites_turns_is_trained_turn_by_turn() {
    let world = world(THINKING);
    let whole = request(&world, thoughts, 120, "whole");
    let finished = run(&whole).expect("a whole run");
    let records = finished.summary.records["chats"];
    assert_eq!(records.train, 2 * (60 - records.validation - records.test));
    let ask = |text: &str| {
        let prompt = json!({"messages": [{"role": "user", "content": text}]});
        std::fs::write(world.path("asked.jsonl"), format!("{prompt}\n")).expect("writable");
        let output = world.run(&["generate", "whole", "--prompts", "asked.jsonl", "--json"]);
        lines(&output.stdout)[0]["text"]
            .as_str()
            .expect("a text")
            .trim()
            .to_owned()
    };
    // The first turn, with the thought that the whole chat does not show any more.
    assert_eq!(ask("w0 purr"), "plus : cat");
    assert_eq!(ask("w1 bark"), "plus : dog");
    let predictions = read_json(&world.path("whole/predictions.json"));
    for answer in predictions["tasks"]["chats"].as_array().expect("a list") {
        assert!(
            answer
                .as_str()
                .is_some_and(|text| text.starts_with("which :")),
            "{answer}"
        );
    }
    let cut = request(&world, thoughts, 120, "cut");
    train_until(&cut, 50);
    resume_to_end(&cut.out);
    assert_same_run(&cut.out, &whole.out);
}

/// As the template of DeepSeek-R1's distilled models: it asks for thoughts, and shows none.
const OPEN_THOUGHTS: &str = "{% for m in messages %}{{ m.role }} {{ m.content.split('</think>')[-1] }} \
    {% if m.role == 'assistant' %}</s> {% endif %}{% endfor %}\
    {% if add_generation_prompt %}assistant <think>\n{% endif %}";

/// As Qwen3's: the last answer alone has a place for thoughts.
const LAST_THOUGHTS: &str = "{% for m in messages %}{{ m.role }} \
    {% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}\
    {{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}assistant {% endif %}";

/// A world whose tokenizer has the marks of thoughts as tokens.
fn thinking_world(template: &str) -> World {
    let world = world(template);
    World::edit(&world.path("writer/tokenizer.json"), |tokenizer| {
        for (word, mark) in [("5", "<think>"), ("6", "</think>")] {
            let words = tokenizer["model"]["vocab"].as_object_mut();
            let id = words.and_then(|words| words.remove(word)).expect("a word");
            tokenizer["model"]["vocab"][mark] = id.clone();
            let added = json!({"id": id, "content": mark, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": false});
            let tokens = tokenizer["added_tokens"].as_array_mut();
            tokens.expect("a list").push(added);
        }
    });
    world
}

/// Thoughts are learned and generated, and are no part of the answer that is scored or predicted.
#[test]
fn models_that_think_are_trained_asked_and_scored() {
    for (template, begin) in [(OPEN_THOUGHTS, ""), (LAST_THOUGHTS, "<think> ")] {
        let world = thinking_world(template);
        let finished = run(&request(&world, thoughts, 150, "run")).expect("a whole run");
        let records = finished.summary.records["chats"];
        assert_eq!(records.train, 2 * (60 - records.validation - records.test));
        let score = finished.eval.tasks["chats"].value;
        assert!(score > 0.9, "{begin}: {score}");
        let mut asked = thoughts(0);
        for (count, expected, thought) in [(1, "cat", "plus"), (3, "warm", "which")] {
            asked["messages"] = thoughts(0)["messages"].as_array().expect("a list")[..count].into();
            std::fs::write(world.path("asked.jsonl"), format!("{asked}\n")).expect("writable");
            let text = |command: &[&str]| {
                let output = world.run(command);
                let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success() && errors.is_empty(), "{errors}");
                let text = lines(&output.stdout)[0]["text"].as_str().map(str::to_owned);
                text.expect("a text").trim().to_owned()
            };
            let predicted = text(&["predict", "run", "--input", "asked.jsonl"]);
            assert_eq!(predicted, expected);
            let generated = text(&["generate", "run", "--prompts", "asked.jsonl", "--json"]);
            assert_eq!(generated, format!("{begin}{thought} </think> {expected}"));
        }
    }
}
