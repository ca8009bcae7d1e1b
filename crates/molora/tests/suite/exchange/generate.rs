//! Writing on from prompts through the program.

use serde_json::{Value, json};

use super::decoder::Llama;
use crate::world::{World, small, write_json};

fn lines(text: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).expect("JSON");
    text.lines().map(parse).collect()
}

#[test]
fn a_batch_writes_what_its_prompts_write_alone() {
    let world = Llama::new();
    world.assemble("arrow", &[]);
    let prompts = ["w3 w17 w5", "w80", "w21 w8 w4 w4 w9"];
    std::fs::write(world.path("prompts.txt"), prompts.join("\n") + "\n").expect("writable");
    for draw in [
        &[][..],
        &["--temperature", "0.8", "--top-k", "20", "--seed", "3"],
    ] {
        let write = |batch: &str| {
            let file = ["generate", "run", "--prompts", "prompts.txt", "--json"];
            let more = ["--batch", batch, "--max-new-tokens", "9"];
            lines(&world.done(&[&file[..], &more, draw].concat()))
        };
        let together = write("3");
        assert_eq!(together.len(), 3);
        assert_eq!(write("1"), together);
        assert_eq!(write("2"), together);
        for line in &together {
            assert!(line["tokens"].as_u64().expect("a number") <= 9);
        }
    }
}

#[test]
fn experts_change_what_is_written() {
    let world = Llama::new();
    world.assemble("uniform", &[]);
    let write = |source: &str| {
        let prompt = ["--prompt", "w3 w17 w5 w80", "--max-new-tokens", "16"];
        world.done(&[&["generate", source][..], &prompt].concat())
    };
    assert_ne!(write("run"), write("base"));
    assert_eq!(write("run"), write("run"));
}

#[test]
fn a_chat_template_frames_prompts_unless_they_are_raw() {
    let world = Llama::new();
    let template = "{% for m in messages %}{{ 'w7 ' + m['content'] + ' w7' }}{% endfor %}";
    let path = world.path("base/tokenizer_config.json");
    write_json(&path, &json!({"chat_template": template}));
    let write = |prompt: &str, more: &[&str]| {
        let arguments = [
            "generate",
            "base",
            "--max-new-tokens",
            "9",
            "--prompt",
            prompt,
        ];
        world.done(&[&arguments[..], more].concat())
    };
    let framed = write("w3 w5", &[]);
    assert_eq!(framed, write("w3 w5", &["--chat"]));
    assert_eq!(framed, write("w7 w3 w5 w7", &["--raw"]));
    assert_ne!(framed, write("w3 w5", &["--raw"]));
}

#[test]
fn prompts_are_lines_objects_and_chats() {
    let world = Llama::new();
    let template = "{% for m in messages %}{{ ('w9 ' if m['role'] == 'system' else 'w7 ') + m['content'] + ' ' }}{% endfor %}";
    let path = world.path("base/tokenizer_config.json");
    write_json(&path, &json!({"chat_template": template}));
    let chat = json!({"messages": [{"role": "system", "content": "w2"}, {"role": "user", "content": "w3 w5"}]});
    let text = format!("{}\n{chat}\n", json!({"prompt": "w4"}));
    std::fs::write(world.path("asked.jsonl"), text).expect("writable");
    let short = ["--max-new-tokens", "9", "--json"];
    let write =
        |more: &[&str]| lines(&world.done(&[&["generate", "base"], &short[..], more].concat()));
    let found = write(&["--prompts", "asked.jsonl"]);
    assert_eq!(found[0]["prompt"], "w4");
    assert_eq!(found[1]["messages"], chat["messages"]);
    let alone = write(&["--prompt", "w9 w2 w7 w3 w5 ", "--raw"]);
    assert_eq!(found[1]["text"], alone[0]["text"], "the template framed it");
    let system = write(&["--prompt", "w3 w5", "--system", "w2"]);
    assert_eq!(system[0]["text"], alone[0]["text"]);
    // A file for the lines, and standard input for the prompts.
    let arguments = [
        "generate",
        "base",
        "--prompts",
        "-",
        "--output",
        "answers.jsonl",
    ];
    let mut program = world.program(&[&arguments[..], &short].concat());
    let mut child = program
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, b"w4\n").expect("it reads");
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
    let written = std::fs::read_to_string(world.path("answers.jsonl")).expect("written");
    assert_eq!(lines(&written), found[..1]);
    let dash = ["generate", "base", "--prompt", "w4", "--output", "-"];
    let printed = world.done(&[&dash[..], &short[..2]].concat());
    assert_eq!(lines(&printed), found[..1], "a dash is standard output");
    assert!(!world.path("-").exists());
    // Nothing is written over, and nothing generated that could not be written.
    let again = |more: &[&str], words: &str| {
        let output = world.run(&[&["generate", "base", "--prompt", "w4"], more].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(words), "{text}");
    };
    again(&["--output", "answers.jsonl"], "it is there already");
    again(
        &["--output", "none/answers.jsonl"],
        "there is no such folder",
    );
    world.done(&[
        "generate",
        "base",
        "--prompt",
        "w4",
        "--output",
        "answers.jsonl",
        "--force",
    ]);
    again(
        &["--prompts", "asked.jsonl", "--raw"],
        "no way to write messages",
    );
}

#[test]
fn a_stop_text_ends_what_is_written() {
    let world = Llama::new();
    let write = |more: &[&str]| {
        let prompt = ["generate", "base", "--json", "--prompt", "w3 w17 w5 w80"];
        lines(&world.done(&[&prompt[..], more].concat())).remove(0)
    };
    let whole = write(&["--max-new-tokens", "12"]);
    let text = whole["text"].as_str().expect("a text");
    let words: Vec<&str> = text.split(' ').collect();
    let stop = words[4];
    let end = text.find(stop).expect("it is a word of it");
    let stopped = write(&["--max-new-tokens", "12", "--stop", stop, "--stop", "never"]);
    assert_eq!(stopped["text"], text[..end]);
    assert_eq!(stopped["finish"], "stop_text");
    assert!(stopped["tokens"].as_u64() <= Some(6));
}

#[test]
fn a_base_in_fewer_bits_writes_too() {
    let world = Llama::new();
    let write = |dtype: &str| {
        let prompt = [
            "generate",
            "base",
            "--prompt",
            "w3 w17",
            "--base-dtype",
            dtype,
        ];
        world.done(&prompt)
    };
    assert_eq!(
        write("f32"),
        world.done(&["generate", "base", "--prompt", "w3 w17"])
    );
    assert!(!write("q8").trim().is_empty());
}

#[test]
fn an_adapter_folder_is_a_model() {
    let world = Llama::new();
    let prompt = ["--prompt", "w3 w17 w5 w80", "--max-new-tokens", "16"];
    let write = |source: &[&str]| world.done(&[&["generate"], source, &prompt].concat());
    for adapter in ["law", "med", "dora"] {
        let found = write(&[adapter, "--model", "base"]);
        assert_ne!(found, write(&["base"]), "{adapter}");
        let merged = format!("merged-{adapter}");
        world.done(&["merge", adapter, "--model", "base", "--out", &merged]);
        assert_eq!(found, write(&[&merged]), "{adapter}");
        // The base model that the configuration names.
        let config = world.path(adapter).join("adapter_config.json");
        let text = std::fs::read(&config).expect("readable");
        let mut value: Value = serde_json::from_slice(&text).expect("JSON");
        value["base_model_name_or_path"] = "base".into();
        write_json(&config, &value);
        assert_eq!(found, write(&[adapter]), "{adapter}");
        value["base_model_name_or_path"] = "no-such-folder".into();
        write_json(&config, &value);
        let arguments = [&["generate", adapter][..], &prompt].concat();
        world.refused(&arguments, &[adapter, "no-such-folder", "--model"]);
    }
    let none = ["generate", "base", "--model", "base", "--prompt", "w1"];
    world.refused(&none, &["base: --model is for the folder of an adapter"]);
    let expert = [
        "merge", "law", "--model", "base", "--expert", "0", "--out", "out",
    ];
    world.refused(&expert, &["law: is one adapter"]);
}

#[test]
fn what_cannot_be_continued_is_named() {
    let world = Llama::new();
    let refused = |arguments: &[&str], words: &[&str]| {
        world.refused(&[&["generate"], arguments].concat(), words);
    };
    refused(&["base", "--prompt", " "], &["prompt 0 is empty"]);
    for cut in [["--top-k", "5"], ["--top-p", "0.5"]] {
        let greedy = ["base", "--prompt", "w1", "--temperature", "0"];
        let words = "--temperature 0 takes the most likely token";
        refused(&[&greedy[..], &cut].concat(), &[words]);
    }
    std::fs::write(world.path("asked.json"), "{\"prompt\": \"w1\"}\n").expect("writable");
    refused(
        &["base", "--prompts", "asked.json"],
        &["asked.json: ", "call it .jsonl"],
    );
    let long = "w1 ".repeat(65);
    refused(
        &["base", "--prompt", "w1", "--prompt", &long],
        &["prompt 1 has 65 tokens, expected at most 64"],
    );
    refused(
        &["base", "--prompt", "w1", "--task", "law"],
        &["base: --task needs a run"],
    );
    refused(
        &["base", "--prompt", "w1", "--chat"],
        &["base: has no chat template"],
    );
    refused(
        &["base", "--prompt", "w1", "--top-p", "1.5"],
        &["top_p is 1.5"],
    );
    std::fs::write(world.path("some.txt"), "w1\n\nw2\n").expect("writable");
    refused(
        &["base", "--prompts", "some.txt"],
        &["some.txt:2: blank line between records"],
    );
    let template = "a\n{{ raise_exception('no user role') }}";
    let path = world.path("base/tokenizer_config.json");
    write_json(&path, &json!({"chat_template": template}));
    refused(
        &["base", "--prompt", "w1"],
        &["chat template, line 2, column", "no user role"],
    );
    world.assemble("uniform", &[]);
    refused(
        &["run", "--prompt", "w1", "--task", "tax"],
        &["run: has no task `tax`; there are: law, med"],
    );
    World::edit(&world.path("base/tokenizer.json"), |file| {
        file["model"]["vocab"]["w200"] = 200.into();
    });
    refused(
        &["base", "--prompt", "w1"],
        &["tokenizer.json", "200", "96"],
    );
}

#[test]
fn an_encoder_writes_nothing() {
    let world = World::new();
    world.train(&small("lora"), "run");
    for source in ["model", "run"] {
        let output = world.run(&["generate", source, "--prompt", "purr"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            error.contains("an encoder, which writes no text"),
            "{error}"
        );
    }
}
