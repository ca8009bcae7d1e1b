//! What the server does not answer, and how it says so.

use std::io::Write;

use serde_json::{Value, json};

use super::client::{Served, read};
use crate::exchange::decoder::Llama;
use crate::world::Draw;

#[test]
fn bad_requests_are_told_what_is_wrong() {
    let world = Llama::new();
    let served = Served::start(world.program(&["serve", "base", "--max-context", "32"]));
    let refused = |body: Value, status: u16, part: &str| {
        let answer = served.post("/v1/completions", &body);
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        let message = answer.message();
        assert!(message.contains(part), "{body}: {message}");
    };
    refused(json!({"prompt": "w1"}), 400, "model is missing");
    refused(
        json!({"model": "nobody", "prompt": "w1"}),
        404,
        "there are base",
    );
    refused(json!({"model": "base"}), 400, "prompt is missing");
    refused(json!({"model": "base", "prompt": ""}), 400, "is empty");
    refused(json!({"model": "base", "prompt": []}), 400, "prompt");
    refused(
        json!({"model": "base", "prompt": [96]}),
        400,
        "token 96, expected 0 to 95",
    );
    refused(
        json!({"model": "base", "prompt": [-1]}),
        400,
        "expected a text, tokens",
    );
    refused(
        json!({"model": "base", "prompt": vec![1; 33]}),
        400,
        "at most 32",
    );
    refused(
        json!({"model": "base", "prompt": "w1", "best_of": 2}),
        400,
        "best_of is not supported",
    );
    refused(
        json!({"model": "base", "prompt": "w1", "n": 129}),
        400,
        "at most 128",
    );
    refused(
        json!({"model": "base", "prompt": ["w1", "w2", "w3"], "n": 128}),
        400,
        "asks for 384 texts, expected at most 272",
    );
    refused(
        json!({"model": "base", "prompt": "w1", "logprobs": 21}),
        400,
        "at most 20",
    );
    refused(
        json!({"model": "base", "prompt": "w1", "presence_penalty": 9}),
        400,
        "presence_penalty",
    );
    refused(
        json!({"model": "base", "prompt": "w1", "extra": 1}),
        400,
        "unknown field `extra`",
    );
    let twice = br#"{"model": "base", "prompt": "w1", "prompt": "w2"}"#;
    let answer = served.send("POST", "/v1/completions", "", twice);
    assert_eq!(answer.status, 400);
    assert!(
        answer.message().contains("\"prompt\" stands twice"),
        "{}",
        answer.body
    );
    let chat = json!({"model": "base", "messages": [{"role": "user", "content": "w1"}]});
    let answer = served.post("/v1/chat/completions", &chat);
    assert_eq!(answer.status, 400);
    assert!(
        answer.message().contains("chat template"),
        "{}",
        answer.body
    );
    for (method, path, status) in [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/v1/models/%ff", 400),
    ] {
        let answer = served.send(method, path, "", b"");
        assert_eq!(answer.status, status, "{method} {path}");
        answer.message();
    }
    let long = served.send("POST", "/v1/completions", "", &vec![b' '; (8 << 20) + 1]);
    assert_eq!(long.status, 413);
    assert_eq!(served.get("/health").status, 200);
}

/// Clients know by the code that a prompt is to be cut, whether it is beyond the server's bound or the model's
/// own.
#[test]
fn a_prompt_that_is_too_long_has_a_code() {
    let world = Llama::new();
    let served = Served::start(world.program(&["serve", "base", "--max-context", "32"]));
    for tokens in [33, 5000] {
        let body = json!({"model": "base", "prompt": vec![1; tokens]});
        let error = served.post("/v1/completions", &body).json()["error"].clone();
        assert_eq!(error["code"], "context_length_exceeded", "{error}");
    }
}

#[test]
fn a_key_opens_everything_but_health() {
    let world = Llama::new();
    std::fs::write(world.path("key"), "open-sesame\n").expect("writable");
    let served = Served::start(world.program(&["serve", "base", "--api-key-file", "key"]));
    let status = |path: &str, headers: &str| served.send("GET", path, headers, b"").status;
    assert_eq!(status("/health", ""), 200);
    for path in ["/v1/models", "/metrics", "/nowhere"] {
        assert_eq!(status(path, ""), 401, "{path}");
        assert_eq!(
            status(path, "Authorization: Bearer open\r\n"),
            401,
            "{path}"
        );
    }
    assert_eq!(
        status("/v1/models", "authorization: Bearer open-sesame\r\n"),
        200
    );
    let answer = served.get("/v1/models");
    assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
    world.refused(
        &["serve", "base", "--api-key-file", "base/config.json"],
        &["holds no key"],
    );
}

#[test]
fn sources_that_cannot_be_served_are_named() {
    let world = Llama::new();
    world.refused(
        &["serve", "base", "base"],
        &["two models `base`", "NAME=FOLDER"],
    );
    world.refused(&["serve", "a:b=base"], &["`a:b`", "colon"]);
    world.refused(&["serve", "nothing/here"], &["nothing/here"]);
    world.refused(
        &["serve", "base", "--host", "256.0.0.1"],
        &["256.0.0.1:8000"],
    );
}

/// Bodies, heads and lengths that no client sends.
#[test]
fn nothing_that_is_sent_ends_the_server() {
    let world = Llama::new();
    let served = Served::start(world.program(&["serve", "base"]));
    let good = json!({"model": "base", "prompt": "w1 w2", "max_tokens": 2, "temperature": 0,
        "stop": ["w9"], "logprobs": 1})
    .to_string();
    let mut draw = Draw(7);
    for _ in 0..200 {
        let mut body = good.clone().into_bytes();
        for _ in 0..=draw.below(3) {
            let (at, byte) = (draw.below(body.len()), draw.below(256) as u8);
            match draw.below(4) {
                0 => body[at] = byte,
                1 => drop(body.remove(at)),
                2 => body.insert(at, byte),
                _ => body.truncate(at + 1),
            }
        }
        let answer = served.send("POST", "/v1/completions", "", &body);
        let text = String::from_utf8_lossy(&body);
        assert!(
            answer.status < 500,
            "{} {text}: {}",
            answer.status,
            answer.body
        );
        if answer.status >= 400 {
            answer.message();
        }
    }
    for head in [
        "POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        "POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        "POST /v1/completions HTTP/9.9\r\n\r\n",
        "\x00\x01\x02\r\n\r\n",
        "GET / HTTP/1.1\r\nx y: z\r\n\r\n",
        &format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(70_000)),
    ] {
        let mut stream = served.connect();
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut bytes = Vec::new();
        // It answers or closes, and does not wait.
        let _ = std::io::Read::read_to_end(&mut stream, &mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.starts_with("HTTP/1.1 5"), "{head:.60}: {text}");
    }
    let answer = read(served.begin("POST", "/v1/completions", "", good.as_bytes()));
    assert_eq!(answer.status, 200);
}
