//! Heads, chunks and senders: what is wrong before a body is read.

use std::time::Duration;

use super::Draw;
use super::cases::{End, GOOD, Sent, one, post};

/// Methods, few of which there are.
const METHODS: [&str; 14] = [
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

/// Paths, few of which there are.
const PATHS: [&str; 17] = [
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

/// Versions of HTTP.
const VERSIONS: [&str; 7] = [
    "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "http/1.1", "",
];

/// Ends of lines.
const ENDS: [&str; 5] = ["\r\n", "\n", "\r", "\r\n \r\n", "\u{0}\r\n"];

/// Other lines of a head.
const OTHERS: [&str; 18] = [
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

/// Heads that are none, or say what is not so.
pub(super) fn head(draw: &mut Draw) -> Sent {
    let (path, body) = one(draw, &GOOD);
    let end = if draw.below(8) == 0 {
        one(draw, &ENDS)
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
    let (method, path, version) = match draw.below(3) {
        0 => ("POST", path, "HTTP/1.1"),
        1 => (one(draw, &METHODS), path, one(draw, &VERSIONS)),
        _ => (one(draw, &METHODS), one(draw, &PATHS), "HTTP/1.1"),
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
        head.push_str(one(draw, &OTHERS));
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
pub(super) fn chunks(draw: &mut Draw) -> Sent {
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
pub(super) fn sender(draw: &mut Draw) -> Sent {
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
