//! A hub on the loopback that has one model, and lies where a case says so.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// The commit that `main` means.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The name of the description of the model among the names of files.
pub(super) const LIST: &str = "list";
/// The large file, whose hash is told as one of LFS.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// A connection is given up after this time, whatever the client does.
const LONGEST: Duration = Duration::from_secs(200);
/// What a body without an end has at most.
const MOST: usize = 6 << 30;

/// Files by name.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// What is sent for a request.
pub(super) enum Action {
    /// All bytes, then the end of the connection.
    Send(Vec<u8>),
    /// Bytes, then nothing.
    Stall(Vec<u8>),
    /// One byte after the other, with a pause in front of each.
    Drip(Vec<u8>, Duration),
    /// A beginning, and then a piece again and again.
    Endless(Vec<u8>, Vec<u8>),
    /// Bytes, then a reset.
    Reset(Vec<u8>),
}

/// Makes an action from the request and the right answer to it.
pub(super) type Lie = Box<dyn Fn(&Request, &Hub) -> Action + Send + Sync>;

/// A lie, and about what and how often it is told.
pub(super) struct Rule {
    pub(super) about: &'static str,
    pub(super) times: usize,
    pub(super) lie: Lie,
}

/// What was asked for.
pub(super) struct Request {
    /// [`LIST`] or the name of a file.
    pub(super) about: String,
    /// The first byte that is wanted.
    pub(super) start: usize,
    /// How often the same was asked before.
    pub(super) before: usize,
}

/// A hub and what it has seen.
pub(super) struct Hub {
    pub(super) files: Files,
    rules: Vec<Rule>,
    /// Address of another port, which gives out the same files.
    pub(super) elsewhere: String,
    asked: Mutex<BTreeMap<String, usize>>,
    ends: Instant,
}

/// A running hub.
pub(super) struct Server {
    pub(super) endpoint: String,
    /// Whether the other port was sent a token.
    pub(super) leaked: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the listeners up.
        drop(TcpStream::connect(
            self.endpoint.trim_start_matches("http://"),
        ));
    }
}

/// Starts a hub with files and lies.
pub(super) fn serve(files: Files, rules: Vec<Rule>) -> Result<Server> {
    let (listener, other) = (
        TcpListener::bind("127.0.0.1:0")?,
        TcpListener::bind("127.0.0.1:0")?,
    );
    let endpoint = format!("http://{}", listener.local_addr()?);
    let hub = Arc::new(Hub {
        files,
        rules,
        elsewhere: format!("http://{}", other.local_addr()?),
        asked: Mutex::new(BTreeMap::new()),
        ends: Instant::now() + LONGEST,
    });
    let server = Server {
        endpoint,
        leaked: Arc::new(AtomicBool::new(false)),
        ended: Arc::new(AtomicBool::new(false)),
    };
    for (listener, is_other) in [(listener, false), (other, true)] {
        let hub = Arc::clone(&hub);
        let (leaked, ended) = (Arc::clone(&server.leaked), Arc::clone(&server.ended));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (hub, leaked) = (Arc::clone(&hub), Arc::clone(&leaked));
                // The client may be gone at any moment: that is its own affair.
                std::thread::spawn(move || drop(answer(stream, &hub, is_other, &leaked)));
            }
        });
    }
    Ok(server)
}

fn answer(mut stream: TcpStream, hub: &Hub, is_other: bool, leaked: &AtomicBool) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let text = peek(&stream)?;
    let lower = text.to_ascii_lowercase();
    if is_other && lower.contains("authorization:") {
        leaked.store(true, Ordering::SeqCst);
    }
    let path = text.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let about = match path.starts_with("/api/") {
        true => LIST,
        false => path.rsplit('/').next().unwrap_or_default(),
    };
    let start = lower.split("range: bytes=").nth(1).unwrap_or_default();
    let start = start
        .split('-')
        .next()
        .unwrap_or_default()
        .parse()
        .unwrap_or(0);
    let mut request = Request {
        about: about.to_owned(),
        start,
        before: 0,
    };
    if let (Ok(mut asked), false) = (hub.asked.lock(), is_other) {
        let count = asked.entry(request.about.clone()).or_default();
        request.before = *count;
        *count += 1;
    }
    let is_asked = |rule: &&Rule| rule.about == request.about && request.before < rule.times;
    // The other port lies only about what is named so.
    let about_other = format!("elsewhere/{}", request.about);
    let rule = match is_other {
        true => hub.rules.iter().find(|rule| about_other == rule.about),
        false => hub.rules.iter().find(is_asked),
    };
    let action = match rule {
        Some(rule) => (rule.lie)(&request, hub),
        None => Action::Send(hub.right(&request)),
    };
    if !matches!(action, Action::Reset(_)) {
        let mut head = vec![0; text.len()];
        stream.read_exact(&mut head)?;
    }
    act(&mut stream, action, hub.ends)
}

/// The head of a request, which stays where it is: a connection that ends with something unread is
/// reset.
fn peek(stream: &TcpStream) -> Result<String> {
    let mut bytes = vec![0; 1 << 16];
    let begin = Instant::now();
    loop {
        let count = stream.peek(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes[..count]);
        if text.contains("\r\n\r\n") || count == 0 || begin.elapsed() > Duration::from_secs(5) {
            return Ok(text.into_owned());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn act(stream: &mut TcpStream, action: Action, ends: Instant) -> Result<()> {
    stream.set_write_timeout(Some(LONGEST))?;
    match action {
        Action::Send(bytes) | Action::Reset(bytes) => stream.write_all(&bytes)?,
        Action::Stall(bytes) => {
            stream.write_all(&bytes)?;
            stream.set_read_timeout(Some(
                ends.saturating_duration_since(Instant::now())
                    .max(Duration::from_secs(1)),
            ))?;
            // Until the client goes.
            drop(stream.read(&mut [0; 64]));
        }
        Action::Drip(bytes, pause) => {
            for byte in bytes {
                std::thread::sleep(pause);
                stream.write_all(&[byte])?;
                if Instant::now() > ends {
                    break;
                }
            }
        }
        Action::Endless(head, piece) => {
            stream.write_all(&head)?;
            let mut sent = 0;
            while sent < MOST && Instant::now() < ends {
                stream.write_all(&piece)?;
                sent += piece.len();
            }
        }
    }
    Ok(())
}

impl Hub {
    /// The right answer.
    pub(super) fn right(&self, request: &Request) -> Vec<u8> {
        if request.about == LIST {
            return ok(self.description().to_string().as_bytes());
        }
        let Some(bytes) = self.files.get(&request.about) else {
            return head(404, &[("X-Error-Code", "EntryNotFound")], Some(0));
        };
        let etag = format!("\"{}\"", hash(&request.about, bytes));
        let total = bytes.len();
        if request.start == 0 {
            let mut answer = head(200, &[("ETag", &etag)], Some(total));
            answer.extend(bytes);
            return answer;
        }
        let body = bytes.get(request.start..).unwrap_or_default();
        let range = format!("bytes {}-{}/{total}", request.start, total - 1);
        let headers = [("ETag", etag.as_str()), ("Content-Range", &range)];
        let mut answer = head(206, &headers, Some(body.len()));
        answer.extend(body);
        answer
    }

    /// The description of the model.
    pub(super) fn description(&self) -> Value {
        let sibling = |(name, bytes): (&String, &Vec<u8>)| {
            let hash = hash(name, bytes);
            match name.as_str() {
                WEIGHTS => json!({"rfilename": name, "size": bytes.len(), "lfs": {"sha256": hash}}),
                _ => json!({"rfilename": name, "size": bytes.len(), "blobId": hash}),
            }
        };
        let siblings: Vec<Value> = self.files.iter().map(sibling).collect();
        json!({"id": "org/m", "sha": COMMIT, "siblings": siblings})
    }
}

/// The hash that a hub tells of a file: SHA-256 of the large one, git's of others.
pub(super) fn hash(name: &str, bytes: &[u8]) -> String {
    if name == WEIGHTS {
        return digits(&Sha256::digest(bytes));
    }
    let mut git = Sha1::new();
    git.update(format!("blob {}\0", bytes.len()));
    git.update(bytes);
    digits(&git.finalize())
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The head of an answer.
pub(super) fn head(status: u16, headers: &[(&str, &str)], length: Option<usize>) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} status\r\nConnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if let Some(length) = length {
        text += &format!("Content-Length: {length}\r\n");
    }
    (text + "\r\n").into_bytes()
}

/// A whole answer that is well.
pub(super) fn ok(body: &[u8]) -> Vec<u8> {
    let mut answer = head(
        200,
        &[("Content-Type", "application/json")],
        Some(body.len()),
    );
    answer.extend(body);
    answer
}

/// Zeros that gzip has packed, so many MiB: a byte and then copies of it, in the fixed code.
pub(super) fn bomb(mebibytes: usize) -> Vec<u8> {
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    let (mut held, mut count) = (0_u32, 0);
    let mut put = |bits: &str, packed: &mut Vec<u8>| {
        for bit in bits.bytes() {
            held |= u32::from(bit == b'1') << count;
            count += 1;
            if count == 8 {
                packed.push(held as u8);
                (held, count) = (0, 0);
            }
        }
    };
    // A last block of fixed codes; the literal 0; 258 bytes from one byte back; the end.
    put("110", &mut packed);
    put("00110000", &mut packed);
    for _ in 0..mebibytes * (1 << 20) / 258 {
        put("1100010100000", &mut packed);
    }
    put("00000000000000", &mut packed);
    packed
}
