//! `GET /openapi.json`: the server's interface as an OpenAPI document.
//!
//! The types below describe bodies for the document alone. Requests are read field by field
//! ([`Fields`](crate::fields::Fields)), so that each is honoured or refused by name; a test holds that every
//! field described here is read.

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};

use super::{chat, completions, models, vectors};
use crate::error::json_response;

/// The whole document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "molora serve",
        description = "Mixtures of LoRA experts, served by OpenAI's interface: each task and each expert of a \
                       run is a model of its own.",
        license(name = "MIT OR Apache-2.0"),
    ),
    paths(
        chat::answer,
        completions::answer,
        vectors::embed,
        vectors::classify,
        models::list,
        models::one,
        models::tokenize,
        models::detokenize,
        models::metrics,
        super::health,
    ),
    security(("key" = [])),
    modifiers(&Key)
)]
pub(super) struct Document;

/// The key of `--api-key-file`.
struct Key;

impl Modify for Key {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", scheme);
    }
}

/// `GET /openapi.json`.
pub(super) async fn document() -> Response {
    let document = serde_json::to_value(Document::openapi()).expect("plain data");
    json_response(StatusCode::OK, &document)
}

/// How texts are written; any field but `model` and the prompt may be left out.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct Texts {
    /// Name of a model, as `GET /v1/models` lists them: a run, `RUN:task=TASK` or `RUN:expert=EXPERT`.
    model: String,
    /// Texts behind each prompt.
    #[schema(minimum = 1, default = 1)]
    n: Option<usize>,
    /// Texts that end an answer and are no part of it: one or a list.
    stop: Option<Value>,
    /// Of the draws; without one each request draws anew.
    seed: Option<i64>,
    /// Divides the logits; 0 takes the likeliest token.
    #[schema(minimum = 0, default = 1)]
    temperature: Option<f64>,
    /// Draws among the likeliest tokens whose probabilities reach this sum.
    top_p: Option<f64>,
    /// Draws among so many likeliest tokens; -1 and 0 for all.
    top_k: Option<i64>,
    /// Draws among tokens with at least this share of the likeliest one's probability.
    min_p: Option<f64>,
    /// Taken from the logits of tokens that were written.
    presence_penalty: Option<f64>,
    /// Taken from the logits of tokens for each time that they were written.
    frequency_penalty: Option<f64>,
    /// Divides the logits of tokens of prompt and answer, where they are above 0, and multiplies those below.
    repetition_penalty: Option<f64>,
    /// Whether the answer comes in pieces, as server-sent events that end in `[DONE]`.
    stream: Option<bool>,
    /// Of streams.
    stream_options: Option<StreamOptions>,
}

/// Options of a stream.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct StreamOptions {
    /// Whether a last piece tells the usage.
    include_usage: Option<bool>,
}

/// A chat to be answered.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct ChatRequest {
    #[schema(inline)]
    #[serde(flatten)]
    texts: Texts,
    /// The chat so far.
    messages: Vec<ChatMessage>,
    /// Most tokens of an answer; what the context leaves without it.
    max_completion_tokens: Option<usize>,
    /// The same by its older name.
    max_tokens: Option<usize>,
    /// Whether the log-probability of every token is told.
    logprobs: Option<bool>,
    /// How many likeliest tokens are told in each place.
    top_logprobs: Option<usize>,
}

/// A message of a chat.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct ChatMessage {
    /// `system` (or `developer`), `user` or `assistant`.
    role: String,
    /// A text, or a list of parts `{"type": "text", "text"}`.
    content: Value,
}

/// Prompts to be gone on with.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct CompletionRequest {
    #[schema(inline)]
    #[serde(flatten)]
    texts: Texts,
    /// A text, tokens, or a list of one of them.
    prompt: Value,
    /// Most new tokens.
    #[schema(default = 16)]
    max_tokens: Option<usize>,
    /// How many likeliest tokens are told in each place, beside the token's own log-probability.
    logprobs: Option<usize>,
    /// Whether the prompt is a part of the text, with its log-probabilities.
    echo: Option<bool>,
}

/// Texts to be embedded.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct EmbeddingRequest {
    /// Name of a model.
    model: String,
    /// A text or a list of texts.
    input: Value,
    /// `float` or `base64`.
    #[schema(default = "float")]
    encoding_format: Option<String>,
}

/// Texts or records to be classified: one of `input` and `records`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct ClassRequest {
    /// Name of a model: `RUN:task=TASK`, or the run where it has one task.
    model: String,
    /// A text or a list of texts.
    input: Option<Value>,
    /// Objects as `molora predict` reads them.
    records: Option<Vec<Value>>,
}

/// What is to be read as tokens: one of `prompt` and `messages`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct TokenizeRequest {
    /// Name of a model.
    model: String,
    /// A text.
    prompt: Option<String>,
    /// A chat.
    messages: Option<Vec<ChatMessage>>,
}

/// Tokens to be read as a text.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct DetokenizeRequest {
    /// Name of a model.
    model: String,
    /// The tokens.
    tokens: Vec<usize>,
}

/// Why a request has no answer.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes answers")]
pub(super) enum Refusals {
    /// A field is wrong or not supported.
    #[response(status = 400)]
    Field(ErrorAnswer),
    /// There is no such model.
    #[response(status = 404)]
    Model(ErrorAnswer),
    /// More requests are written or wait than there is room for.
    #[response(status = 429)]
    Full(ErrorAnswer),
}

/// A refusal.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct ErrorAnswer {
    /// What is wrong.
    error: ErrorBody,
}

/// What is wrong with a request.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes a body")]
pub(super) struct ErrorBody {
    /// In one line.
    message: String,
    /// Its kind, like `invalid_request_error`.
    r#type: String,
    /// The field that it is about.
    param: Option<String>,
    /// A word for programs, like `model_not_found`.
    code: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_described() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
        let expected = [
            "/detokenize",
            "/health",
            "/metrics",
            "/tokenize",
            "/v1/chat/completions",
            "/v1/classify",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/models",
            "/v1/models/{name}",
        ];
        assert_eq!(paths, expected);
        let chat = &document["components"]["schemas"]["ChatRequest"];
        assert!(chat.to_string().contains("top_logprobs"), "{chat}");
        assert!(chat.to_string().contains("min_p"), "{chat}");
    }
}
