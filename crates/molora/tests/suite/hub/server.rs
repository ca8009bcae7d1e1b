//! A small hub on loopback: descriptions of repositories, files, ranges, redirects, and faults.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use molora_train::hub::{HubConfig, HubError, ModelId, OnProgress, Progress, Snapshot, fetch};
use serde_json::json;
use tempfile::TempDir;

/// The commit that every revision of `org/name` means.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a test may change.
#[derive(Default)]
pub(crate) struct Hub {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Name of the model, if it is not `org/name`.
    pub(crate) model: Option<&'static str>,
    /// Sizes in the description that are not those of the files.
    pub(crate) listed: BTreeMap<String, u64>,
    /// Whether the description has no sizes at all.
    pub(crate) lists_no_sizes: bool,
    /// Description of the commit, if it is not [`COMMIT`].
    pub(crate) sha: Option<String>,
    /// Answers of files, before they are given out as they are; the first is used up first.
    pub(crate) faults: BTreeMap<String, Vec<Fault>>,
    /// A status for every description, with its `X-Error-Code`.
    pub(crate) refuses: Option<(u16, &'static str)>,
    /// How often the description fails with status 503.
    pub(crate) busy: usize,
    /// Where files in redirection are, `http://...` or a path.
    pub(crate) elsewhere: String,
    /// Hashes of files, 64 or 40 digits, which the description and the ETags tell.
    pub(crate) digests: BTreeMap<String, String>,
    /// A whole answer to every request of a description.
    pub(crate) raw_description: Option<Vec<u8>>,
    /// How long a connection is kept open after an answer.
    pub(crate) hold: Duration,
    /// Whether bytes come slowly, 16 KiB every 10 ms.
    pub(crate) is_slow: bool,
    /// Every request so far.
    pub(crate) requests: Vec<Request>,
}

/// One wrong answer to a request of a file.
#[derive(Clone)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Another status than 200.
    Status(u16),
    /// All of the file, whatever part was asked for.
    WholeFile,
    /// Another part than was asked for.
    OtherPart,
    /// More bytes, and a head that says so.
    Longer(usize),
    /// To `elsewhere`, with this size in `X-Linked-Size`.
    Redirect(usize),
    /// To itself.
    Circle,
    /// A whole answer.
    Raw(Vec<u8>),
}

/// What a request was.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

/// A running hub; it lives until its process ends.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    hub: Arc<Mutex<Hub>>,
    home: TempDir,
}

impl Server {
    /// A hub with a model of a few bytes.
    pub(crate) fn new() -> Self {
        let weights: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let server = Self::empty();
        server.put("config.json", b"{}");
        server.put("tokenizer.json", b"{\"version\": \"1.0\"}");
        server.put("README.md", b"# A model");
        server.put("pytorch_model.bin", b"pickle");
        server.put("model.safetensors", &weights);
        server
    }

    pub(crate) fn empty() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let hub = Arc::new(Mutex::new(Hub::default()));
        let shared = Arc::clone(&hub);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream, &hub));
            }
        });
        Self {
            endpoint: format!("http://{address}"),
            hub,
            home: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    pub(crate) fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().expect("no panic in the server")
    }

    pub(crate) fn put(&self, file: &str, bytes: &[u8]) {
        self.hub().files.insert(file.into(), bytes.into());
    }

    pub(crate) fn fail(&self, file: &str, faults: &[Fault]) {
        self.hub().faults.insert(file.into(), faults.into());
    }

    /// Paths of all requests so far that contain a text.
    pub(crate) fn requests(&self, text: &str) -> Vec<Request> {
        let hub = self.hub();
        let found = hub.requests.iter().filter(|r| r.path.contains(text));
        found.cloned().collect()
    }

    /// The ranges asked for of a file.
    pub(crate) fn ranges(&self, file: &str) -> Vec<Option<String>> {
        let end = format!("/{file}");
        self.requests(&end).into_iter().map(|r| r.range).collect()
    }

    /// `HF_HOME` of this test.
    pub(crate) fn home(&self) -> PathBuf {
        self.home.path().into()
    }

    pub(crate) fn config(&self) -> HubConfig {
        let mut config = HubConfig::new(self.home().join("hub"));
        config.endpoint = self.endpoint.clone();
        config.pause = Duration::from_millis(1);
        config
    }

    pub(crate) fn fetch(&self) -> Result<Snapshot, HubError> {
        fetch(&id("org/name"), &self.config(), &mut go_on)
    }

    /// Downloads with progress.
    pub(crate) fn fetch_with(
        &self,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Snapshot, HubError> {
        fetch(&id("org/name"), &self.config(), on_progress)
    }

    /// The error of a download that has to fail.
    pub(crate) fn refusal(&self) -> String {
        let error = self.fetch().expect_err("a download that fails").to_string();
        error.replace(&self.endpoint, "HUB")
    }
}

pub(crate) fn id(text: &str) -> ModelId {
    text.parse().expect("a name of a model")
}

pub(crate) fn go_on(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Reads one request and answers it.
fn answer(mut stream: TcpStream, hub: &Mutex<Hub>) {
    let Some(request) = read(&stream) else {
        return;
    };
    let (response, is_slow, hold) = {
        let mut hub = hub.lock().expect("no panic in the server");
        hub.requests.push(request.clone());
        (respond(&mut hub, &request), hub.is_slow, hub.hold)
    };
    for piece in response.chunks(if is_slow { 16 << 10 } else { usize::MAX }) {
        if is_slow {
            std::thread::sleep(Duration::from_millis(10));
        }
        if stream.write_all(piece).is_err() {
            return; // The client is gone: that is its own affair.
        }
    }
    std::thread::sleep(hold);
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut request = Request {
        path,
        range: None,
        authorization: None,
    };
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.into()),
            "authorization" => request.authorization = Some(value.into()),
            _ => {}
        }
    }
    Some(request)
}

fn respond(hub: &mut Hub, request: &Request) -> Vec<u8> {
    let path = request.path.split('?').next().unwrap_or_default();
    let model = hub.model.unwrap_or("org/name");
    if path.starts_with(&format!("/api/models/{model}/revision/")) {
        return describe(hub);
    }
    if let Some(file) = path.strip_prefix("/elsewhere/") {
        return send(hub, file, request, None);
    }
    match path.strip_prefix(&format!("/{model}/resolve/{COMMIT}/")) {
        Some(file) => {
            let faults = hub.faults.get_mut(file).filter(|faults| !faults.is_empty());
            let fault = faults.map(|faults| faults.remove(0));
            send(hub, file, request, fault)
        }
        None => head(404, &[("X-Error-Code", "RepoNotFound")], 0),
    }
}

fn describe(hub: &mut Hub) -> Vec<u8> {
    if let Some(response) = &hub.raw_description {
        return response.clone();
    }
    if let Some((status, code)) = hub.refuses {
        return head(status, &[("X-Error-Code", code)], 0);
    }
    if hub.busy > 0 {
        hub.busy -= 1;
        return head(503, &[], 0);
    }
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        let size = hub.listed.get(name).copied().unwrap_or(bytes.len() as u64);
        let mut sibling = match hub.lists_no_sizes {
            true => json!({"rfilename": name}),
            false => json!({"rfilename": name, "size": size}),
        };
        match hub.digests.get(name) {
            Some(hash) if hash.len() == 64 => sibling["lfs"] = json!({"sha256": hash}),
            Some(hash) => sibling["blobId"] = hash.as_str().into(),
            None => {}
        }
        sibling
    };
    let siblings: Vec<_> = hub.files.iter().map(sibling).collect();
    let sha = hub.sha.as_deref().unwrap_or(COMMIT);
    let text = json!({"id": hub.model.unwrap_or("org/name"), "sha": sha, "siblings": siblings})
        .to_string();
    let mut response = head(200, &[("Content-Type", "application/json")], text.len());
    response.extend(text.as_bytes());
    response
}

/// A file, or what a fault makes of it.
fn send(hub: &Hub, file: &str, request: &Request, fault: Option<Fault>) -> Vec<u8> {
    let Some(bytes) = hub.files.get(file) else {
        return head(404, &[("X-Error-Code", "EntryNotFound")], 0);
    };
    let etag = match hub.digests.get(file) {
        Some(hash) => format!("\"{hash}\""),
        None => format!("\"etag-of-{file}\""),
    };
    let mut bytes = bytes.clone();
    let mut start = request.range.as_deref().map(first_byte).unwrap_or(0);
    let mut keep = usize::MAX;
    match fault {
        Some(Fault::Status(status)) => return head(status, &[], 0),
        Some(Fault::Redirect(size)) => {
            let place = format!("{}/elsewhere/{file}", hub.elsewhere);
            let size = size.to_string();
            let headers = [
                ("Location", &*place),
                ("X-Linked-Size", &size),
                ("X-Linked-Etag", &etag),
            ];
            return head(302, &headers, 0);
        }
        Some(Fault::Raw(response)) => return response,
        Some(Fault::Circle) => return head(302, &[("Location", &request.path)], 0),
        Some(Fault::Cut(at)) => keep = at,
        Some(Fault::WholeFile) => start = 0,
        Some(Fault::OtherPart) => start += 1,
        Some(Fault::Longer(by)) => bytes.extend(vec![0; by]),
        None => {}
    }
    if start > 0 && start >= bytes.len() {
        return head(416, &[], 0);
    }
    let (body, total) = (&bytes[start..], bytes.len());
    let range = format!("bytes {start}-{}/{total}", total - 1);
    let mut headers = vec![("ETag", &*etag), ("X-Repo-Commit", COMMIT)];
    if start > 0 {
        headers.push(("Content-Range", &range));
    }
    let status = if start > 0 { 206 } else { 200 };
    let mut response = head(status, &headers, body.len());
    response.extend(&body[..keep.min(body.len())]);
    response
}

fn first_byte(range: &str) -> usize {
    let first = range.trim_start_matches("bytes=").trim_end_matches('-');
    first.parse().expect("`bytes=<first>-`")
}

/// The head of an answer with a body of so many bytes.
pub(crate) fn head(status: u16, headers: &[(&str, &str)], length: usize) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} status\r\nConnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("Content-Length: {length}\r\n\r\n");
    text.into_bytes()
}
