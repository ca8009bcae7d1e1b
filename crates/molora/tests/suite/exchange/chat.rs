//! Conversations through the program's standard input, and through the library.

use std::io::Write;
use std::ops::ControlFlow;
use std::process::Stdio;

use molora_models::{BaseDtype, Finish};
use molora_testkit::device;
use molora_train::generate::{Conversation, WriteOptions, Writer};
use serde_json::{Value, json};

use super::decoder::Llama;
use crate::world::write_json;

/// Words that say who speaks, so that each message has a place of its own.
const TEMPLATE: &str = "{% for m in messages %}{{ {'system': 'w9 ', 'user': 'w7 ', 'assistant': 'w8 '}[m['role']] \
                        + m['content'] + ' ' }}{% endfor %}{{ 'w8' if add_generation_prompt else '' }}";

fn with_template(world: &Llama) {
    let path = world.path("base/tokenizer_config.json");
    write_json(&path, &json!({"chat_template": TEMPLATE}));
}

/// What a chat prints for these lines, and what it says beside.
fn chat(world: &Llama, source: &[&str], lines: &[&str]) -> (Vec<String>, String) {
    chat_in_bytes(world, source, (lines.join("\n") + "\n").as_bytes())
}

fn chat_in_bytes(world: &Llama, source: &[&str], input: &[u8]) -> (Vec<String>, String) {
    let short = ["--interactive", "--max-new-tokens", "5"];
    let mut program = world.program(&[&["generate"], source, &short[..]].concat());
    program.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = program.stderr(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        !text.contains('\u{1b}') && !errors.contains('\u{1b}'),
        "{text}{errors}"
    );
    (text.lines().map(String::from).collect(), errors)
}

/// What the model answers to a list of roles and contents.
fn answer(world: &Llama, messages: &[(&str, &str)]) -> String {
    let message = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
    let messages: Vec<Value> = messages.iter().map(message).collect();
    let line = format!("{}\n", json!({"messages": messages}));
    std::fs::write(world.path("asked.jsonl"), line).expect("writable");
    let file = ["generate", "base", "--prompts", "asked.jsonl"];
    let text = world.done(&[&file[..], &["--max-new-tokens", "5"]].concat());
    text.trim_end_matches('\n').to_owned()
}

#[test]
fn a_message_is_answered_from_all_that_was_said() {
    let world = Llama::new();
    with_template(&world);
    let lines = [
        "w3 w5",
        "",
        "w4",
        "/system w2",
        "w4",
        "/reset",
        "w4",
        "/quit",
        "w1",
    ];
    let (found, said) = chat(&world, &["base"], &lines);
    let first = answer(&world, &[("user", "w3 w5")]);
    let turn = [("user", "w3 w5"), ("assistant", &first[..]), ("user", "w4")];
    let second = answer(&world, &turn);
    let system = [("system", "w2")];
    let whole = [&turn[..], &[("assistant", &second[..]), ("user", "w4")]].concat();
    let third = answer(&world, &[&system, &whole[..]].concat());
    let last = answer(&world, &[("system", "w2"), ("user", "w4")]);
    assert_eq!(found, [first, second, third, last]);
    for words in ["system message set", "forgotten", "--max-new-tokens 5"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // Draws are another for each turn, and the same each time.
    let draw = ["base", "--temperature", "2", "--seed", "4"];
    let lines = ["w3", "/reset", "w3"];
    let (drawn, _) = chat(&world, &draw, &lines);
    assert_eq!(drawn, chat(&world, &draw, &lines).0);
    assert_ne!(drawn[0], drawn[1]);
}

#[test]
fn a_line_that_is_no_text_is_named_and_the_next_one_is_answered() {
    let world = Llama::new();
    with_template(&world);
    let (expected, _) = chat(&world, &["base"], &["w3", "w4"]);
    let (found, said) = chat_in_bytes(&world, &["base"], b"w3\nw5 caf\xe9\nw4\n");
    assert_eq!(found, expected);
    let error = "error: the message is no UTF-8 text: byte 7; say it again";
    assert_eq!(
        said.lines().filter(|line| *line == error).count(),
        1,
        "{said}"
    );
}

#[test]
fn without_a_template_each_line_is_continued_by_itself() {
    let world = Llama::new();
    let (found, said) = chat(&world, &["base"], &["w3 w5", "w3 w5", "/system w2"]);
    let alone = [
        "generate",
        "base",
        "--prompt",
        "w3 w5",
        "--max-new-tokens",
        "5",
    ];
    let alone = world.done(&alone).trim_end_matches('\n').to_owned();
    assert_eq!(found, [alone.clone(), alone]);
    assert!(said.contains("each line is continued by itself"), "{said}");
    assert!(said.contains("/system needs a chat template"), "{said}");
}

#[test]
fn turns_that_do_not_fit_are_forgotten_by_name() {
    let world = Llama::new();
    with_template(&world);
    // The model holds 64 tokens.
    let long = "w3 ".repeat(26);
    let lines = [&long[..], "w4 w5", &long, &"w3 ".repeat(70), "w6"];
    let (found, said) = chat(&world, &["base"], &lines);
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(
        said.matches("(forgotten, as the model holds 64 tokens")
            .count(),
        1,
        "{said}"
    );
    assert!(
        said.contains(&format!("\"{}\" and its answer", long.trim())),
        "{said}"
    );
    assert!(said.contains("error: prompt 0 has 72 tokens"), "{said}");
    let second = answer(&world, &[("user", "w4 w5")]);
    assert_ne!(found[1], second, "the first turn was read");
    let turns = [
        ("user", "w4 w5"),
        ("assistant", &found[1]),
        ("user", long.trim()),
    ];
    assert_eq!(found[2], answer(&world, &turns));
}

#[test]
fn one_expert_answers_as_its_adapter_does() {
    let world = Llama::new();
    world.assemble("arrow", &[]);
    let prompt = ["--prompt", "w3 w17 w5 w80", "--max-new-tokens", "5"];
    let write = |source: &[&str]| {
        let text = world.done(&[&["generate"], source, &prompt].concat());
        text.trim_end_matches('\n').to_owned()
    };
    let lines = [
        "/expert law",
        "w3 w17 w5 w80",
        "/expert 1",
        "w3 w17 w5 w80",
        "/expert",
    ];
    let lines = [
        &lines[..],
        &["w3 w17 w5 w80", "/expert tax", "/task med", "/help"],
    ]
    .concat();
    let (found, said) = chat(&world, &["run"], &lines);
    let [law, med] = ["law", "med"].map(|name| write(&["run", "--expert", name]));
    assert_eq!(found, [law.clone(), med.clone(), write(&["run"])]);
    for (name, found) in [("law", law), ("med", med)] {
        let out = format!("alone-{name}");
        world.done(&["export", "run", "--expert", name, "--out", &out]);
        assert_eq!(found, write(&[&out, "--model", "base"]), "{name}");
    }
    for words in [
        "expert law alone",
        "the routers choose",
        "has no expert `tax`; there are law, med, or a number from 0 to 1",
        "task med: it changes no answer",
        "experts: law, med",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let none = ["generate", "base", "--expert", "law", "--prompt", "w1"];
    world.refused(&none, &["base: --expert needs a run"]);
}

#[test]
fn an_answer_that_is_stopped_stays_in_the_conversation() {
    let world = Llama::new();
    with_template(&world);
    let base = world.path("base");
    let writer = Writer::open(base.to_str().expect("UTF-8"), BaseDtype::F32, &device());
    let writer = writer.expect("the golden Llama");
    let options = WriteOptions {
        is_chat: true,
        uses_template: true,
        system: None,
        stop: Vec::new(),
        max_new_tokens: 9,
        sampling: None,
        seed: 0,
        batch: 1,
    };
    let mut conversation = Conversation::default();
    let mut seen = Vec::new();
    let stop = &mut |_: usize, text: &str| {
        seen.push(text.to_owned());
        match seen.len() {
            3 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    let reply = conversation.reply(&writer, "w3 w5", &options, stop);
    let written = reply.expect("an answer").written;
    assert_eq!((written.finish, written.tokens), (Finish::Watcher, 3));
    assert_eq!(written.text, seen[2]);
    let go_on = &mut |_: usize, _: &str| ControlFlow::Continue(());
    let next = conversation.reply(&writer, "w4", &options, go_on);
    let next = next.expect("an answer").written;
    let turn = [
        ("user", "w3 w5"),
        ("assistant", &written.text[..]),
        ("user", "w4"),
    ];
    assert!(next.text.starts_with(&answer(&world, &turn)));
    assert_eq!(conversation.turns(), 2);
}

/// Waiting for a message, the program ends with the code that shells expect.
#[cfg(unix)]
#[test]
fn an_interrupt_between_messages_ends_the_chat() {
    use std::io::{BufRead, BufReader};
    let world = Llama::new();
    let mut program = world.program(&["generate", "base", "--interactive"]);
    let program = program.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().expect("it starts");
    let stdin = child.stdin.take();
    let mut line = String::new();
    let stderr = child.stderr.take().expect("a pipe");
    BufReader::new(stderr)
        .read_line(&mut line)
        .expect("a first line");
    // It waits for a line by then, or soon: the second signal ends it in any case.
    for _ in 0..100 {
        let id = child.id().to_string();
        let status = std::process::Command::new("kill")
            .args(["-INT", &id])
            .status();
        assert!(status.expect("kill is there").success());
        std::thread::sleep(std::time::Duration::from_millis(20));
        if let Some(status) = child.try_wait().expect("it can be asked") {
            assert_eq!(status.code(), Some(130));
            drop(stdin);
            return;
        }
    }
    panic!("it goes on: {line}");
}
