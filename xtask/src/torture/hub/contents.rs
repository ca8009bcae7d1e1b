//! Lies about the contents of answers: their length, their pauses, what they hold.

use std::time::Duration;

use super::cases::Expected::{Either, Refused, Right};
use super::cases::{ALWAYS, Case, Expected, lie, send};
use super::server::{Action, Hub, Request, Rule, WEIGHTS, bomb, head, ok};

/// Answers that are too long, or lie about how long they are.
pub(super) fn lengths(about: &'static str) -> Vec<Case> {
    let chunked = head(200, &[("Transfer-Encoding", "chunked")], None);
    let with = |end: &[u8]| [&chunked[..], end].concat();
    let (open, broken) = (with(b"5\r\nhello\r\n"), with(b"zz\r\nhello\r\n"));
    let huge = with(b"ffffffffffffffff\r\nhello\r\n");
    let endless = [&b"10000\r\n"[..], &vec![b' '; 1 << 16], b"\r\n"].concat();
    let packed = bomb(1024);
    let mut bombed = head(200, &[("Content-Encoding", "gzip")], Some(packed.len()));
    bombed.extend(packed);
    let mut unpacked = head(200, &[("Content-Encoding", "gzip")], Some(5));
    unpacked.extend(b"hello");
    let flood: String = (0..20_000)
        .map(|index| format!("X-{index}: y\r\n"))
        .collect();
    let flood = format!("HTTP/1.1 200 OK\r\n{flood}\r\n").into_bytes();
    let long = "x".repeat(16 << 20);
    vec![
        lie(
            "chunks without an end",
            Refused,
            about,
            ALWAYS,
            move |_, _| Action::Stall(open.clone()),
        ),
        send("chunks of no length", Refused, about, broken),
        send("a chunk of 2^64", Refused, about, huge),
        lie("chunks for ever", Refused, about, ALWAYS, move |_, _| {
            Action::Endless(chunked.clone(), endless.clone())
        }),
        lie("a body for ever", Refused, about, ALWAYS, |_, _| {
            Action::Endless(head(200, &[], None), vec![b' '; 1 << 16])
        }),
        send("a GiB packed by gzip", Refused, about, bombed),
        send("plain bytes as gzip", Refused, about, unpacked),
        send("20,000 headers", Refused, about, flood),
        send(
            "a header of 16 MiB",
            Refused,
            about,
            head(200, &[("X-Long", &long)], Some(0)),
        ),
        lie("headers for ever", Refused, about, ALWAYS, |_, _| {
            Action::Endless(
                b"HTTP/1.1 200 OK\r\n".to_vec(),
                b"X-A: bcdefgh\r\n".repeat(1000),
            )
        }),
        lie(
            "answers in between for ever",
            Refused,
            about,
            ALWAYS,
            |_, _| Action::Endless(Vec::new(), b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)),
        ),
    ]
}

/// Answers that are broken, cut, or slow.
pub(super) fn breaks(about: &'static str) -> Vec<Case> {
    let drip = head(200, &[], Some(1 << 20));
    let mut halfway = head(200, &[], Some(1000));
    halfway.extend(b"hello");
    let stalled = halfway.clone();
    let reset = halfway.clone();
    vec![
        send(
            "no HTTP",
            Refused,
            about,
            b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(),
        ),
        send(
            "a header of no UTF-8",
            Either,
            about,
            b"HTTP/1.1 200 OK\r\nX: \xff\x1b\r\nContent-Length: 0\r\n\r\n".to_vec(),
        ),
        send(
            "a negative length",
            Refused,
            about,
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello".to_vec(),
        ),
        send(
            "two lengths",
            Refused,
            about,
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 50000\r\n\r\nhello".to_vec(),
        ),
        send("half of the body", Refused, about, halfway),
        send("nothing", Refused, about, Vec::new()),
        lie("nothing once", Right, about, 1, |_, _| {
            Action::Send(Vec::new())
        }),
        lie("a reset", Refused, about, ALWAYS, |_, _| {
            Action::Reset(Vec::new())
        }),
        lie("a reset once", Right, about, 1, |_, _| {
            Action::Reset(Vec::new())
        }),
        lie(
            "a reset in the body",
            Refused,
            about,
            ALWAYS,
            move |_, _| Action::Reset(reset.clone()),
        ),
        lie("silence", Refused, about, ALWAYS, |_, _| {
            Action::Stall(Vec::new())
        }),
        lie(
            "silence in the body",
            Refused,
            about,
            ALWAYS,
            move |_, _| Action::Stall(stalled.clone()),
        ),
        lie("a head drop by drop", Refused, about, ALWAYS, |_, _| {
            Action::Drip(
                head(200, &[("X", &"y".repeat(4000))], Some(0)),
                Duration::from_millis(300),
            )
        }),
        lie(
            "a body drop by drop",
            Refused,
            about,
            ALWAYS,
            move |_, _| {
                Action::Drip(
                    [&drip[..], &[b' '; 4000]].concat(),
                    Duration::from_millis(200),
                )
            },
        ),
    ]
}

/// The right answer with some of its headers or its body changed.
fn weights(
    name: &str,
    expected: Expected,
    times: usize,
    headers: &[(&str, &str)],
    change: fn(&mut Vec<u8>),
) -> Case {
    let headers: Vec<(String, String)> = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    lie(name, expected, WEIGHTS, times, move |_, hub| {
        let mut body = hub.files[WEIGHTS].clone();
        change(&mut body);
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let mut answer = head(200, &headers, Some(body.len()));
        answer.extend(body);
        Action::Send(answer)
    })
}

pub(super) fn files() -> Vec<Case> {
    let long = "e".repeat(5000);
    let mut other = lie("another port lies", Refused, WEIGHTS, ALWAYS, |_, hub| {
        let place = format!("{}/{WEIGHTS}", hub.elsewhere);
        Action::Send(head(302, &[("Location", &place)], Some(0)))
    });
    other.rules.push(Rule {
        about: "elsewhere/model.safetensors",
        times: ALWAYS,
        lie: Box::new(|_, hub| Action::Send(ok(&vec![7; hub.files[WEIGHTS].len()]))),
    });
    vec![
        other,
        weights("a byte less", Refused, ALWAYS, &[], |body| {
            body.pop();
        }),
        weights("a byte more", Refused, ALWAYS, &[], |body| body.push(0)),
        weights("another byte", Refused, ALWAYS, &[], |body| body[1000] ^= 1),
        weights("another byte once", Either, 1, &[], |body| body[1000] ^= 1),
        weights(
            "a wrong size in X-Linked-Size",
            Refused,
            ALWAYS,
            &[("X-Linked-Size", "5")],
            |_| {},
        ),
        weights(
            "a wrong X-Linked-Etag",
            Refused,
            ALWAYS,
            &[("X-Linked-Etag", &format!("\"{}\"", "0".repeat(64)))],
            |_| {},
        ),
        weights(
            "an ETag that leads elsewhere",
            Either,
            ALWAYS,
            &[("ETag", "\"../../../../evil\"")],
            |_| {},
        ),
        weights(
            "an absolute ETag",
            Either,
            ALWAYS,
            &[("ETag", "\"/tmp/evil\"")],
            |_| {},
        ),
        weights(
            "an ETag of a folder",
            Either,
            ALWAYS,
            &[("ETag", "\"..\"")],
            |_| {},
        ),
        weights("an empty ETag", Either, ALWAYS, &[("ETag", "")], |_| {}),
        weights("a long ETag", Either, ALWAYS, &[("ETag", &long)], |_| {}),
        weights(
            "an ETag with a tab",
            Either,
            ALWAYS,
            &[("ETag", "\"a\tb\"")],
            |_| {},
        ),
    ]
}

/// The first half once, and then a lie about the rest.
fn then(
    name: &str,
    expected: Expected,
    rest: impl Fn(&Request, &Hub) -> Vec<u8> + Send + Sync + 'static,
) -> Case {
    lie(name, expected, WEIGHTS, ALWAYS, move |request, hub| {
        if request.before > 0 {
            return Action::Send(rest(request, hub));
        }
        let mut answer = hub.right(request);
        answer.truncate(answer.len() / 2);
        Action::Send(answer)
    })
}

fn part(hub: &Hub, from: usize, range: &str) -> Vec<u8> {
    let body = hub.files[WEIGHTS].get(from..).unwrap_or_default();
    let mut answer = head(206, &[("Content-Range", range)], Some(body.len()));
    answer.extend(body);
    answer
}

pub(super) fn resumed() -> Vec<Case> {
    vec![
        then("half, and then the rest", Right, |request, hub| {
            hub.right(request)
        }),
        then("half, and then all", Right, |_, hub| {
            hub.right(&Request {
                about: WEIGHTS.into(),
                start: 0,
                before: 0,
            })
        }),
        then("half, and then another part", Either, |request, hub| {
            let total = hub.files[WEIGHTS].len();
            part(
                hub,
                request.start + 1,
                &format!("bytes {}-{}/{total}", request.start + 1, total - 1),
            )
        }),
        then("half, and then a part that lies", Either, |request, hub| {
            let total = hub.files[WEIGHTS].len();
            part(
                hub,
                5,
                &format!("bytes {}-{}/{total}", request.start, total - 1),
            )
        }),
        then("half, and then another size", Either, |request, hub| {
            part(
                hub,
                request.start,
                &format!("bytes {}-99/100", request.start),
            )
        }),
        then("half, and then no range", Either, |request, hub| {
            part(hub, request.start, "")
        }),
        then("half, and then a broken range", Either, |request, hub| {
            part(hub, request.start, "bytes x-y/z")
        }),
        then("half, and then 416", Refused, |_, _| {
            head(416, &[], Some(0))
        }),
        lie(
            "a part that nobody asked for",
            Either,
            WEIGHTS,
            ALWAYS,
            |_, hub| Action::Send(part(hub, 10, "bytes 10-20/21")),
        ),
        lie(
            "a byte each time",
            Refused,
            WEIGHTS,
            ALWAYS,
            |request, hub| {
                let all = hub.right(request);
                let body = hub.files[WEIGHTS].len().saturating_sub(request.start);
                let end = (all.len() + 1).saturating_sub(body).min(all.len());
                Action::Send(all[..end].to_vec())
            },
        ),
    ]
}
