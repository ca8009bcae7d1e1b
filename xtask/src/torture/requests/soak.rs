//! `cargo xtask torture soak`: many short requests, clients that hang up, and what the server holds after that.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::answer::{Answer, Outcome, send};
use super::{cases, each, serve, settle};
use crate::served::Served;
use crate::torture::process::memory;
use crate::torture::scenario::Stage;

/// Short requests.
const SHORT: usize = 10_000;
/// Of these the first ones fill what is filled once.
const WARM: usize = 1000;
/// Clients that hang up in the middle of an answer.
const GONE: usize = 200;
/// What the memory may grow by, in MiB: pieces of the allocator, of each thread.
const GROWTH: u64 = 32;

/// Asks, and prints what was measured.
pub(in crate::torture) fn run(stage: &Stage, root: &Path) -> Result<()> {
    let served = serve(stage, root, "soak")?;
    let held = || memory(served.id(), "VmRSS:");
    short(&served, WARM)?;
    let warm = held();
    let begin = Instant::now();
    short(&served, SHORT - WARM)?;
    let rate = (SHORT - WARM) as f64 / begin.elapsed().as_secs_f64();
    let after = held();
    hang_up(&served)?;
    settle(&served)?;
    let end = held();
    let peak = memory(served.id(), "VmHWM:");
    println!(
        "\nsoak: {SHORT} short requests ({rate:.0}/s), {GONE} clients hung up; memory {warm} MiB after {WARM} \
         requests, {after} MiB after all, {end} MiB at the end, {peak} MiB at most; no text is written or waits"
    );
    ensure!(
        end <= warm + GROWTH,
        "the server holds {end} MiB, {warm} MiB after {WARM} requests"
    );
    short(&served, 1)?;
    let (status, said) = served.end()?;
    ensure!(status.success(), "the server ended with {status}: {said}");
    ensure!(!said.contains("panicked at"), "the server panicked: {said}");
    Ok(())
}

/// A request to one of the two models that share a base.
fn asked(number: usize, more: &str) -> Vec<u8> {
    let model = ["base", "beside"][number % 2];
    let body = format!(r#"{{"model": "{model}", "prompt": "w1 cat w2", {more}}}"#);
    cases::post("/v1/completions", body.as_bytes())
}

/// So many requests, by several clients at once, each of which is answered.
fn short(served: &Served, count: usize) -> Result<()> {
    each(count, |number| {
        let request = asked(number, r#""max_tokens": 2, "seed": 1"#);
        let answer = Answer::to(served.address, &[(request, Duration::ZERO)])?;
        let is_good = answer.outcome() == Ok(Outcome::Answered);
        ensure!(is_good, "a short request: {answer:?}");
        Ok(())
    })
}

/// Clients that go away in the middle of a stream, at another place each.
fn hang_up(served: &Served) -> Result<()> {
    let more = r#""max_tokens": 55, "n": 4, "stream": true, "stop": ["none"]"#;
    each(GONE, |number| {
        let pause = Duration::from_millis(number as u64 % 40);
        let pieces = [(asked(number, more), pause)];
        drop(send(served.address, &pieces)?);
        Ok(())
    })
}
