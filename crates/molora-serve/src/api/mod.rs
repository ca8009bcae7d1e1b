//! The server's paths.

mod chat;
mod completions;
mod document;
mod models;
mod stream;
mod vectors;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, State};
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use molora_models::Finish;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tower_http::catch_panic::CatchPanicLayer;

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::models::Models;

/// What all answers are made of.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) models: Models,
    pub(crate) metrics: Arc<Metrics>,
    /// What a request has to bring, if anything.
    pub(crate) key: Option<String>,
}

/// All paths of a server.
pub(crate) fn router(app: Arc<App>) -> Router {
    let wrong_method = || async {
        let problem = "this path takes another method";
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, problem)
    };
    let nowhere = || async { ApiError::new(StatusCode::NOT_FOUND, "there is no such path") };
    Router::new()
        .route("/health", get(health))
        .route("/openapi.json", get(document::document))
        .route("/metrics", get(models::metrics))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/v1/chat/completions", post(chat::answer))
        .route("/v1/completions", post(completions::answer))
        .route("/v1/embeddings", post(vectors::embed))
        .route("/v1/classify", post(vectors::classify))
        .route("/classify", post(vectors::classify))
        .route("/tokenize", post(models::tokenize))
        .route("/detokenize", post(models::detokenize))
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::fault("the answer could not be made; the server's log says how")
                .into_response()
        }))
        .layer(from_fn_with_state(Arc::clone(&app), watch))
        .with_state(app)
}

/// `GET /health`: whether the server answers; needs no key.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "health",
    tag = "server",
    responses((status = 200, description = "It does")),
    security(())
)]
async fn health() -> String {
    json!({"status": "ok"}).to_string()
}

/// Lets nobody in without the key, and counts the answers.
async fn watch(State(app): State<Arc<App>>, request: Request<Body>, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or("other", |path| path.as_str()).to_owned();
    let response = match &app.key {
        Some(key) if path != "/health" && !has_key(request.headers(), key) => {
            let problem =
                "the request has no API key, or another one: send Authorization: Bearer KEY";
            let error = ApiError::new(StatusCode::UNAUTHORIZED, problem);
            error.with_code("invalid_api_key").into_response()
        }
        _ => next.run(request).await,
    };
    app.metrics.answered(&path, response.status().as_u16());
    response
}

/// Compared in a time that does not depend on where they differ.
fn has_key(headers: &HeaderMap, key: &str) -> bool {
    let found = headers
        .get(header::AUTHORIZATION)
        .map(|value| value.as_bytes());
    let found = found.and_then(|value| value.strip_prefix(b"Bearer "));
    found.is_some_and(|found| found.ct_eq(key.as_bytes()).into())
}

/// `{"prompt_tokens", "completion_tokens", "total_tokens"}`.
fn usage(prompt: usize, completion: usize) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    })
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A name for an answer that no other one has.
fn id(prefix: &str) -> String {
    format!("{prefix}-{:016x}", crate::params::fresh())
}

/// Does what takes a while, like tokenizing, where it holds nobody up.
async fn blocking<Found: Send + 'static>(
    find: impl FnOnce() -> Result<Found, ApiError> + Send + 'static,
) -> Result<Found, ApiError> {
    let found = tokio::task::spawn_blocking(find).await;
    found.unwrap_or_else(|_| Err(ApiError::fault("the request could not be read")))
}

/// What the answers of all texts of a request have in common.
#[derive(Debug, Clone)]
struct Frame {
    id: String,
    created: u64,
    model: String,
    object: &'static str,
}

impl Frame {
    fn new(prefix: &str, object: &'static str, model: &str) -> Self {
        Self {
            id: id(prefix),
            created: now(),
            model: model.to_owned(),
            object,
        }
    }

    /// An answer of some choices.
    fn of(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        })
    }

    fn whole(&self, choices: Vec<Value>, prompt: usize, completion: usize) -> Value {
        let mut answer = self.of(self.object, choices);
        answer["usage"] = usage(prompt, completion);
        answer
    }
}

/// OpenAI's word for why a text ended, or `null` while it goes on.
fn reason(finish: Option<Finish>) -> Value {
    finish.map_or(Value::Null, |finish| {
        crate::texts::finish_reason(finish).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_the_key_itself_opens() {
        let mut headers = HeaderMap::new();
        assert!(!has_key(&headers, "secret"));
        for (value, opens) in [
            ("Bearer secret", true),
            ("Bearer secrets", false),
            ("Bearer ", false),
            ("secret", false),
            ("Basic secret", false),
        ] {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(has_key(&headers, "secret"), opens, "{value}");
        }
    }
}
