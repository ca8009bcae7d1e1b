//! Clients that go away, queues that are full, and a server that ends.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Served, read};
use crate::exchange::decoder::Llama;
use crate::world::World;

/// A model that writes for as long as it may.
fn endless() -> Llama {
    let world = Llama::new();
    World::edit(&world.path("base/config.json"), |config| {
        config["max_position_embeddings"] = 1_000_000.into();
        config["eos_token_id"] = Value::Null;
    });
    world
}

fn long_request() -> Vec<u8> {
    let body = json!({"model": "base", "prompt": "w3 w17", "max_tokens": 900_000, "stream": true});
    body.to_string().into_bytes()
}

fn serve(world: &Llama, more: &[&str]) -> Served {
    let arguments = [
        "serve",
        "base",
        "--max-context",
        "100000",
        "--max-rows",
        "1",
    ];
    Served::start(world.program(&[&arguments[..], more].concat()))
}

/// Waits until something is so.
fn until(is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "it takes too long"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    let world = endless();
    let served = serve(&world, &["--max-waiting", "1"]);
    let running = || served.metric("molora_texts_running{model=\"base\"}");
    let short = json!({"model": "base", "prompt": "w3", "max_tokens": 2});
    for is_stream in [true, false] {
        let mut request: Value = serde_json::from_slice(&long_request()).expect("JSON");
        request["stream"] = is_stream.into();
        let body = request.to_string();
        let stream = served.begin("POST", "/v1/completions", "", body.as_bytes());
        until(|| running() == 1.0);
        let waiting = served.begin("POST", "/v1/completions", "", body.as_bytes());
        until(|| served.metric("molora_texts_waiting{model=\"base\"}") == 1.0);
        // Written and waiting: there is no place for a third one.
        let full = served.post("/v1/completions", &short);
        assert_eq!(full.status, 429, "{}", full.body);
        assert_eq!(full.header("retry-after"), Some("1"));
        full.message();
        drop(waiting);
        drop(stream);
        until(|| running() == 0.0);
        assert_eq!(
            served.ask("/v1/completions", &short)["usage"]["completion_tokens"],
            2
        );
    }
    assert!(served.metric("molora_generated_tokens_total{model=\"base\"}") > 4.0);
}

#[cfg(unix)]
#[test]
fn a_server_that_ends_answers_what_it_has_begun() {
    let world = endless();
    let served = serve(&world, &[]);
    let body = json!({"model": "base", "prompt": "w3 w17", "max_tokens": 300, "temperature": 0,
        "stream": true});
    let mut stream = served.begin("POST", "/v1/completions", "", body.to_string().as_bytes());
    let mut first = [0; 1];
    stream.read_exact(&mut first).expect("it has begun");
    served.signal();
    let answer = read_on(first[0], stream);
    assert!(
        answer.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"),
        "{answer}"
    );
    assert!(served.end().success());
}

/// The rest of an answer.
#[cfg(unix)]
fn read_on(first: u8, mut stream: std::net::TcpStream) -> String {
    let mut bytes = vec![first];
    stream.read_to_end(&mut bytes).expect("a whole answer");
    String::from_utf8(bytes).expect("UTF-8")
}

#[cfg(unix)]
#[test]
fn a_server_ends_within_its_bound() {
    let world = endless();
    let served = serve(&world, &["--grace", "1"]);
    let _stream = served.begin("POST", "/v1/completions", "", &long_request());
    until(|| served.metric("molora_texts_running{model=\"base\"}") == 1.0);
    let begin = Instant::now();
    assert!(served.end().success());
    let seconds = begin.elapsed().as_secs_f64();
    assert!((0.5..20.0).contains(&seconds), "{seconds}");
}

#[test]
fn a_slow_sender_holds_nobody_up() {
    let world = Llama::new();
    let served = Served::start(world.program(&["serve", "base"]));
    let slow = served.begin("POST", "/v1/completions", "Expect: nothing\r\n", b"");
    let half: Vec<_> = (0..20).map(|_| served.connect()).collect();
    let body = json!({"model": "base", "prompt": "w3", "max_tokens": 1});
    assert_eq!(
        served.ask("/v1/completions", &body)["usage"]["total_tokens"],
        2
    );
    drop(half);
    assert_eq!(read(slow).status, 400);
}
