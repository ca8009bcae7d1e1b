//! The lies of the hub.
//!
//! Those about the description and those about files have a list each; what a file says of itself,
//! with hashes that are right, has another.

use std::time::Duration;

use serde_json::{Value, json};

use super::server::{
    Action, COMMIT, Files, Hub, LIST, Lie, Request, Rule, WEIGHTS, bomb, head, ok,
};

/// What has to come of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// The right result: the lie has an end, or is about nothing that is read.
    Right,
    /// One line and no result.
    Refused,
    /// One of both.
    Either,
}
use Expected::{Either, Refused, Right};

/// A case: its lies, and what they are told of.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) expected: Expected,
    pub(super) rules: Vec<Rule>,
    /// Changes the files, before their hashes are taken.
    pub(super) files: Option<fn(&mut Files)>,
}

/// Always.
const ALWAYS: usize = usize::MAX;
/// A file of every model that is small.
const CONFIG: &str = "config.json";
/// An escape sequence, a bell, and text that goes from right to left.
const STEER: &str = "\u{1b}]0;title\u{7}\u{1b}[31mred\u{202e}";

fn lie(
    name: &str,
    expected: Expected,
    about: &'static str,
    times: usize,
    lie: impl Fn(&Request, &Hub) -> Action + Send + Sync + 'static,
) -> Case {
    let lie: Lie = Box::new(lie);
    Case {
        name: format!("{about}: {name}"),
        expected,
        rules: vec![Rule { about, times, lie }],
        files: None,
    }
}

/// Always the same answer.
fn send(name: &str, expected: Expected, about: &'static str, answer: Vec<u8>) -> Case {
    lie(name, expected, about, ALWAYS, move |_, _| {
        Action::Send(answer.clone())
    })
}

/// A description that is changed.
fn described(name: &str, expected: Expected, change: fn(&mut Value)) -> Case {
    lie(name, expected, LIST, ALWAYS, move |_, hub| {
        let mut value = hub.description();
        change(&mut value);
        Action::Send(ok(value.to_string().as_bytes()))
    })
}

/// A description with one more entry.
fn listed(name: &str, expected: Expected, entry: Value) -> Case {
    lie(name, expected, LIST, ALWAYS, move |_, hub| {
        let mut value = hub.description();
        if let Some(list) = value["siblings"].as_array_mut() {
            list.push(entry.clone());
        }
        Action::Send(ok(value.to_string().as_bytes()))
    })
}

/// Files that are changed, with hashes that are right.
fn changed(name: &str, expected: Expected, files: fn(&mut Files)) -> Case {
    Case {
        name: format!("honest: {name}"),
        expected,
        rules: Vec::new(),
        files: Some(files),
    }
}

/// All cases.
pub(super) fn all() -> Vec<Case> {
    let mut all = descriptions();
    all.extend(names());
    for about in [LIST, WEIGHTS] {
        all.extend(statuses(about));
        all.extend(bodies(about));
    }
    all.extend(files());
    all.extend(resumed());
    all.extend(honest());
    all
}

fn descriptions() -> Vec<Case> {
    let deep = "[".repeat(200_000);
    let known = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [], \"x\": {deep}");
    vec![
        send("broken JSON", Refused, LIST, ok(b"{\"sha\": ")),
        send("an empty body", Refused, LIST, ok(b"")),
        send(
            "HTML",
            Refused,
            LIST,
            ok(b"<html><body>Sign in</body></html>"),
        ),
        send("deep JSON", Refused, LIST, ok(deep.as_bytes())),
        send("deep JSON in a field", Refused, LIST, ok(known.as_bytes())),
        send("64 MiB of spaces", Refused, LIST, ok(&vec![b' '; 64 << 20])),
        send(
            "invalid UTF-8",
            Refused,
            LIST,
            ok(b"{\"sha\": \"\xff\xfe\"}"),
        ),
        send("a list", Refused, LIST, ok(b"[1, 2]")),
        send("null", Refused, LIST, ok(b"null")),
        described("sha is a number", Refused, |v| v["sha"] = json!(5)),
        described("sha leads elsewhere", Refused, |v| {
            v["sha"] = json!("../../../../evil")
        }),
        described("sha of 39 digits", Refused, |v| {
            v["sha"] = json!("0".repeat(39))
        }),
        described("sha steers", Refused, |v| v["sha"] = json!(STEER)),
        described("sha of a MiB", Refused, |v| {
            v["sha"] = json!("a".repeat(1 << 20))
        }),
        described("siblings is an object", Refused, |v| {
            v["siblings"] = json!({"a": 1})
        }),
        described("no siblings", Refused, |v| v["siblings"] = json!([])),
        described("a negative size", Refused, |v| {
            v["siblings"][0]["size"] = json!(-1)
        }),
        described("a size of 1e300", Refused, |v| {
            v["siblings"][0]["size"] = json!(1e300)
        }),
        described("a size as text", Refused, |v| {
            v["siblings"][0]["size"] = json!("12")
        }),
        described("a size of 2^63", Refused, |v| {
            v["siblings"][0]["size"] = json!(1_u64 << 63)
        }),
        described("all sizes are 0", Refused, |v| {
            for entry in v["siblings"].as_array_mut().into_iter().flatten() {
                entry["size"] = json!(0);
            }
        }),
        described("a hash that is none", Refused, |v| {
            v["siblings"][0]["blobId"] = json!(format!("zz{STEER}"));
        }),
        described("a wrong hash of git", Refused, |v| {
            v["siblings"][0]["blobId"] = json!("0".repeat(40));
        }),
        described("a wrong hash of LFS", Refused, |v| {
            for entry in v["siblings"].as_array_mut().into_iter().flatten() {
                if entry["rfilename"] == WEIGHTS {
                    entry["lfs"]["sha256"] = json!("0".repeat(64));
                }
            }
        }),
        lie(
            "another commit each time",
            Right,
            LIST,
            ALWAYS,
            |request, hub| {
                let mut value = hub.description();
                value["sha"] = json!(format!("{:040x}", request.before + 1));
                Action::Send(ok(value.to_string().as_bytes()))
            },
        ),
    ]
}

fn names() -> Vec<Case> {
    let entry = |name: &str| json!({"rfilename": name, "size": 3});
    let without_weights = |v: &mut Value| {
        if let Some(list) = v["siblings"].as_array_mut() {
            list.retain(|entry| entry["rfilename"] != WEIGHTS);
        }
    };
    let index = |shard: &'static str| {
        let name = format!("a shard `{}`", shard.escape_debug());
        let mut case = lie(&name, Refused, LIST, ALWAYS, move |_, hub| {
            let mut value = hub.description();
            without_weights(&mut value);
            if let Some(list) = value["siblings"].as_array_mut() {
                list.push(json!({"rfilename": "model.safetensors.index.json"}));
                list.push(json!({"rfilename": shard}));
            }
            Action::Send(ok(value.to_string().as_bytes()))
        });
        let text = json!({"weight_map": {"a": shard}}).to_string();
        case.rules.push(Rule {
            about: "model.safetensors.index.json",
            times: ALWAYS,
            lie: Box::new(move |_, _| Action::Send(ok(text.as_bytes()))),
        });
        case
    };
    vec![
        listed("../evil", Right, entry("../evil")),
        listed("an absolute name", Right, entry("/tmp/evil")),
        listed("backslashes", Right, entry("..\\..\\evil")),
        listed("NUL", Right, entry("a\0b")),
        listed("a name of a MiB", Right, entry(&"a".repeat(1 << 20))),
        listed("dots inside", Right, entry("a/../../../evil")),
        listed("an empty name", Right, entry("")),
        listed("a name twice", Either, entry(CONFIG)),
        listed("a name that is a number", Refused, json!({"rfilename": 5})),
        listed("a name that steers", Right, entry(STEER)),
        listed(
            "a hash and a name that steer",
            Refused,
            json!({"rfilename": STEER, "blobId": "z"}),
        ),
        lie(
            "no weights but a name that steers",
            Refused,
            LIST,
            ALWAYS,
            move |_, hub| {
                let mut value = hub.description();
                without_weights(&mut value);
                if let Some(list) = value["siblings"].as_array_mut() {
                    list.push(json!({"rfilename": format!("{STEER}.bin")}));
                }
                Action::Send(ok(value.to_string().as_bytes()))
            },
        ),
        index("../../../../evil.safetensors"),
        index("/tmp/evil.safetensors"),
        index("a/../../../evil.safetensors"),
        index("\u{1b}[31m.safetensors"),
        index(""),
    ]
}

fn statuses(about: &'static str) -> Vec<Case> {
    let code = format!("Repo{STEER}");
    let later = [("Retry-After", "86400")];
    let status = |number: u16, times, expected| {
        let how_often = if times == 1 { " once" } else { "" };
        lie(
            &format!("status {number}{how_often}"),
            expected,
            about,
            times,
            move |_, _| {
                let mut answer = head(number, &later, Some(STEER.len()));
                answer.extend(STEER.as_bytes());
                Action::Send(answer)
            },
        )
    };
    let to = |name: &str, expected, place: &'static str| {
        send(
            name,
            expected,
            about,
            head(302, &[("Location", place)], Some(0)),
        )
    };
    vec![
        status(401, ALWAYS, Refused),
        status(403, ALWAYS, Refused),
        status(404, ALWAYS, Refused),
        status(429, ALWAYS, Refused),
        status(500, ALWAYS, Refused),
        status(503, ALWAYS, Refused),
        status(429, 1, Right),
        status(500, 1, Right),
        status(503, 1, Right),
        status(204, ALWAYS, Refused),
        status(304, ALWAYS, Refused),
        status(999, ALWAYS, Refused),
        send(
            "an error code that steers",
            Refused,
            about,
            head(404, &[("X-Error-Code", &code)], Some(0)),
        ),
        to("a redirect to a file", Refused, "file:///etc/passwd"),
        to("a redirect to FTP", Refused, "ftp://127.0.0.1/x"),
        to(
            "a redirect to a closed port",
            Refused,
            "http://127.0.0.1:1/x",
        ),
        to("a redirect to nothing", Refused, ""),
        send(
            "a redirect without a place",
            Refused,
            about,
            head(302, &[], Some(0)),
        ),
        lie("a circle", Refused, about, ALWAYS, |request, _| {
            let place = match request.about == LIST {
                true => "/api/models/org/m/revision/main".to_owned(),
                false => format!("/org/m/resolve/{COMMIT}/{}", request.about),
            };
            Action::Send(head(302, &[("Location", &place)], Some(0)))
        }),
        lie(
            "a redirect to another port",
            Either,
            about,
            ALWAYS,
            |request, hub| {
                let place = match request.about == LIST {
                    true => format!("{}/api/models/org/m/revision/main", hub.elsewhere),
                    false => format!("{}/{}", hub.elsewhere, request.about),
                };
                Action::Send(head(307, &[("Location", &place)], Some(0)))
            },
        ),
    ]
}

fn bodies(about: &'static str) -> Vec<Case> {
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
    let drip = head(200, &[], Some(1 << 20));
    let mut halfway = head(200, &[], Some(1000));
    halfway.extend(b"hello");
    let stalled = halfway.clone();
    let reset = halfway.clone();
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

fn files() -> Vec<Case> {
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

fn resumed() -> Vec<Case> {
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

fn honest() -> Vec<Case> {
    vec![
        changed("a deep configuration", Refused, |files| {
            files.insert(CONFIG.into(), "[".repeat(100_000).into_bytes());
        }),
        changed("an empty configuration", Refused, |files| {
            drop(files.insert(CONFIG.into(), Vec::new()))
        }),
        changed("a configuration that steers", Refused, |files| {
            let text = json!({"model_type": STEER, "architectures": [STEER]}).to_string();
            files.insert(CONFIG.into(), text.into_bytes());
        }),
        changed("a configuration of 10^18", Refused, |files| {
            let text = String::from_utf8_lossy(&files[CONFIG]).replace(
                "\"hidden_size\": 32",
                "\"hidden_size\": 1000000000000000000",
            );
            files.insert(CONFIG.into(), text.into_bytes());
        }),
        changed("a broken tokenizer", Refused, |files| {
            drop(files.insert("tokenizer.json".into(), b"{\"model\": {}}".to_vec()))
        }),
        changed("a deep tokenizer", Refused, |files| {
            files.insert(
                "tokenizer.json".into(),
                "{\"a\":".repeat(100_000).into_bytes(),
            );
        }),
        changed("a header of 2^63", Refused, |files| {
            files.insert(
                WEIGHTS.into(),
                [&(1_u64 << 63).to_le_bytes()[..], &[0; 64]].concat(),
            );
        }),
        changed("weights of no bytes", Refused, |files| {
            drop(files.insert(WEIGHTS.into(), Vec::new()))
        }),
        changed("half of the weights", Refused, |files| {
            if let Some(bytes) = files.get_mut(WEIGHTS) {
                bytes.truncate(bytes.len() / 2);
            }
        }),
        changed("weights that are a pickle", Refused, |files| {
            drop(files.insert(WEIGHTS.into(), b"\x80\x02}q\x00.".repeat(100)))
        }),
    ]
}
