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
fn what_cannot_be_continued_is_named() {
    let world = Llama::new();
    let refused = |arguments: &[&str], words: &[&str]| {
        world.refused(&[&["generate"], arguments].concat(), words);
    };
    refused(&["base", "--prompt", " "], &["prompt 0 is empty"]);
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
        &["some.txt:2: the line is empty"],
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
