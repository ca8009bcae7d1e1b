//! Bodies that are no request, in requests that are whole.

use serde_json::{Map, Value, json};

use super::Draw;
use super::cases::{GOOD, one};

/// A good body with some bytes changed.
pub(super) fn bytes(draw: &mut Draw) -> (&'static str, Vec<u8>) {
    let (path, body) = one(draw, &GOOD);
    let mut body = body.as_bytes().to_vec();
    for _ in 0..=draw.below(3) / 2 {
        let at = draw.below(body.len());
        let byte = match draw.below(3) {
            0 => draw.below(256) as u8,
            _ => one(draw, br#"0123456789.-eE"{}[]:, \u"#),
        };
        match draw.below(12) {
            0..5 => body[at] = byte,
            5..8 if body.len() > 1 => drop(body.remove(at)),
            8 => {
                let copied = body[at..].to_vec();
                body.extend(copied);
            }
            9 => body.truncate(at + 1),
            _ => body.insert(at, byte),
        }
    }
    (path, body)
}

/// Names that a body may have, in any body.
const NAMES: [&str; 34] = [
    "model",
    "prompt",
    "messages",
    "input",
    "records",
    "tokens",
    "max_tokens",
    "n",
    "stop",
    "seed",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
    "top_logprobs",
    "echo",
    "stream",
    "stream_options",
    "encoding_format",
    "dimensions",
    "best_of",
    "suffix",
    "logit_bias",
    "response_format",
    "tools",
    "tool_choice",
    "user",
    "max_completion_tokens",
    "add_special_tokens",
    "",
];

/// A value that nobody means, or one that is good in some places.
fn value(draw: &mut Draw) -> Value {
    if draw.below(2) == 0 {
        let good = [
            json!(1),
            json!(0),
            json!(3),
            json!(0.5),
            json!("w1"),
            json!([5, 6]),
            json!(false),
        ];
        return good[draw.below(good.len())].clone();
    }
    let huge = [
        u64::MAX,
        1 << 53,
        u64::from(u32::MAX),
        1_000_000,
        65_536,
        129,
    ];
    let numbers = [-1.0, -0.0, 0.5, 1e-300, 1e300, -1e300, 2.5];
    let texts = [
        "",
        " ",
        "w1",
        "\u{0}",
        "\u{202e}\u{1f600}",
        "base",
        "run:task=pets",
        "model:task=",
        "run:expert=pets",
        ":",
        "a:b=c",
        "../../etc/passwd",
        "</s>",
        "[DONE]",
        "\r\n\r\n",
        "null",
    ];
    match draw.below(14) {
        0 => Value::Null,
        1 => draw.below(2).eq(&0).into(),
        2 => one(draw, &huge).into(),
        3 => one(draw, &numbers).into(),
        4 | 5 => one(draw, &texts).into(),
        6 => json!([]),
        7 => json!({}),
        8 => {
            let count = draw.below(70);
            (0..count).map(|_| one(draw, &huge)).collect()
        }
        9 => {
            let count = draw.below(40);
            (0..count).map(|_| one(draw, &texts)).collect()
        }
        10 => one(draw, &texts).repeat(1 + draw.below(3000)).into(),
        11 => json!([value(draw), value(draw)]),
        12 => json!({one(draw, &NAMES): value(draw), "role": "user", "content": value(draw)}),
        _ => (0..draw.below(100)).fold(json!(1), |inner, _| json!([inner])),
    }
}

/// A good body with fields changed, added and left out.
pub(super) fn fields(draw: &mut Draw) -> (&'static str, Vec<u8>) {
    let (path, body) = one(draw, &GOOD);
    let mut fields: Map<String, Value> = serde_json::from_str(body).unwrap_or_default();
    for _ in 0..=draw.below(3) / 2 {
        let own: Vec<String> = fields.keys().cloned().collect();
        match (draw.below(8), own.is_empty()) {
            (0, false) => {
                fields.remove(&own[draw.below(own.len())]);
            }
            (1..6, false) => {
                fields.insert(own[draw.below(own.len())].clone(), value(draw));
            }
            _ => {
                fields.insert(one(draw, &NAMES).into(), value(draw));
            }
        }
    }
    let mut body = Value::Object(fields).to_string();
    match draw.below(30) {
        // A field twice.
        0 => body = body.replacen('{', r#"{"model": "base", "#, 1),
        1 => body = format!("{}{body}{}", "[".repeat(5000), "]".repeat(5000)),
        2 => body = body.replace(':', ":\n\t  "),
        3 => body.push_str(&body.clone()),
        _ => {}
    }
    (path, body.into_bytes())
}
