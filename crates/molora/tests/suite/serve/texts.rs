//! What is written, whole and as it grows.

use molora_train::run::train;
use serde_json::{Value, json};
use std::sync::atomic::AtomicBool;

use super::client::Served;
use crate::exchange::decoder::Llama;
use crate::program::writer;
use crate::world::{World, write_json};

/// A short run of a recipe on two tasks of the tiny decoder.
pub(super) fn trained(name: &str) -> World {
    let world = writer::world();
    let request = writer::request(&world, writer::recipe(name, 8), &["pets", "sums"], "run");
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    world
}

/// A prompt and a task for each number.
fn mixed(number: usize) -> (String, Option<&'static str>) {
    let words = ["purr", "w0", "1 plus 2", "bark", "w1", "sun"];
    let length = 1 + number * 5 % 4;
    let words: Vec<&str> = (0..length)
        .map(|index| words[(number + index) % words.len()])
        .collect();
    let task = [None, Some("pets"), Some("sums")][number % 3];
    (format!("which ? {}", words.join(" ")), task)
}

fn model_of(task: Option<&str>) -> String {
    task.map_or("run".into(), |task| format!("run:task={task}"))
}

/// What the program writes with a command of its own.
fn generated(world: &World, prompt: &str, task: Option<&str>, more: &[&str]) -> String {
    let mut arguments = vec!["generate", "run", "--raw", "--json", "--prompt", prompt];
    arguments.extend(["--max-new-tokens", "12"]);
    arguments.extend(task.iter().flat_map(|task| ["--task", task]));
    arguments.extend(more);
    let output = world.run(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let line: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    line["text"].as_str().expect("a text").to_owned()
}

/// A container often has one processor: whoever waits for answers may not take it from who makes them.
#[test]
fn one_thread_is_enough() {
    let world = trained("samora");
    let mut program = world.program(&["serve", "run"]);
    program.env("RAYON_NUM_THREADS", "1");
    let served = Served::start(program);
    let body = json!({"model": "run", "prompt": "w1 w2", "max_tokens": 4, "temperature": 0});
    let found = served.ask("/v1/completions", &body);
    assert_eq!(found["usage"]["completion_tokens"], 4, "{found}");
}

/// Token routers, a gate by task, and a sequence router that keeps its decision.
#[test]
fn answers_are_those_of_generate_whatever_else_is_written() {
    for recipe in ["samora", "moa"] {
        let world = trained(recipe);
        let served = Served::start(world.program(&["serve", "run", "--max-rows", "16"]));
        let expected: Vec<String> = (0..6)
            .map(|number| {
                let (prompt, task) = mixed(number);
                generated(&world, &prompt, task, &[])
            })
            .collect();
        let names = served.get("/v1/models").json();
        let names = names["data"].as_array().expect("models").iter();
        let has_tasks = names.clone().any(|model| model["id"] == "run:task=pets");
        for count in [1, 3, 16] {
            std::thread::scope(|scope| {
                let answer = |number: usize| {
                    let (prompt, task) = mixed(number % 6);
                    let task = task.filter(|_| has_tasks);
                    let body = json!({"model": model_of(task), "prompt": prompt, "max_tokens": 12,
                        "temperature": 0});
                    served.ask("/v1/completions", &body)
                };
                let asked: Vec<_> = (0..count)
                    .map(|number| scope.spawn(move || answer(number)))
                    .collect();
                for (number, answer) in asked.into_iter().enumerate() {
                    let answer = answer.join().expect("an answer");
                    let expected = &expected[number % 6];
                    assert_eq!(
                        answer["choices"][0]["text"],
                        expected[..],
                        "{recipe} {count}"
                    );
                }
            });
        }
    }
}

#[test]
fn draws_depend_on_the_seed_alone() {
    let world = trained("samora");
    let served = Served::start(world.program(&["serve", "run"]));
    let (prompt, _) = mixed(2);
    let draw = ["--temperature", "0.9", "--top-k", "20", "--seed", "5"];
    let expected = generated(&world, &prompt, None, &draw);
    let body = json!({"model": "run", "prompt": prompt, "max_tokens": 12, "temperature": 0.9,
        "top_k": 20, "seed": 5, "n": 4});
    let alone = served.ask("/v1/completions", &body);
    assert_eq!(alone["choices"][0]["text"], expected[..]);
    let beside = std::thread::scope(|scope| {
        let other = json!({"model": "run", "prompt": "which ? w0 w0", "max_tokens": 20, "n": 6});
        let served = &served;
        scope.spawn(move || served.ask("/v1/completions", &other));
        served.ask("/v1/completions", &body)
    });
    assert_eq!(beside["choices"], alone["choices"]);
    let texts: Vec<_> = alone["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .collect();
    assert!(
        texts
            .iter()
            .any(|choice| choice["text"] != texts[0]["text"])
    );
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let world = Llama::new();
    let template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}";
    let path = world.path("base/tokenizer_config.json");
    write_json(&path, &json!({"chat_template": template}));
    let served = Served::start(world.program(&["serve", "base"]));
    let body = json!({"model": "base", "prompt": ["w3 w17 w5", "w80"], "max_tokens": 9,
        "temperature": 0, "logprobs": 1});
    let whole = served.ask("/v1/completions", &body);
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let answer = served.post("/v1/completions", &streamed);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let mut events = answer.events();
    let last = events.pop().expect("the usage");
    assert_eq!(last["usage"], whole["usage"]);
    assert_eq!(last["choices"], json!([]));
    let mut texts = [String::new(), String::new()];
    let mut tokens = [Vec::new(), Vec::new()];
    let mut reasons = [Value::Null, Value::Null];
    for event in &events {
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().expect("a number") as usize;
        texts[index].push_str(choice["text"].as_str().expect("a text"));
        let found = choice["logprobs"]["token_logprobs"].as_array();
        tokens[index].extend(found.into_iter().flatten().cloned());
        if !choice["finish_reason"].is_null() {
            reasons[index] = choice["finish_reason"].clone();
        }
        assert_eq!(event["usage"], Value::Null);
    }
    for index in 0..2 {
        let choice = &whole["choices"][index];
        assert_eq!(choice["text"], texts[index][..]);
        assert_eq!(choice["finish_reason"], reasons[index]);
        assert_eq!(choice["logprobs"]["token_logprobs"], json!(tokens[index]));
    }
    let chat = json!({"model": "base", "messages": [{"role": "user", "content": "w3 w17 w5"}],
        "max_completion_tokens": 9, "temperature": 0});
    let whole = served.ask("/v1/chat/completions", &chat);
    let mut streamed = chat.clone();
    streamed["stream"] = true.into();
    let events = served.post("/v1/chat/completions", &streamed).events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let pieces = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    let text: String = pieces.collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text[..]);
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(events[0]["object"], "chat.completion.chunk");
}

#[test]
fn a_stop_text_ends_an_answer_and_is_no_part_of_it() {
    let world = Llama::new();
    let served = Served::start(world.program(&["serve", "base"]));
    let mut body =
        json!({"model": "base", "prompt": [3, 17, 5], "max_tokens": 9, "temperature": 0});
    let free = served.ask("/v1/completions", &body)["choices"][0]["text"].clone();
    let free = free.as_str().expect("a text").to_owned();
    let words: Vec<&str> = free.split(' ').filter(|word| !word.is_empty()).collect();
    let stop = words[2];
    let before = &free[..free.find(stop).expect("it is there")];
    body["stop"] = json!([stop, "never"]);
    let stopped = served.ask("/v1/completions", &body);
    assert_eq!(stopped["choices"][0]["text"], before);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    body["stream"] = true.into();
    let events = served.post("/v1/completions", &body).events();
    let text: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(text, before);
}

/// What evaluators ask: the log-probabilities of a given text.
#[test]
fn an_echo_scores_the_prompt_as_it_was_written() {
    let world = Llama::new();
    let served = Served::start(world.program(&["serve", "base"]));
    let body = json!({"model": "base", "prompt": [3, 17, 5], "max_tokens": 6, "temperature": 0,
        "logprobs": 2});
    let written = served.ask("/v1/completions", &body);
    let log = &written["choices"][0]["logprobs"];
    // A token that ends the answer is scored, and no part of the text.
    let is_ended = written["choices"][0]["finish_reason"] == "stop";
    let count = log["tokens"].as_array().expect("tokens").len() - usize::from(is_ended);
    let tokens = served.ask(
        "/tokenize",
        &json!({"model": "base", "prompt": format!("w3 w17 w5 {}", written["choices"][0]["text"].as_str().expect("a text"))}),
    );
    assert_eq!(tokens["count"], 3 + count);
    for more in [0, 1] {
        let echo = json!({"model": "base", "prompt": [tokens["tokens"]], "max_tokens": more,
            "temperature": 0, "logprobs": 1, "echo": true});
        let echoed = served.ask("/v1/completions", &echo);
        let found = &echoed["choices"][0]["logprobs"];
        let values = found["token_logprobs"].as_array().expect("values");
        assert_eq!(values.len(), 3 + count + more);
        assert!(values[0].is_null() && found["top_logprobs"][0].is_null());
        for (index, value) in values[3..3 + count].iter().enumerate() {
            let value = value.as_f64().expect("a number");
            let expected = log["token_logprobs"][index].as_f64().expect("a number");
            assert!((value - expected).abs() < 1e-4, "{value} {expected}");
            // It was the likeliest one.
            let best = found["top_logprobs"][3 + index]
                .as_object()
                .expect("an object");
            let best = best
                .values()
                .filter_map(Value::as_f64)
                .fold(f64::MIN, f64::max);
            assert_eq!(value, best);
        }
        assert!(
            echoed["choices"][0]["text"]
                .as_str()
                .expect("a text")
                .starts_with("w3 w17 w5 ")
        );
    }
}
