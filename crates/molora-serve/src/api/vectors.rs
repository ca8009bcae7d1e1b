//! What encoders find: vectors and classes of texts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use molora_train::TrainError;
use molora_train::guide::TextEncoder;
use molora_train::predict::{Answer, Predictor};
use serde::Deserialize;
use serde_json::{Value, json};

use super::document::{ClassRequest, EmbeddingRequest, Refusals};
use super::{App, id, now};
use crate::error::{ApiError, json_response};
use crate::fields::Fields;
use crate::limits::INPUTS;
use crate::models::Vectors;

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum Texts {
    One(String),
    Many(Vec<String>),
}

fn texts(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let texts = match fields.need("input")? {
        Texts::One(text) => vec![text],
        Texts::Many(texts) => texts,
    };
    let count = texts.len();
    if !(1..=INPUTS).contains(&count) {
        let problem = format!("input is a list of {count}, expected 1 to {INPUTS}");
        return Err(ApiError::field("input", problem));
    }
    match texts.iter().position(|text| text.trim().is_empty()) {
        Some(index) => Err(ApiError::field("input", format!("input {index} is empty"))),
        None => Ok(texts),
    }
}

fn slices(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// `POST /v1/embeddings`: a vector of length 1 for each text, the mean over its tokens.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    operation_id = "embeddings",
    tag = "encoders",
    request_body = EmbeddingRequest,
    responses(
        (status = 200, description = "A list of `embedding`"),
        Refusals,
    )
)]
pub(super) async fn embed(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::read(request).await?;
    let name: String = fields.need("model")?;
    let model = app.models.vectors(&name)?;
    let texts = texts(&mut fields)?;
    let format: String = fields
        .take("encoding_format")?
        .unwrap_or_else(|| "float".into());
    if !["float", "base64"].contains(&&format[..]) {
        let problem = format!("encoding_format is {format}, expected float or base64");
        return Err(ApiError::field("encoding_format", problem));
    }
    fields.refuse("dimensions", |_| false)?;
    fields.ignore(&["user"]);
    fields.end()?;
    let found = match model {
        Vectors::Base(model) => {
            let find = move |encoder: &mut TextEncoder| encoder.embed_whole(&slices(&texts));
            model.worker.ask(find).await?
        }
        Vectors::Run(model, task) => {
            let find = move |run: &mut Predictor| run.vectors(&slices(&texts), task.as_deref());
            model.worker.ask(find).await?
        }
    };
    let (vectors, tokens) = found.map_err(|error| ApiError::unreadable("input", &error))?;
    let written = |vector: &[f32]| match &format[..] {
        "base64" => {
            let bytes: Vec<u8> = vector
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            json!(STANDARD.encode(bytes))
        }
        _ => json!(vector),
    };
    let entry = |(index, vector): (usize, &Vec<f32>)| json!({"object": "embedding", "index": index, "embedding": written(vector)});
    let data: Vec<Value> = vectors.iter().enumerate().map(entry).collect();
    let answer = json!({
        "object": "list", "data": data, "model": name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    Ok(json_response(StatusCode::OK, &answer))
}

/// `POST /v1/classify`: the class of each text in a task with its probability, or the number.
#[utoipa::path(
    post,
    path = "/v1/classify",
    operation_id = "classify",
    tag = "encoders",
    request_body = ClassRequest,
    responses(
        (status = 200, description = "A list of `index`, `label`, `probs`, or `index` and `value`"),
        Refusals,
    )
)]
pub(super) async fn classify(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::read(request).await?;
    let name: String = fields.need("model")?;
    let (model, task) = app.models.class(&name)?;
    let inputs: Vec<Value> = match fields.take("records")? {
        // Records with more than one text, as `molora predict` reads them.
        Some(records) => {
            fields.only("input", "records")?;
            records
        }
        None => {
            let texts = texts(&mut fields)?.into_iter();
            texts.map(|text| json!({"input": text})).collect()
        }
    };
    fields.ignore(&["user"]);
    fields.end()?;
    if !(1..=INPUTS).contains(&inputs.len()) || !inputs.iter().all(Value::is_object) {
        let problem = format!("records are no list of 1 to {INPUTS} objects");
        return Err(ApiError::field("records", problem));
    }
    let found = model
        .worker
        .ask(move |predictor| classes(predictor, &task, &inputs));
    let data = found
        .await?
        .map_err(|error| ApiError::bad(error.to_string()))?;
    let answer = json!({
        "id": id("classify"), "object": "list", "created": now(), "model": name, "data": data,
    });
    Ok(json_response(StatusCode::OK, &answer))
}

fn classes(
    predictor: &mut Predictor,
    task: &str,
    inputs: &[Value],
) -> Result<Vec<Value>, TrainError> {
    predictor.turn_to(task)?;
    let mut lines = String::new();
    for input in inputs {
        writeln!(lines, "{input}").expect("a String takes all");
    }
    let none = BTreeMap::new();
    let meta = predictor.task().clone();
    let records = molora_train::data::parse_unlabelled(&lines, Path::new("records"), &meta, &none)?;
    let answers = predictor.answers(&records)?;
    let entry = |(index, answer): (usize, Answer)| match answer {
        Answer::Chosen(scores) => {
            let first = |best: usize, (place, score): (usize, &f64)| match *score > scores[best] {
                true => place,
                false => best,
            };
            let best = scores.iter().enumerate().fold(0, first);
            let choices = &records[index].choices;
            let label = choices.get(best).or_else(|| meta.labels.get(best));
            json!({
                "index": index, "label": label, "probs": scores, "num_classes": scores.len(),
            })
        }
        Answer::Number(value) => json!({"index": index, "value": value}),
        Answer::Text(text) => json!({"index": index, "label": text}),
    };
    Ok(answers.into_iter().enumerate().map(entry).collect())
}
