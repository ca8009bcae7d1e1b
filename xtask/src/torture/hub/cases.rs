//! The lies of the hub.
//!
//! Those about the description and those about files have a list each; what a file says of itself,
//! with hashes that are right, has another.

use serde_json::{Value, json};

use super::contents;
use super::server::{Action, COMMIT, Files, Hub, LIST, Lie, Request, Rule, WEIGHTS, head, ok};

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
pub(super) const ALWAYS: usize = usize::MAX;
/// A file of every model that is small.
const CONFIG: &str = "config.json";
/// An escape sequence, a bell, and text that goes from right to left.
const STEER: &str = "\u{1b}]0;title\u{7}\u{1b}[31mred\u{202e}";

/// A case of one lie.
pub(super) fn lie(
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
pub(super) fn send(name: &str, expected: Expected, about: &'static str, answer: Vec<u8>) -> Case {
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
        all.extend(contents::lengths(about));
        all.extend(contents::breaks(about));
    }
    all.extend(contents::files());
    all.extend(contents::resumed());
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
