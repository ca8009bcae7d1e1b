//! The suite `serve`: streams of `molora serve` beside each other, and how long the first token takes.
//!
//! A decoder is served in f32 and in bf16. One stream and 16 at once give tokens per second; a prompt of about 64
//! tokens gives the time to its first token, when nobody else asks and while 15 others are answered. With
//! `--against python` llama-cpp-python's server is asked the same, on the same weights as f32.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use xshell::{Shell, cmd};

use super::bars::Verdict;
use super::measure::target_folder;
use super::{Bench, table};
use crate::served::Served;
use crate::workspace;

/// Streams at once.
const STREAMS: usize = 16;
/// Tokens of each answer.
const TOKENS: usize = 128;
/// Times to a first token, of which the median counts.
const TRIES: usize = 9;
/// The types of the base's matrices.
const TYPES: [&str; 2] = ["f32", "bf16"];
/// As many tokens/s by 16 streams as by one, at least.
const TOGETHER: f64 = 4.0;
/// The first token under load, in first tokens of an idle server, at most.
const UNDER_LOAD: f64 = 10.0;
/// About 64 tokens, behind a number that no cache knows.
const PROMPT: &str = "The village lay in a valley between two rivers, and nobody who lived there could say which of \
    the two was the older one. In spring the water rose to the doors of the lowest houses, and children sailed in tubs \
    from one side of the street to the other. Then, one morning,";

/// What was measured of a server.
#[derive(Debug)]
struct Figures {
    name: String,
    /// Tokens per second of one stream, and of all.
    rates: [f64; 2],
    /// Seconds to the first token of an idle server, and under load.
    waits: [f64; 2],
}

/// Measures, and prints figures and bars.
pub(super) fn run(shell: &Shell, bench: &Bench) -> Result<()> {
    let model = bench.model.as_deref();
    let model = model.context("the suite `serve` needs a decoder: --model DIR")?;
    let model = model.canonicalize().context("--model")?;
    let program = workspace::program(shell, bench.program.as_deref())?;
    let mut figures = Vec::new();
    for dtype in TYPES {
        let mut serve = Command::new(&program);
        serve.arg("serve").arg(format!("model={}", model.display()));
        serve.args(["--base-dtype", dtype, "--max-rows", &STREAMS.to_string()]);
        let served = Served::start(serve)?;
        figures.push(measure(format!("molora {dtype}"), served.address)?);
    }
    if bench.against.is_some() {
        figures.push(peer(shell, &program, &model)?);
    }
    println!("\n{}", table::serving(&rows(&figures)));
    println!("\n{}", table::bars(&verdicts(&figures)));
    Ok(())
}

/// A line for each server.
fn rows(figures: &[Figures]) -> Vec<[String; 5]> {
    let row = |found: &Figures| {
        let [one, all] = found.rates.map(|rate| format!("{rate:.1}"));
        let [idle, loaded] = found.waits.map(|wait| format!("{:.0}", wait * 1e3));
        [found.name.clone(), one, all, idle, loaded]
    };
    figures.iter().map(row).collect()
}

/// What the project has promised, of its own servers.
fn verdicts(figures: &[Figures]) -> Vec<Verdict> {
    let own = figures
        .iter()
        .filter(|found| found.name.starts_with("molora"));
    let of_one = |found: &Figures| {
        let [one, all] = found.rates;
        let [idle, loaded] = found.waits;
        let verdict = |promise: String, value: f64, is_met: bool| Verdict {
            case: format!("serve/{}", found.name),
            promise,
            value,
            is_met,
        };
        let (together, waited) = (all / one, loaded / idle);
        [
            verdict(
                format!("{STREAMS} streams / one >= {TOGETHER}"),
                together,
                together >= TOGETHER,
            ),
            verdict(
                format!("first token, load / idle < {UNDER_LOAD}"),
                waited,
                waited < UNDER_LOAD,
            ),
        ]
    };
    own.flat_map(of_one).collect()
}

fn measure(name: String, address: SocketAddr) -> Result<Figures> {
    // What is filled once is no part of it.
    stream(address, 0, 8, || true)?;
    let begin = Instant::now();
    let (count, _) = stream(address, 1, TOKENS, || true)?;
    let one = count as f64 / begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let count = together(address, STREAMS, || true, || Ok(()))?;
    let all = count as f64 / begin.elapsed().as_secs_f64();
    let idle = first_token(address)?;
    let (is_over, mut loaded) = (AtomicBool::new(false), 0.0);
    let goes_on = || !is_over.load(Ordering::SeqCst);
    together(address, STREAMS - 1, goes_on, || {
        // All of them are read by then.
        std::thread::sleep(Duration::from_secs(3));
        let found = first_token(address);
        is_over.store(true, Ordering::SeqCst);
        loaded = found?;
        Ok(())
    })?;
    let figures = Figures {
        name,
        rates: [one, all],
        waits: [idle, loaded],
    };
    println!("{figures:?}");
    Ok(figures)
}

/// The median of the times to a first token.
fn first_token(address: SocketAddr) -> Result<f64> {
    let tries = (0..TRIES).map(|number| Ok(stream(address, 100 + number, 1, || true)?.1));
    let mut tries: Vec<Duration> = tries.collect::<Result<_>>()?;
    tries.sort();
    Ok(tries[TRIES / 2].as_secs_f64())
}

/// The tokens of streams at the same time, beside which something else is done. Each begins again while it may.
fn together(
    address: SocketAddr,
    count: usize,
    goes_on: impl Fn() -> bool + Sync,
    beside: impl FnOnce() -> Result<()>,
) -> Result<usize> {
    let goes_on = &goes_on;
    std::thread::scope(|scope| {
        let streams: Vec<_> = (0..count)
            .map(|number| scope.spawn(move || stream(address, 10 + number, TOKENS, goes_on)))
            .collect();
        beside()?;
        let counts = streams.into_iter().map(|stream| match stream.join() {
            Ok(found) => Ok(found?.0),
            Err(_) => bail!("a stream panicked"),
        });
        counts.sum()
    })
}

/// Reads an answer as it is written, and leaves when it may not go on. The number of its pieces, which are tokens,
/// and the time to the first of them.
fn stream(
    address: SocketAddr,
    number: usize,
    tokens: usize,
    goes_on: impl Fn() -> bool,
) -> Result<(usize, Duration)> {
    let prompt = format!("{number}. {PROMPT}");
    let body = json!({"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 1,
        "seed": number, "stream": true})
    .to_string();
    let begin = Instant::now();
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(300)))?;
    let length = body.len();
    write!(
        socket,
        "POST /v1/completions HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut lines = BufReader::new(socket).lines();
    let status = lines.next().context("no answer")??;
    ensure!(status.contains(" 200 "), "{status}");
    let (mut count, mut first) = (0, None);
    for line in lines {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        if data == "[DONE]" || !goes_on() {
            break;
        }
        count += 1;
        first.get_or_insert_with(|| begin.elapsed());
    }
    Ok((count, first.context("an answer without a token")?))
}

/// llama-cpp-python's server, which ends with this value.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The same of llama-cpp-python's server, with the packages `llama-cpp-python[server]`.
fn peer(shell: &Shell, program: &Path, model: &Path) -> Result<Figures> {
    let python = std::env::var_os("MOLORA_PYTHON").map(PathBuf::from);
    let python = python.context("MOLORA_PYTHON names no Python with llama-cpp-python[server]")?;
    let file = target_folder(shell)?.join("bench-models/serve.gguf");
    shell.remove_path(&file)?;
    cmd!(
        shell,
        "{program} export {model} --format gguf --dtype f32 --out {file}"
    )
    .run()?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new(python);
    command.args([
        "-m",
        "llama_cpp.server",
        "--model_alias",
        "model",
        "--model",
    ]);
    command
        .arg(&file)
        .args(["--port", &address.port().to_string()]);
    // Its default gives up an answer when another one is asked for.
    command.args(["--interrupt_requests", "false"]);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let peer = Peer(child);
    for _ in 0..600 {
        if TcpStream::connect(address).is_ok() {
            let figures = measure("llama-cpp-python f32".into(), address);
            drop(peer);
            return figures;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("llama-cpp-python's server does not listen after a minute")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_of_ratios_and_of_our_own() {
        let figures = |name: &str| Figures {
            name: name.into(),
            rates: [10.0, 40.0],
            waits: [0.1, 1.0],
        };
        let found = verdicts(&[figures("molora f32"), figures("other")]);
        let met: Vec<bool> = found.iter().map(|verdict| verdict.is_met).collect();
        assert_eq!(met, [true, false]);
        assert_eq!(
            rows(&[figures("a")])[0],
            ["a", "10.0", "40.0", "100", "1000"]
        );
    }
}
