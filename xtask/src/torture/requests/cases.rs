//! Requests that no client sends.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Draw;
use super::answer::{Answer, Outcome, send};
use super::{bodies, wire};

/// Kinds of cases.
pub(super) const KINDS: [&str; 5] = ["bytes", "fields", "heads", "chunks", "senders"];

/// A case, which its kind, its number and the seed decide.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) kind: &'static str,
    pub(super) number: usize,
}

/// What is sent, and how it ends.
pub(super) struct Sent {
    /// Pieces, each with a pause behind it.
    pub(super) pieces: Vec<(Vec<u8>, Duration)>,
    pub(super) end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The client waits for an answer, which there has to be.
    Waits,
    /// It has sent all it will, and there may be no answer.
    Last,
    /// It goes away without reading anything.
    Gone,
}

/// Good bodies and where they are sent.
pub(super) const GOOD: [(&str, &str); 8] = [
    (
        "/v1/completions",
        r#"{"model": "base", "prompt": "w1 cat", "max_tokens": 4, "temperature": 0, "stop": ["w9"], "logprobs": 1, "seed": 3}"#,
    ),
    (
        "/v1/completions",
        r#"{"model": "base", "prompt": [[5, 6], [7]], "max_tokens": 3, "n": 2, "top_p": 0.5, "stream": true, "stream_options": {"include_usage": true}}"#,
    ),
    (
        "/v1/completions",
        r#"{"model": "base", "prompt": [5, 6, 7], "max_tokens": 0, "echo": true, "logprobs": 2}"#,
    ),
    (
        "/v1/chat/completions",
        r#"{"model": "base", "messages": [{"role": "user", "content": [{"type": "text", "text": "w1"}]}], "max_completion_tokens": 2}"#,
    ),
    (
        "/v1/embeddings",
        r#"{"model": "model", "input": ["w1 purr", "bark"], "encoding_format": "base64"}"#,
    ),
    (
        "/v1/embeddings",
        r#"{"model": "run:task=pets", "input": "w1 purr"}"#,
    ),
    (
        "/v1/classify",
        r#"{"model": "run:task=pets", "records": [{"input": "purr", "input_b": null}]}"#,
    ),
    ("/tokenize", r#"{"model": "base", "prompt": "w1 cat w2"}"#),
];

/// A whole request with a body.
pub(super) fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Refuses to begin where good requests are not answered: all that is drawn would be refused for that.
pub(super) fn check_good(address: SocketAddr) -> Result<()> {
    for (path, body) in GOOD {
        let pieces = [(post(path, body.as_bytes()), Duration::ZERO)];
        let answer = Answer::to(address, &pieces)?;
        let is_good = answer.outcome() == Ok(Outcome::Answered);
        ensure!(is_good, "{path} {body}: {answer:?}");
    }
    Ok(())
}

impl Case {
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.kind, self.number)
    }

    /// How the case ended, or what is wrong with that.
    pub(super) fn fault_or_outcome(
        &self,
        address: SocketAddr,
        seed: u64,
    ) -> Result<Outcome, String> {
        let place = KINDS.iter().position(|kind| *kind == self.kind);
        // Mixed one by one: numbers of one seed would else be those of another in another order.
        let mut mixed = Draw(seed).next();
        for part in [place.unwrap_or(0), self.number] {
            mixed = Draw(mixed ^ part as u64).next();
        }
        let mut draw = Draw(mixed);
        let sent = match self.kind {
            "bytes" => whole(bodies::bytes(&mut draw)),
            "fields" => whole(bodies::fields(&mut draw)),
            "heads" => wire::head(&mut draw),
            "chunks" => wire::chunks(&mut draw),
            _ => wire::sender(&mut draw),
        };
        let told = |error: anyhow::Error| format!("{error:#}");
        match sent.end {
            End::Waits => match Answer::to(address, &sent.pieces).map_err(told)?.outcome()? {
                Outcome::Closed => Err("there is no answer".into()),
                outcome => Ok(outcome),
            },
            End::Last => Answer::to_last(address, &sent.pieces)
                .map_err(told)?
                .outcome(),
            End::Gone => {
                drop(send(address, &sent.pieces).map_err(told)?);
                Ok(Outcome::Closed)
            }
        }
    }
}

fn whole((path, body): (&str, Vec<u8>)) -> Sent {
    Sent {
        pieces: vec![(post(path, &body), Duration::ZERO)],
        end: End::Waits,
    }
}

/// One of some things.
pub(super) fn one<T: Copy>(draw: &mut Draw, of: &[T]) -> T {
    of[draw.below(of.len())]
}
