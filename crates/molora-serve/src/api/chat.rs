//! `POST /v1/chat/completions`: answers to chats, by the model's chat template.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use molora_train::data::{Message, Prompt};
use molora_train::generate::{Event, TokenScore, Writer};
use serde::Deserialize;
use serde_json::{Value, json};

use super::document::{ChatRequest, Refusals};
use super::stream::{Speak, respond};
use super::{App, Frame, blocking, reason};
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, is_empty};
use crate::params::{Params, likeliest};
use crate::texts::{NamedScore, ask, gather};

/// A message as clients send it.
#[derive(Debug, Deserialize)]
struct Said {
    role: String,
    content: Option<Content>,
    /// Who it is, which no template here reads.
    #[serde(default, rename = "name")]
    _name: Option<String>,
    #[serde(flatten)]
    others: serde_json::Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// The messages of a chat.
pub(super) fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let said: Vec<Said> = fields.need("messages")?;
    if said.is_empty() {
        return Err(ApiError::field(
            "messages",
            "messages is empty, expected at least one",
        ));
    }
    said.into_iter()
        .enumerate()
        .map(|(index, said)| message(index, said))
        .collect()
}

fn message(index: usize, said: Said) -> Result<Message, ApiError> {
    let param = format!("messages.{index}");
    let refuse = |what: String| Err(ApiError::field(&param, format!("{param}: {what}")));
    let used = said
        .others
        .iter()
        .find(|(_, value)| !value.is_null() && !is_empty(value));
    if let Some((name, _)) = used {
        return refuse(format!("{name} is not supported"));
    }
    let content = match said.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let mut text = String::new();
            for part in parts {
                match part.text {
                    Some(piece) if part.kind == "text" => text.push_str(&piece),
                    _ => return refuse(format!("a part of type {} is not supported", part.kind)),
                }
            }
            text
        }
        None => return refuse("content is missing".into()),
    };
    match &said.role[..] {
        // OpenAI's newer word for the same.
        "system" | "developer" => Ok(Message::system(content)),
        "user" => Ok(Message::user(content)),
        "assistant" => Ok(Message::assistant(content)),
        role => refuse(format!(
            "role is `{role}`, expected system, user or assistant"
        )),
    }
}

/// Answers a chat, by the chat template of the model.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "chat",
    tag = "texts",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "`chat.completion`, or server-sent events of `chat.completion.chunk`"),
        Refusals,
    )
)]
pub(super) async fn answer(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::read(request).await?;
    let name: String = fields.need("model")?;
    let (model, variant) = app.models.text(&name)?;
    let messages = messages(&mut fields)?;
    let params = Params::take(&mut fields, &["max_completion_tokens", "max_tokens"])?;
    let wants_scores: bool = fields.take("logprobs")?.unwrap_or(false);
    let best = likeliest(&mut fields, "top_logprobs")?;
    if best.is_some() && !wants_scores {
        return Err(ApiError::field(
            "top_logprobs",
            "top_logprobs needs logprobs = true",
        ));
    }
    for name in ["tools", "functions"] {
        fields.refuse(name, is_empty)?;
    }
    for name in ["tool_choice", "function_call"] {
        fields.refuse(name, |value| *value == "none" || *value == "auto")?;
    }
    fields.refuse("modalities", |value| *value == json!(["text"]))?;
    fields.ignore(&["parallel_tool_calls"]);
    fields.end()?;
    let writer = Arc::clone(&model.writer);
    let asked = blocking(move || {
        let asked = writer.encode_prompt(&Prompt::Chat(messages.into_iter().collect()), true);
        asked.map_err(|error| ApiError::unreadable("messages", &error))
    });
    let asked = vec![asked.await?];
    let scores = wants_scores.then(|| best.unwrap_or(0));
    let requests = params.requests((model, variant), &asked, None, (scores, None))?;
    let texts = requests.len();
    let heard = ask(model, requests, &app.metrics)?;
    let prompt_tokens = asked[0].tokens.len();
    let writer = Arc::clone(&model.writer);
    if params.stream {
        let frame = Frame::new("chatcmpl", "chat.completion.chunk", &name);
        let usage = params.include_usage.then_some(prompt_tokens);
        return Ok(respond(heard, texts, Growing { writer }, frame, usage));
    }
    let frame = Frame::new("chatcmpl", "chat.completion", &name);
    let texts = gather(heard, texts).await?;
    let written = texts.iter().map(|text| text.tokens).sum();
    let choice = |(number, text): (usize, &crate::texts::Text)| {
        json!({
            "index": number,
            "message": {"role": "assistant", "content": text.text, "refusal": null},
            "logprobs": scores.map(|_| log(&text.scores, &writer)),
            "finish_reason": reason(text.finish),
        })
    };
    let choices = texts.iter().enumerate().map(choice).collect();
    let answer = frame.whole(choices, prompt_tokens, written);
    Ok(json_response(StatusCode::OK, &answer))
}

/// Says an answer as it grows.
struct Growing {
    writer: Arc<Writer>,
}

impl Speak for Growing {
    fn choices(&mut self, number: usize, event: Event) -> Vec<Value> {
        let choice = |delta: Value, log: Option<Value>, reason: Value| json!({"index": number, "delta": delta, "logprobs": log, "finish_reason": reason});
        let piece = |text: String, score: Option<TokenScore>| {
            let log = score.map(|score| log(&[score], &self.writer));
            let is_news = !text.is_empty() || log.is_some();
            is_news.then(|| choice(json!({"content": text}), log, Value::Null))
        };
        match event {
            Event::Read(_) => {
                let begins = json!({"role": "assistant", "content": ""});
                vec![choice(begins, None, Value::Null)]
            }
            Event::Token { text, score, .. } => piece(text, score).into_iter().collect(),
            Event::End { finish, rest, .. } => {
                let end = choice(json!({}), None, reason(Some(finish)));
                piece(rest, None).into_iter().chain([end]).collect()
            }
            Event::Failed(_) => Vec::new(),
        }
    }
}

/// Log-probabilities of tokens, each with those of the likeliest ones in its place.
fn log(scores: &[TokenScore], writer: &Writer) -> Value {
    let entry = |token: &str, value: f64| json!({"token": token, "logprob": value, "bytes": token.as_bytes()});
    let one = |score: &TokenScore| {
        let score = NamedScore::of(score, writer);
        let best = score
            .likeliest
            .iter()
            .map(|(token, value)| entry(token, *value));
        let mut found = entry(&score.token, score.log_probability);
        found["top_logprobs"] = best.collect();
        found
    };
    json!({"content": scores.iter().map(one).collect::<Vec<_>>(), "refusal": null})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Vec<Message>, ApiError> {
        messages(&mut Fields::parse(body.to_string().as_bytes())?)
    }

    #[test]
    fn messages_are_texts_or_parts_of_text() {
        let found = read(json!({"messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "tool_calls": null, "name": "x"},
        ]}));
        let expected = [
            Message::system("Be brief."),
            Message::user("ab"),
            Message::assistant("c"),
        ];
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn what_no_message_can_be_made_of_is_named() {
        for (message, part) in [
            (
                json!({"role": "tool", "content": "x"}),
                "messages.0: role is `tool`",
            ),
            (json!({"role": "user"}), "content is missing"),
            (
                json!({"role": "user", "content": [{"type": "image_url"}]}),
                "image_url is not supported",
            ),
            (
                json!({"role": "assistant", "content": "", "tool_calls": [1]}),
                "tool_calls is not supported",
            ),
        ] {
            let error = read(json!({"messages": [message]})).unwrap_err().body();
            let text = error["error"]["message"].as_str().unwrap();
            assert!(text.contains(part), "{text}");
        }
        assert!(read(json!({"messages": []})).is_err());
        assert!(read(json!({"messages": [1]})).is_err());
    }
}
