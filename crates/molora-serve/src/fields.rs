//! The fields of a request's body: each is read, or refused by its name.

use std::fmt;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::limits::{BODY_BYTES, BODY_TIME};

/// A JSON object whose fields are taken out one after the other.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads the body of a request, which has to come whole within [`BODY_TIME`].
    pub(crate) async fn read(request: Request<Body>) -> Result<Self, ApiError> {
        let body = to_bytes(request.into_body(), BODY_BYTES);
        let Ok(body) = tokio::time::timeout(BODY_TIME, body).await else {
            let seconds = BODY_TIME.as_secs();
            return Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body did not come whole within {seconds} seconds"),
            ));
        };
        let body = body.map_err(|error| {
            let text = error.to_string();
            // What axum's limit says of a body that is too long.
            match text.contains("length limit exceeded") {
                true => ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body has more than {BODY_BYTES} bytes"),
                ),
                false => ApiError::bad(format!("the body cannot be read: {text}")),
            }
        })?;
        Self::parse(&body)
    }

    /// Reads a JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Once(fields)) => Ok(Self(fields)),
            Err(error) => Err(ApiError::bad(format!(
                "the body is no JSON object: {error}"
            ))),
        }
    }

    /// A field that may be absent or `null`.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| ApiError::field(name, format!("{name}: {error}"))),
        }
    }

    /// A field that has to be there.
    pub(crate) fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        let found = self.take(name)?;
        found.ok_or_else(|| ApiError::field(name, format!("{name} is missing")))
    }

    /// Refuses a field that would change the answer, unless it has a value that would not.
    pub(crate) fn refuse(
        &mut self,
        name: &str,
        is_neutral: impl Fn(&Value) -> bool,
    ) -> Result<(), ApiError> {
        match self.0.remove(name) {
            Some(value) if !value.is_null() && !is_neutral(&value) => {
                Err(ApiError::field(name, format!("{name} is not supported")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a field that stands beside another one of the same meaning.
    pub(crate) fn only(&mut self, name: &str, other: &str) -> Result<(), ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(ApiError::field(
                name,
                format!("{name} stands beside {other}, expected one of them"),
            )),
        }
    }

    /// Drops fields that change nothing of an answer.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Refuses what was not taken.
    pub(crate) fn end(self) -> Result<(), ApiError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::field(&name, format!("unknown field `{name}`"))),
        }
    }
}

/// The fields of an object in which none stands twice: of two, serde's own map keeps the last in silence.
struct Once(Map<String, Value>);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OnceVisitor)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Once;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Once, A::Error> {
        let mut fields = Map::new();
        while let Some((name, value)) = access.next_entry::<String, Value>()? {
            if fields.contains_key(&name) {
                return Err(A::Error::custom(format!("field \"{name}\" stands twice")));
            }
            fields.insert(name, value);
        }
        Ok(Once(fields))
    }
}

/// Whether a value is an empty list, text or object.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_field_is_read_or_named() {
        let mut fields = Fields::parse(br#"{"n": 2, "tools": [], "x": 1, "stop": null}"#).unwrap();
        assert_eq!(fields.take::<usize>("n"), Ok(Some(2)));
        assert_eq!(fields.take::<String>("stop"), Ok(None));
        assert_eq!(fields.refuse("tools", is_empty), Ok(()));
        assert_eq!(fields.only("stop", "n"), Ok(()));
        let missing = fields.need::<String>("model").unwrap_err().body();
        assert_eq!(missing["error"]["message"], "model is missing");
        let unknown = fields.end().unwrap_err().body();
        assert_eq!(unknown["error"]["param"], "x");
    }

    #[test]
    fn wrong_values_are_named() {
        let mut fields = Fields::parse(br#"{"n": -1, "tools": [1]}"#).unwrap();
        let wrong = fields.take::<usize>("n").unwrap_err().body();
        let message = wrong["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("n: invalid value"), "{message}");
        let refused = fields.refuse("tools", is_empty).unwrap_err().body();
        assert_eq!(refused["error"]["message"], "tools is not supported");
        for body in [&b"[]"[..], b"", b"{", b"\xff"] {
            assert!(Fields::parse(body).is_err(), "{body:?}");
        }
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(Fields::parse(format!(r#"{{"a": {deep}}}"#).as_bytes()).is_err());
        assert!(is_empty(&json!([])) && !is_empty(&json!(0)));
    }
}
