//! A served world, and a client that reads every byte itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A server that ends with the test.
pub(super) struct Served {
    child: Child,
    pub(super) address: SocketAddr,
}

/// What a server answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Lower-case names with their values.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Served {
    /// Starts a program that serves, on a port that is free.
    pub(super) fn start(mut program: Command) -> Self {
        let program = program.args(["--port", "0"]).stderr(Stdio::piped());
        let mut child = program.spawn().expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped"));
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            let count = lines.read_line(&mut line).expect("UTF-8");
            said.push_str(&line);
            assert!(count > 0, "the server did not start: {said}");
            if let Some((_, address)) = line.trim().split_once(" at http://") {
                let address = address.trim_end_matches("/v1");
                break address.parse().expect("an address");
            }
        };
        // Nobody may wait for a reader of what else is said.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { child, address }
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).expect("a limit");
        stream
    }

    /// Sends a request and waits for the whole answer.
    pub(super) fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let stream = self.begin(method, path, headers, body);
        read(stream)
    }

    /// Sends a request, whose answer is not read.
    pub(super) fn begin(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{headers}Content-Length: \
             {}\r\n\r\n",
            body.len()
        );
        // A server may answer before it has read all, and close.
        let _ = stream.write_all(&[head.as_bytes(), body].concat());
        stream
    }

    pub(super) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", b"")
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "", body.to_string().as_bytes())
    }

    /// The answer to a request that is good.
    pub(super) fn ask(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        answer.json()
    }

    /// A number that the server counts.
    pub(super) fn metric(&self, line: &str) -> f64 {
        let page = self.get("/metrics").body;
        let found = page.lines().find_map(|found| found.strip_prefix(line));
        let found = found.unwrap_or_else(|| panic!("no {line} in {page}"));
        found.trim().parse().expect("a number")
    }

    /// Waits until a gauge is 0: an answer is sent a moment before it is.
    pub(super) fn wait_for_none(&self, line: &str) {
        let begun = std::time::Instant::now();
        while self.metric(line) > 0.0 {
            assert!(
                begun.elapsed().as_secs() < 20,
                "{line} stays {}",
                self.metric(line)
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Asks the server to end, and waits until it has.
    #[cfg(unix)]
    pub(super) fn end(mut self) -> std::process::ExitStatus {
        self.signal();
        self.child.wait().expect("it ends")
    }

    #[cfg(unix)]
    pub(super) fn signal(&self) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-TERM", &id]).status();
        assert!(status.expect("kill is there").success());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| &value[..])
    }

    /// What an error object says.
    pub(super) fn message(&self) -> String {
        let error = self.json();
        let kind = error["error"]["type"].as_str().unwrap_or_default();
        assert!(kind.ends_with("_error"), "{error}");
        error["error"]["message"]
            .as_str()
            .expect("a message")
            .to_owned()
    }

    /// The data of server-sent events, whose last one is `[DONE]`.
    pub(super) fn events(&self) -> Vec<Value> {
        let lines = self.body.split("\n\n").filter(|line| !line.is_empty());
        let lines = lines.map(|line| line.strip_prefix("data: ").expect("an event"));
        let mut lines: Vec<&str> = lines.collect();
        assert_eq!(lines.pop(), Some("[DONE]"), "{}", self.body);
        lines
            .into_iter()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

/// Reads an answer to its end.
pub(super) fn read(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).expect("UTF-8");
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        panic!("no whole answer ({read:?}): {text}");
    };
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let header = |line: &str| {
        let (name, value) = line.split_once(':').expect("a header");
        (name.to_lowercase(), value.trim().to_owned())
    };
    let headers: Vec<_> = lines.map(header).collect();
    let is_chunked = headers.iter().any(|(_, value)| value == "chunked");
    Answer {
        status: status
            .and_then(|status| status.parse().ok())
            .expect("a status"),
        body: if is_chunked {
            unchunked(body)
        } else {
            body.to_owned()
        },
        headers,
    }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).expect("a length");
        whole.push_str(&rest[..length]);
        body = &rest[length..];
        body = body.strip_prefix("\r\n").unwrap_or(body);
        if length == 0 {
            break;
        }
    }
    whole
}
