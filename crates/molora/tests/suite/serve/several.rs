//! Several runs on one base, whose texts are written in the same passes.

use std::sync::atomic::AtomicBool;

use molora_models::SavedModule;
use molora_train::run::train;
use serde_json::{Value, json};

use super::client::Served;
use crate::program::writer;
use crate::world::World;

/// A prompt of each number.
fn prompt(number: usize) -> String {
    let words = ["purr", "w0", "1 plus 2", "bark", "w1", "sun"];
    let length = 1 + number * 5 % 4;
    let words = (0..length).map(|index| words[(number + index) % words.len()]);
    format!("which ? {}", words.collect::<Vec<_>>().join(" "))
}

/// A run for each recipe, named after it: mixtures of every kind, one of another rank, one that trains tables.
fn runs(names: &[&str]) -> World {
    let world = writer::world();
    for name in names {
        let mut recipe = writer::recipe(name.trim_end_matches("-tables"), 8);
        if *name == "lora" {
            recipe.adapter.bank.rank = 7;
        }
        if name.ends_with("-tables") {
            recipe.adapter.modules_to_save = vec![SavedModule::Embeddings, SavedModule::Head];
        }
        let request = writer::request(&world, recipe, &["pets", "sums"], name);
        train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    }
    world
}

/// What the program writes with a command of its own.
fn generated(world: &World, model: &str, prompt: &str) -> String {
    let arguments = ["generate", model, "--raw", "--json", "--prompt", prompt];
    let output = world.run(&[&arguments[..], &["--max-new-tokens", "12"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let line: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    line["text"].as_str().expect("a text").to_owned()
}

/// Greedy answers, asked at once by so many, are those of the program, whichever runs are beside.
fn are_those_of_generate(names: &[&str], counts: &[usize]) {
    let world = runs(&names[1..]);
    let served = Served::start(world.program(&[&["serve"], names].concat()));
    let asked = |number: usize| (names[number % names.len()], prompt(number / names.len()));
    let expected: Vec<String> = (0..2 * names.len())
        .map(|number| {
            let (model, prompt) = asked(number);
            generated(&world, model, &prompt)
        })
        .collect();
    assert!(expected.iter().any(|text| *text != expected[0]));
    for &count in counts {
        std::thread::scope(|scope| {
            let answer = |number: usize| {
                let (model, prompt) = asked(number % expected.len());
                let body = json!({"model": model, "prompt": prompt, "max_tokens": 12,
                    "temperature": 0});
                served.ask("/v1/completions", &body)
            };
            let answers: Vec<_> = (0..count)
                .map(|number| scope.spawn(move || answer(number)))
                .collect();
            for (number, answer) in answers.into_iter().enumerate() {
                let answer = answer.join().expect("an answer");
                let (model, expected) = (asked(number).0, &expected[number % expected.len()]);
                assert_eq!(
                    answer["choices"][0]["text"],
                    expected[..],
                    "{model} of {count}"
                );
            }
        });
    }
    for name in names {
        let line = |what: &str| format!("molora_{what}{{model=\"{name}\"}}");
        assert!(served.metric(&line("prompt_tokens_total")) > 0.0, "{name}");
        served.wait_for_none(&line("texts_running"));
        served.wait_for_none(&line("cache_tokens"));
    }
}

#[test]
fn answers_of_several_runs_are_those_of_generate() {
    are_those_of_generate(&["writer", "lora", "samora", "moa"], &[1, 3, 16]);
}

/// Feed-forward parts that are mixed whole, a first pass, experts of all layers, and a run's own tables.
#[test]
fn runs_of_every_kind_share_a_pass() {
    let names = [
        "writer",
        "mixlora",
        "x-lora",
        "lily",
        "mosld",
        "lora-tables",
    ];
    are_those_of_generate(&names, &[16]);
}
