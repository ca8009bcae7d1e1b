//! `cargo xtask torture requests` and `soak`: clients of `molora serve` that no library writes.
//!
//! Bodies, fields, heads, chunks and senders are drawn from a seed. The server may refuse them, and close the
//! connection where there is no request to answer; it may not fail, hang, or answer others in another way.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use serde_json::json;

mod answer;
mod bodies;
mod cases;
mod soak;
mod wire;

pub(super) use soak::run as soak;

use answer::{Answer, Outcome};
use cases::{Case, KINDS};

use super::report::{Findings, Row};
use super::scenario::Stage;
use super::tree;
use super::{Draw, Torture};
use crate::served::Served;

/// Cases of a kind where there is no limit.
const ALL: usize = 2000;
/// Most cases wait for the server, or for a time to pass.
const AT_ONCE: usize = 16;
/// After so many cases somebody asks a good question.
const BETWEEN: usize = 250;
/// The question, whose answer never changes.
const GOOD: &str = r#"{"model": "base", "prompt": "w1 cat w2", "max_tokens": 6, "temperature": 0}"#;

/// Starts a server of a decoder `base`, another model `beside` on it, an encoder `model`, and a run `run` of it.
fn serve(stage: &Stage, root: &Path, name: &str) -> Result<Served> {
    let place = stage.folder.join(name);
    tree::replace(stage.state("two")?, &place)?;
    let base = place.join("base");
    let golden = root.join("crates/molora-models/tests/golden/llama");
    tree::copy(&golden, &base)?;
    std::fs::copy(
        place.join("model/tokenizer.json"),
        base.join("tokenizer.json"),
    )?;
    let template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}";
    let config = json!({ "chat_template": template });
    std::fs::write(base.join("tokenizer_config.json"), config.to_string())?;
    let arguments = "serve base beside=base model run --grace 5".split(' ');
    let arguments: Vec<String> = arguments.map(str::to_owned).collect();
    let mut command: Command = stage.program.command(&place, &arguments);
    command.args(["--max-context", "64"]);
    Served::start(command)
}

/// The answer to the good question.
fn ask(served: &Served) -> Result<String> {
    let request = cases::post("/v1/completions", GOOD.as_bytes());
    let answer = Answer::to(served.address, &[(request, Duration::ZERO)])?;
    ensure!(answer.status == Some(200), "a good request: {answer:?}");
    let choices = answer.json().context("no JSON")?["choices"].clone();
    Ok(choices.to_string())
}

/// The sum of a metric over all models.
fn metric(served: &Served, name: &str) -> Result<f64> {
    let request = b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".to_vec();
    let page = Answer::to(served.address, &[(request, Duration::ZERO)])?;
    let lines = page.body.lines().filter_map(|line| line.strip_prefix(name));
    let values = lines.filter_map(|line| line.split(' ').next_back()?.parse::<f64>().ok());
    Ok(values.sum())
}

/// Waits until nothing is written any more.
fn settle(served: &Served) -> Result<()> {
    for _ in 0..600 {
        let rows = metric(served, "molora_texts_running")?;
        if rows == 0.0 && metric(served, "molora_texts_waiting")? == 0.0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("texts are still written 30 seconds after the last client has gone")
}

/// Does something so many times, on some threads.
fn each(count: usize, act: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            match next.fetch_add(1, Ordering::SeqCst) {
                index if index < count => act(index)?,
                _ => return Ok(()),
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().map(|thread| {
            let result = thread.join();
            result.unwrap_or_else(|_| bail!("a client panicked"))
        });
        results.collect()
    })
}

/// What was seen of all cases.
#[derive(Debug, Default)]
struct Seen {
    /// By kind: answered, refused, closed, faults.
    counts: BTreeMap<&'static str, [usize; 4]>,
}

impl Seen {
    fn note(&mut self, case: &Case, outcome: &Result<Outcome, String>) {
        let counts = self.counts.entry(case.kind).or_default();
        match outcome {
            Ok(Outcome::Answered) => counts[0] += 1,
            Ok(Outcome::Refused) => counts[1] += 1,
            Ok(Outcome::Closed) => counts[2] += 1,
            Err(fault) => {
                counts[3] += 1;
                println!("{}: {fault}", case.name());
            }
        }
    }
}

/// Runs all cases, or some.
pub(super) fn run_all(stage: &Stage, root: &Path, options: &Torture) -> Result<Findings> {
    let count = if options.limit == 0 {
        ALL
    } else {
        options.limit
    };
    let is_wanted = |case: &Case| {
        options.only.as_ref().is_none_or(|only| *only == case.kind)
            && options
                .case
                .as_ref()
                .is_none_or(|name| *name == case.name())
    };
    let cases = KINDS
        .iter()
        .flat_map(|&kind| (0..count).map(move |number| Case { kind, number }));
    let mut cases: Vec<Case> = cases.filter(is_wanted).collect();
    Draw(options.seed).shuffle(&mut cases);
    let served = serve(stage, root, "requests")?;
    cases::check_good(served.address)?;
    let good = ask(&served)?;
    let seen = Mutex::new(Seen::default());
    each(cases.len(), |index| {
        let case = &cases[index];
        let outcome = case.fault_or_outcome(served.address, options.seed);
        if let Ok(mut seen) = seen.lock() {
            seen.note(case, &outcome);
        }
        let is_good = index % BETWEEN > 0 || ask(&served)? == good;
        ensure!(is_good, "a good request has another answer");
        Ok(())
    })?;
    settle(&served)?;
    ensure!(ask(&served)? == good, "a good request has another answer");
    let (status, said) = served.end()?;
    ensure!(status.success(), "the server ended with {status}: {said}");
    ensure!(!said.contains("panicked at"), "the server panicked: {said}");
    let mut findings = Findings::default();
    let seen = seen.into_inner().unwrap_or_default();
    for (kind, [answered, refused, closed, faults]) in seen.counts {
        findings.add(Row {
            name: kind.into(),
            kind: "requests".into(),
            operations: 0,
            cases: answered + refused + closed + faults,
            outcomes: vec![
                ("answered", answered),
                ("refused", refused),
                ("closed", closed),
            ],
            faults,
        });
    }
    Ok(findings)
}
