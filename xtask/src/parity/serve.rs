//! `cargo xtask parity serve`: `molora serve`, asked by the clients that people have.
//!
//! A tiny decoder (`parity/serve.py make`) or the one that `MOLORA_PARITY_MODEL` names, a mixture trained on it,
//! and runs of the bundled encoder are served on the loopback. OpenAI's Python client, EleutherAI's lm-eval
//! (`parity/serve.py check`), async-openai (`parity/client`, a workspace of its own) and curl have to understand
//! every answer, and lm-eval has to count as many right answers as `molora eval`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xshell::{Shell, cmd};

use super::interpreter;
use crate::served::Served;
use crate::workspace;

/// What the checks import, as pip installs it.
const PACKAGES: [&str; 6] = [
    "openai",
    "lm_eval[api]",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
];

/// A larger decoder in place of the tiny one.
const MODEL: &str = "MOLORA_PARITY_MODEL";

/// The base model of runs of encoders.
const ENCODER: &str = "bundled:all-MiniLM-L6-v2";

/// What every request has to bring.
const KEY: &str = "open-sesame";

/// Room for 20 texts of a model, which one client can fill.
const ROOM: [&str; 4] = ["--max-rows", "8", "--max-waiting", "12"];

pub(super) fn run(shell: &Shell, work: &Path, program: Option<&Path>) -> Result<()> {
    let python = interpreter(shell, &work.join("serve-venv"), &PACKAGES)?;
    let program = workspace::program(shell, program)?;
    let world = work.join("serve");
    shell.remove_path(&world)?;
    shell.create_dir(&world)?;
    let script = shell.current_dir().join("xtask/parity/serve.py");
    cmd!(shell, "{python} {script} make {world}").run()?;
    if let Some(model) = std::env::var_os(MODEL) {
        let base = world.join("base");
        shell.remove_path(&base)?;
        link(&PathBuf::from(model).canonicalize().context(MODEL)?, &base)?;
    }
    train(shell, &program, &world)?;
    shell.write_file(world.join("key"), KEY)?;
    let mut serve = Command::new(&program);
    serve.current_dir(&world);
    // Else a link has the name of what it leads to.
    serve.args(["serve", "run", "base=base", "classes"]);
    serve.arg(format!("encoder={ENCODER}"));
    serve.args(["--api-key-file", "key"]).args(ROOM);
    let served = Served::start(serve)?;
    let url = format!("http://{}/v1", served.address);
    cmd!(shell, "{python} {script} check {world} {url} {KEY}").run()?;
    async_openai(shell, work, &url)?;
    curl(shell, &url)?;
    let (status, said) = served.end()?;
    ensure!(
        status.success() && !said.contains("panicked at"),
        "the server ended with {status}: {said}"
    );
    println!("the server ended when it was asked to");
    Ok(())
}

#[cfg(unix)]
fn link(from: &Path, to: &Path) -> Result<()> {
    Ok(std::os::unix::fs::symlink(from, to)?)
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> Result<()> {
    anyhow::bail!("{MODEL} works on Unix alone")
}

/// Trains a mixture of the decoder and one of the encoder, and scores what is served by `molora eval`.
fn train(shell: &Shell, program: &Path, world: &Path) -> Result<()> {
    let _folder = shell.push_dir(world);
    // Whether or not the model has a chat template: lm-eval's tasks have none.
    let plain = [
        "--set",
        "data.writing.prompt=plain",
        "--set",
        "data.writing.max_new_tokens=32",
    ];
    let small = ["--steps", "12", "--set", "data.sampling.batch_size=8"];
    let data = ["--data", "tasks"];
    let mixture = ["train", "samora", "--model", "base", "--out", "run"];
    cmd!(
        shell,
        "{program} {mixture...} {data...} {small...} {plain...}"
    )
    .quiet()
    .ignore_stderr()
    .ignore_stdout()
    .run()?;
    let classes = ["train", "samora", "--tasks", "pets", "--out", "classes"];
    cmd!(
        shell,
        "{program} {classes...} --model {ENCODER} {data...} {small...}"
    )
    .quiet()
    .ignore_stderr()
    .ignore_stdout()
    .run()?;
    let base = [&["base"][..], &data, &plain].concat();
    for (name, arguments) in [("run", &["run"][..]), ("base", &base)] {
        let scores = cmd!(shell, "{program} eval {arguments...} --json");
        let scores = scores.quiet().ignore_stderr().read()?;
        shell.write_file(format!("eval-{name}.json"), scores)?;
    }
    Ok(())
}

fn async_openai(shell: &Shell, work: &Path, url: &str) -> Result<()> {
    let manifest = shell.current_dir().join("xtask/parity/client/Cargo.toml");
    let target = work.join("client");
    let run = ["run", "--quiet", "--release", "--target-dir"];
    cmd!(
        shell,
        "cargo {run...} {target} --manifest-path {manifest} -- {url} {KEY} run encoder"
    )
    .run()?;
    Ok(())
}

/// What stands in the documents for a shell: a whole answer, a stream, and a refusal with its status.
fn curl(shell: &Shell, url: &str) -> Result<()> {
    let key = format!("Authorization: Bearer {KEY}");
    let json = "Content-Type: application/json";
    let body =
        r#"{"model": "run", "prompt": "Name an animal.", "max_tokens": 4, "temperature": 0}"#;
    let options = [
        "--silent",
        "--show-error",
        "--fail-with-body",
        "--max-time",
        "60",
    ];
    let path = format!("{url}/completions");
    let whole = cmd!(
        shell,
        "curl {options...} -H {key} -H {json} -d {body} {path}"
    )
    .quiet()
    .read()?;
    let whole: Value = serde_json::from_str(&whole)?;
    let text = whole["choices"][0]["text"].as_str().context("no text")?;
    let streamed = body.replace('}', r#", "stream": true}"#);
    let events = cmd!(
        shell,
        "curl {options...} --no-buffer -H {key} -H {json} -d {streamed} {path}"
    );
    let events = events.quiet().read()?;
    let mut pieces = String::new();
    let mut lines = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "));
    for line in lines.by_ref().take_while(|line| *line != "[DONE]") {
        let chunk: Value = serde_json::from_str(line)?;
        pieces.push_str(chunk["choices"][0]["text"].as_str().context("no text")?);
    }
    ensure!(
        pieces == text,
        "curl: {pieces:?} in pieces, {text:?} as a whole"
    );
    let status = [
        "--silent",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
    ];
    for (headers, expected) in [(json, "401"), (&key[..], "400")] {
        let found = cmd!(shell, "curl {status...} -H {headers} -d [] {path}")
            .quiet()
            .read()?;
        ensure!(
            found == expected,
            "curl: status {found}, expected {expected}"
        );
    }
    println!("curl: a completion, a stream, refusals");
    Ok(())
}
