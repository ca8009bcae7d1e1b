//! What is served: models, their tokens, and how they are doing.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use molora_train::data::Prompt;
use serde_json::{Value, json};

use super::document::{DetokenizeRequest, ErrorAnswer, Refusals, TokenizeRequest};
use super::{App, blocking, chat};
use crate::error::{ApiError, json_response};
use crate::fields::Fields;

/// `GET /v1/models`: what is served.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "models",
    tag = "models",
    responses(
        (status = 200, description = "A list of `model`, with `root` and `parent`"),
    )
)]
pub(super) async fn list(State(app): State<Arc<App>>) -> Response {
    json_response(StatusCode::OK, &app.models.list())
}

/// `GET /v1/models/NAME`: one of what is served.
#[utoipa::path(
    get,
    path = "/v1/models/{name}",
    operation_id = "model",
    tag = "models",
    params(("name" = String, Path, description = "Name of a model")),
    responses(
        (status = 200, description = "A `model`"),
        (status = 404, description = "There is no such model", body = ErrorAnswer),
    )
)]
pub(super) async fn one(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // What axum would say by itself is no error object.
    let Path(name) = name.map_err(|error| ApiError::bad(error.body_text()))?;
    let mut list = app.models.list();
    let entries = list["data"].as_array_mut().into_iter().flatten();
    let mut found = entries.filter(|entry| entry["id"] == name[..]);
    match found.next() {
        Some(entry) => Ok(json_response(StatusCode::OK, entry)),
        None => Err(ApiError::no_model(&name, &app.models.names())),
    }
}

/// `GET /metrics`: counts and times, for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "server",
    responses(
        (status = 200, description = "Text in the exposition format of Prometheus"),
    )
)]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut response = Response::new(Body::from(app.metrics.text(&app.models)));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// `POST /tokenize`: the tokens that a prompt or the messages of a chat are read as.
#[utoipa::path(
    post,
    path = "/tokenize",
    operation_id = "tokenize",
    tag = "models",
    request_body = TokenizeRequest,
    responses(
        (status = 200, description = "`count`, `max_model_len` and `tokens`"),
        Refusals,
    )
)]
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::read(request).await?;
    let name: String = fields.need("model")?;
    let (model, _) = app.models.text(&name)?;
    let prompt: Option<String> = fields.take("prompt")?;
    let prompt = match prompt {
        Some(text) => {
            fields.only("messages", "prompt")?;
            Prompt::Text(text)
        }
        None => Prompt::Chat(chat::messages(&mut fields)?.into_iter().collect()),
    };
    fields.refuse("add_special_tokens", |value| *value == true)?;
    fields.refuse("add_generation_prompt", |value| *value == true)?;
    fields.end()?;
    let writer = Arc::clone(&model.writer);
    let asked = blocking(move || {
        let is_chat = matches!(prompt, Prompt::Chat(_));
        let asked = writer.encode_prompt(&prompt, is_chat);
        asked.map_err(|error| ApiError::bad(error.to_string()))
    });
    let tokens = asked.await?.tokens;
    let answer = json!({
        "count": tokens.len(), "max_model_len": model.max_context, "tokens": tokens,
    });
    Ok(json_response(StatusCode::OK, &answer))
}

/// `POST /detokenize`: the text of tokens.
#[utoipa::path(
    post,
    path = "/detokenize",
    operation_id = "detokenize",
    tag = "models",
    request_body = DetokenizeRequest,
    responses(
        (status = 200, description = "`prompt`"),
        Refusals,
    )
)]
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::read(request).await?;
    let name: String = fields.need("model")?;
    let (model, _) = app.models.text(&name)?;
    let tokens: Vec<usize> = fields.need("tokens")?;
    fields.end()?;
    let asked = model.writer.prompt_of_tokens(tokens);
    let asked = asked.map_err(|error| ApiError::field("tokens", error.to_string()))?;
    let answer: Value = json!({"prompt": asked.text});
    Ok(json_response(StatusCode::OK, &answer))
}
