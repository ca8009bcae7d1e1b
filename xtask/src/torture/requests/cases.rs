//! Requests that no client sends.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::Draw;
use super::answer::{Answer, Outcome, send};

/// Kinds of cases.
pub(super) const KINDS: [&str; 5] = ["bytes", "fields", "heads", "chunks", "senders"];

/// A case, which its kind, its number and the seed decide.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) kind: &'static str,
    pub(super) number: usize,
}

/// What is sent, and how it ends.
struct Sent {
    /// Pieces, each with a pause behind it.
    pieces: Vec<(Vec<u8>, Duration)>,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client waits for an answer, which there has to be.
    Waits,
    /// It has sent all it will, and there may be no answer.
    Last,
    /// It goes away without reading anything.
    Gone,
}

/// Good bodies and where they are sent.
const GOOD: [(&str, &str); 8] = [
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
        let mut draw = Draw(seed ^ ((place.unwrap_or(0) as u64) << 32) ^ self.number as u64);
        let sent = match self.kind {
            "bytes" => whole(bytes(&mut draw)),
            "fields" => whole(fields(&mut draw)),
            "heads" => head(&mut draw),
            "chunks" => chunks(&mut draw),
            _ => sender(&mut draw),
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
fn one<T: Copy>(draw: &mut Draw, of: &[T]) -> T {
    of[draw.below(of.len())]
}

/// A good body with some bytes changed.
fn bytes(draw: &mut Draw) -> (&'static str, Vec<u8>) {
    let (path, body) = one(draw, &GOOD);
    let mut body = body.as_bytes().to_vec();
    for _ in 0..=draw.below(3) / 2 {
        let at = draw.below(body.len());
        let byte = match draw.below(3) {
            0 => draw.below(256) as u8,
            _ => one(draw, br#"0123456789.-eE"{}[]:, \u"#),
        };
        match draw.below(12) {
            0..5 => body[at] = byte,
            5..8 if body.len() > 1 => drop(body.remove(at)),
            8 => {
                let copied = body[at..].to_vec();
                body.extend(copied);
            }
            9 => body.truncate(at + 1),
            _ => body.insert(at, byte),
        }
    }
    (path, body)
}

/// Names that a body may have, in any body.
const NAMES: [&str; 34] = [
    "model",
    "prompt",
    "messages",
    "input",
    "records",
    "tokens",
    "max_tokens",
    "n",
    "stop",
    "seed",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
    "top_logprobs",
    "echo",
    "stream",
    "stream_options",
    "encoding_format",
    "dimensions",
    "best_of",
    "suffix",
    "logit_bias",
    "response_format",
    "tools",
    "tool_choice",
    "user",
    "max_completion_tokens",
    "add_special_tokens",
    "",
];

/// A value that nobody means, or one that is good in some places.
fn value(draw: &mut Draw) -> Value {
    if draw.below(2) == 0 {
        let good = [
            json!(1),
            json!(0),
            json!(3),
            json!(0.5),
            json!("w1"),
            json!([5, 6]),
            json!(false),
        ];
        return good[draw.below(good.len())].clone();
    }
    let huge = [
        u64::MAX,
        1 << 53,
        u64::from(u32::MAX),
        1_000_000,
        65_536,
        129,
    ];
    let numbers = [-1.0, -0.0, 0.5, 1e-300, 1e300, -1e300, 2.5];
    let texts = [
        "",
        " ",
        "w1",
        "\u{0}",
        "\u{202e}\u{1f600}",
        "base",
        "run:task=pets",
        "model:task=",
        "run:expert=pets",
        ":",
        "a:b=c",
        "../../etc/passwd",
        "</s>",
        "[DONE]",
        "\r\n\r\n",
        "null",
    ];
    match draw.below(14) {
        0 => Value::Null,
        1 => draw.below(2).eq(&0).into(),
        2 => one(draw, &huge).into(),
        3 => one(draw, &numbers).into(),
        4 | 5 => one(draw, &texts).into(),
        6 => json!([]),
        7 => json!({}),
        8 => {
            let count = draw.below(70);
            (0..count).map(|_| one(draw, &huge)).collect()
        }
        9 => {
            let count = draw.below(40);
            (0..count).map(|_| one(draw, &texts)).collect()
        }
        10 => one(draw, &texts).repeat(1 + draw.below(3000)).into(),
        11 => json!([value(draw), value(draw)]),
        12 => json!({one(draw, &NAMES): value(draw), "role": "user", "content": value(draw)}),
        _ => (0..draw.below(100)).fold(json!(1), |inner, _| json!([inner])),
    }
}

/// A good body with fields changed, added and left out.
fn fields(draw: &mut Draw) -> (&'static str, Vec<u8>) {
    let (path, body) = one(draw, &GOOD);
    let mut fields: Map<String, Value> = serde_json::from_str(body).unwrap_or_default();
    for _ in 0..=draw.below(3) / 2 {
        let own: Vec<String> = fields.keys().cloned().collect();
        match (draw.below(8), own.is_empty()) {
            (0, false) => {
                fields.remove(&own[draw.below(own.len())]);
            }
            (1..6, false) => {
                fields.insert(own[draw.below(own.len())].clone(), value(draw));
            }
            _ => {
                fields.insert(one(draw, &NAMES).into(), value(draw));
            }
        }
    }
    let mut body = Value::Object(fields).to_string();
    match draw.below(30) {
        // A field twice.
        0 => body = body.replacen('{', r#"{"model": "base", "#, 1),
        1 => body = format!("{}{body}{}", "[".repeat(5000), "]".repeat(5000)),
        2 => body = body.replace(':', ":\n\t  "),
        3 => body.push_str(&body.clone()),
        _ => {}
    }
    (path, body.into_bytes())
}

/// Heads that are none, or say what is not so.
fn head(draw: &mut Draw) -> Sent {
    let (path, body) = one(draw, &GOOD);
    let methods = [
        "POST",
        "GET",
        "PUT",
        "DELETE",
        "OPTIONS",
        "PATCH",
        "CONNECT",
        "TRACE",
        "post",
        "P OST",
        "",
        "PRI",
        "\u{0}",
        "POSTPOSTPOSTPOSTPOSTPOSTPOSTPOST",
    ];
    let paths = [
        path,
        "/",
        "",
        "*",
        "/v1/models",
        "/v1/models/",
        "/v1/models/%00",
        "/v1/models/%ff%fe",
        "/v1/models/base:task=",
        "//v1//completions",
        "/../../etc/passwd",
        "/v1/completions?a=b&%%",
        "http://other/v1/models",
        "/health",
        "/metrics",
        "/openapi.json",
        "/\u{e9}",
        "/a b",
    ];
    let versions = [
        "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "http/1.1", "",
    ];
    let ends = ["\r\n", "\n", "\r", "\r\n \r\n", "\u{0}\r\n"];
    let end = if draw.below(8) == 0 {
        one(draw, &ends)
    } else {
        "\r\n"
    };
    let length = body.len();
    let long = "y".repeat([10, 1000, 70_000, 300_000][draw.below(4)]);
    let lengths = [
        format!("Content-Length: {length}"),
        format!("Content-Length: {}", length + 7),
        format!("Content-Length: {}", length / 2),
        "Content-Length: -1".into(),
        "Content-Length: 99999999999999999999".into(),
        format!("Content-Length: 0x{length:x}"),
        format!("Content-Length: {length}, {length}"),
        format!(
            "Content-Length: {length}{end}Content-Length: {}",
            length + 1
        ),
        format!("Content-Length: {length}{end}Transfer-Encoding: chunked"),
        "Transfer-Encoding: gzip, chunked".into(),
        "Transfer-Encoding: chunked, chunked".into(),
        "Transfer-Encoding: identity".into(),
    ];
    let others = [
        "Expect: 100-continue",
        "Expect: nothing",
        "Connection: upgrade\r\nUpgrade: h2c",
        "Upgrade: websocket",
        "x y: z",
        ": z",
        "x",
        "x: \u{1}",
        "Authorization: Bearer ",
        "Authorization: \u{ff}",
        "Content-Encoding: gzip",
        "Content-Type: multipart/form-data",
        "Host: here\r\nHost: there",
        "Accept: */*",
        "Connection: keep-alive",
        " folded: yes",
        "Range: bytes=0-",
        "Cookie: a=b",
    ];
    let (method, path, version) = match draw.below(3) {
        0 => ("POST", path, "HTTP/1.1"),
        1 => (one(draw, &methods), path, one(draw, &versions)),
        _ => (one(draw, &methods), one(draw, &paths), "HTTP/1.1"),
    };
    let mut head = format!("{method} {path} {version}{end}Host: here{end}");
    head.push_str("Connection: close");
    head.push_str(end);
    match draw.below(8) {
        0 => {}
        1..4 => head.push_str(&format!("{}{end}", lengths[0])),
        _ => head.push_str(&format!("{}{end}", lengths[draw.below(lengths.len())])),
    }
    for _ in 0..draw.below(4) {
        head.push_str(one(draw, &others));
        head.push_str(end);
    }
    match draw.below(20) {
        0 => head.push_str(&format!("x: {long}{end}")),
        1 => head = format!("POST /{long} HTTP/1.1\r\n"),
        2 => (0..300).for_each(|number| head.push_str(&format!("x-{number}: y{end}"))),
        3 => head.truncate(head.floor_char_boundary(draw.below(head.len()))),
        _ => {}
    }
    let mut sent = head.into_bytes();
    sent.extend(end.as_bytes());
    if draw.below(8) == 0 {
        let at = draw.below(sent.len());
        sent[at] = draw.below(256) as u8;
    }
    sent.extend(body.as_bytes());
    Sent {
        pieces: vec![(sent, Duration::from_millis(5))],
        end: End::Last,
    }
}

/// Bodies in chunks: whole ones have to be answered.
fn chunks(draw: &mut Draw) -> Sent {
    let (path, body) = one(draw, &GOOD);
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let mut sent = head.into_bytes();
    let mut rest = body.as_bytes();
    let is_good = draw.below(3) == 0;
    let wrong = draw.below(body.len());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(1 + draw.below(rest.len().min(40)));
        let is_wrong =
            !is_good && body.len() - rest.len() <= wrong && wrong < body.len() - after.len();
        let size = piece.len();
        let line = match is_wrong.then(|| draw.below(9)) {
            None => format!("{size:x}\r\n"),
            Some(0) => format!("{:x}\r\n", size + 1 + draw.below(9)),
            Some(1) => format!("{:x}\r\n", size / 2),
            Some(2) => "ffffffffffffffffff\r\n".into(),
            Some(3) => "zz\r\n".into(),
            Some(4) => format!("-{size:x}\r\n"),
            Some(5) => format!("{size:x};{}\r\n", "x".repeat(draw.below(40_000))),
            Some(6) => format!("{size:x}\n"),
            Some(7) => "\r\n".into(),
            _ => format!("{}{size:x}\r\n", "0".repeat(draw.below(64))),
        };
        sent.extend(line.as_bytes());
        sent.extend(piece);
        sent.extend(b"\r\n");
        rest = after;
    }
    let ends = [
        "0\r\n\r\n",
        "0\r\n",
        "",
        "0\r\nx: y\r\n\r\n",
        "00\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "1\r\n",
    ];
    let end = if is_good {
        "0\r\n\r\n"
    } else {
        one(draw, &ends)
    };
    sent.extend(end.as_bytes());
    Sent {
        pieces: vec![(sent, Duration::from_millis(2))],
        end: if is_good { End::Waits } else { End::Last },
    }
}

/// Slow ones, and ones that go away.
fn sender(draw: &mut Draw) -> Sent {
    let (path, body) = one(draw, &GOOD);
    let request = post(path, body.as_bytes());
    let cut = draw.below(request.len());
    let pause = |draw: &mut Draw| Duration::from_millis(draw.below(12) as u64);
    let pieces = |draw: &mut Draw, request: &[u8]| {
        let size = 1 + request.len() / (1 + draw.below(30));
        let pieces = request.chunks(size);
        pieces.map(|piece| (piece.to_vec(), pause(draw))).collect()
    };
    match draw.below(5) {
        // Slowly, but all of it.
        0 | 1 => Sent {
            pieces: pieces(draw, &request),
            end: End::Waits,
        },
        // Slowly, and not all.
        2 => Sent {
            pieces: pieces(draw, &request[..cut]),
            end: End::Last,
        },
        3 => Sent {
            pieces: pieces(draw, &request[..cut]),
            end: End::Gone,
        },
        // All of it, and no interest in the answer.
        _ => Sent {
            pieces: vec![(request, pause(draw))],
            end: End::Gone,
        },
    }
}
