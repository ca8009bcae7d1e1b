//! Refusals as OpenAI's error object.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use molora_models::GenerateError;
use molora_train::TrainError;
use serde_json::{Value, json};

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    /// The field of the request that it is about.
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which it is worth another try.
    retry_after: Option<u64>,
}

impl ApiError {
    /// An error of a status.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// A request that cannot be answered as it is.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of a request that cannot be answered as it is.
    pub(crate) fn field(param: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.to_owned()),
            ..Self::bad(message)
        }
    }

    /// A prompt that nothing can be written behind. Clients know one that is too long by its code.
    pub(crate) fn prompt(error: &GenerateError) -> Self {
        let refusal = Self::bad(error.to_string());
        match error {
            GenerateError::PromptTooLong { .. } => refusal.with_code("context_length_exceeded"),
            _ => refusal,
        }
    }

    /// A field whose texts cannot be read by a model.
    pub(crate) fn unreadable(param: &str, error: &TrainError) -> Self {
        let refusal = match error {
            TrainError::Generate(error) => Self::prompt(error),
            _ => Self::bad(error.to_string()),
        };
        Self {
            param: Some(param.to_owned()),
            ..refusal
        }
    }

    /// A model that is not served.
    pub(crate) fn no_model(name: &str, known: &[String]) -> Self {
        let known = known.join(", ");
        Self {
            code: Some("model_not_found"),
            param: Some("model".into()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                format!("there is no model `{name}`; there are {known}"),
            )
        }
    }

    /// More requests than there is room for.
    pub(crate) fn full(inside: usize) -> Self {
        Self {
            code: Some("queue_full"),
            retry_after: Some(1),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("{inside} requests are written or wait already; try again later"),
            )
        }
    }

    /// A fault of the server.
    pub(crate) fn fault(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub(crate) fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error": {"message", "type", "param", "code"}}`.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body());
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A response of a JSON value.
pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_openai() {
        let error = ApiError::field("n", "n is 0, expected at least 1");
        let expected = json!({"error": {"message": "n is 0, expected at least 1",
            "type": "invalid_request_error", "param": "n", "code": null}});
        assert_eq!(error.body(), expected);
        let response = ApiError::full(3).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
