//! What comes back from a server, read to its end byte by byte.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// The server gives up what does not come within 30 seconds; nothing takes much longer.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a client waits that has nothing more to say.
const PATIENCE: Duration = Duration::from_millis(300);

/// What may come of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// An answer to what was asked.
    Answered,
    /// An error that says why.
    Refused,
    /// No answer: the connection was closed.
    Closed,
}

/// What a server sent until it closed.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: Option<u16>,
    pub(super) body: String,
    /// Whether the server closed the connection within [`LIMIT`].
    pub(super) is_closed: bool,
}

impl Answer {
    /// Sends pieces, each with a pause behind it, and reads what comes.
    pub(super) fn to(address: SocketAddr, pieces: &[(Vec<u8>, Duration)]) -> Result<Self> {
        Ok(Self::read(send(address, pieces)?))
    }

    /// As [`to`](Self::to), for requests that may have no end: where nothing comes for a while, the server hears
    /// that nothing more is sent.
    pub(super) fn to_last(address: SocketAddr, pieces: &[(Vec<u8>, Duration)]) -> Result<Self> {
        let stream = send(address, pieces)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let waits = |error: std::io::Error| is_wait(&error);
        if stream.peek(&mut [0]).is_err_and(waits) {
            // A server that has closed by now is no error.
            drop(stream.shutdown(Shutdown::Write));
        }
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self::read(stream))
    }

    fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head
            .strip_prefix("HTTP/1.")
            .and_then(|head| head.get(2..5))
            .and_then(|status| status.parse().ok());
        let head = head.to_lowercase();
        let is_chunked = head.contains("transfer-encoding: chunked");
        // Behind the body there is the next answer, if what was sent is read as two requests.
        let length = head.split_once("content-length: ").and_then(|(_, rest)| {
            let digits = rest.split("\r\n").next()?;
            digits.parse::<usize>().ok()
        });
        let body = length.and_then(|length| body.get(..length)).unwrap_or(body);
        Self {
            status,
            body: match is_chunked {
                true => unchunked(body),
                false => body.to_owned(),
            },
            is_closed: !read.is_err_and(|error| is_wait(&error)),
        }
    }

    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_str(&self.body).ok()
    }

    /// How it ended; or what a server may not do.
    pub(super) fn outcome(&self) -> Result<Outcome, String> {
        if !self.is_closed {
            return Err(format!("the connection stays open: {self:?}"));
        }
        match self.status {
            None => Ok(Outcome::Closed),
            Some(200) if self.is_whole() => Ok(Outcome::Answered),
            Some(200) => Err(format!("an answer that is not whole: {:?}", self.body)),
            // What hyper says of itself, to what is no request, has no body.
            Some(400 | 408 | 413 | 414 | 431) if self.body.is_empty() => Ok(Outcome::Refused),
            Some(400..500) if self.says_why() => Ok(Outcome::Refused),
            Some(status) => Err(format!("status {status}: {:?}", self.body)),
        }
    }

    fn is_whole(&self) -> bool {
        self.json().is_some()
            || self.body.ends_with("data: [DONE]\n\n")
            || self.body.starts_with("# HELP")
    }

    fn says_why(&self) -> bool {
        let error = self.json().map(|value| value["error"].clone());
        let error = error.unwrap_or_default();
        let is_text = |name: &str| error[name].as_str().is_some_and(|text| !text.is_empty());
        is_text("message") && is_text("type")
    }
}

fn is_wait(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    [TimedOut, WouldBlock].contains(&error.kind())
}

/// Sends pieces; a server may answer before it has read all, and close.
pub(super) fn send(address: SocketAddr, pieces: &[(Vec<u8>, Duration)]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).context("nobody listens")?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    for (piece, pause) in pieces {
        if stream.write_all(piece).is_err() {
            break;
        }
        std::thread::sleep(*pause);
    }
    Ok(stream)
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap_or(0);
        let Some(piece) = rest.get(..length).filter(|piece| !piece.is_empty()) else {
            break;
        };
        whole.push_str(piece);
        body = rest[length..].trim_start_matches("\r\n");
    }
    whole
}
