//! `POST /v1/completions`: texts or tokens that are gone on with.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use molora_train::data::Prompt;
use molora_train::generate::{EncodedPrompt, Event, TokenScore, Writer};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::document::{CompletionRequest, Refusals};
use super::stream::{Speak, respond};
use super::{App, Frame, blocking, reason};
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, is_empty};
use crate::limits::INPUTS;
use crate::params::{Params, likeliest};
use crate::texts::{NamedScore, Text, ask, gather};

/// New tokens where a request names no limit.
const NEW_TOKENS: usize = 16;

/// One prompt or several, as texts or as tokens.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, tokens, or a list of one of them"
)]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<usize>),
    TokenLists(Vec<Vec<usize>>),
}

impl Prompts {
    fn asked(self, writer: &Writer) -> Result<Vec<EncodedPrompt>, ApiError> {
        let text = |text: String| writer.encode_prompt(&Prompt::Text(text), false);
        let tokens = |tokens: Vec<usize>| writer.prompt_of_tokens(tokens);
        let asked = match self {
            Self::Text(one) => text(one).map(|asked| vec![asked]),
            Self::Texts(all) => all.into_iter().map(text).collect(),
            Self::Tokens(one) => tokens(one).map(|asked| vec![asked]),
            Self::TokenLists(all) => all.into_iter().map(tokens).collect(),
        };
        let asked = asked.map_err(|error| ApiError::unreadable("prompt", &error))?;
        match asked.len() {
            1..=INPUTS => Ok(asked),
            count => Err(ApiError::field(
                "prompt",
                format!("prompt is a list of {count}, expected 1 to {INPUTS}"),
            )),
        }
    }
}

/// Goes on with texts or tokens.
#[utoipa::path(
    post,
    path = "/v1/completions",
    operation_id = "completions",
    tag = "texts",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "`text_completion`, or server-sent events of it"),
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
    let prompts: Prompts = fields.need("prompt")?;
    let params = Params::take(&mut fields, &["max_tokens"])?;
    let scores = likeliest(&mut fields, "logprobs")?;
    let echo: bool = fields.take("echo")?.unwrap_or(false);
    let count = params.count;
    fields.refuse("best_of", |value| *value == json!(count))?;
    fields.refuse("suffix", is_empty)?;
    fields.end()?;
    let writer = Arc::clone(&model.writer);
    let asked = blocking(move || prompts.asked(&writer)).await?;
    let prompt_scores = scores.filter(|_| echo);
    let requests = params.requests(
        (model, variant),
        &asked,
        Some(NEW_TOKENS),
        (scores, prompt_scores),
    )?;
    let texts = requests.len();
    let heard = ask(model, requests, &app.metrics)?;
    let prompt_tokens = asked.iter().map(|asked| asked.tokens.len()).sum();
    let frame = Frame::new("cmpl", "text_completion", &name);
    let teller = Teller {
        writer: Arc::clone(&model.writer),
        asked,
        count,
        echo,
        has_scores: scores.is_some(),
    };
    if params.stream {
        let usage = params.include_usage.then_some(prompt_tokens);
        let offsets = vec![0; texts];
        return Ok(respond(
            heard,
            texts,
            Growing { teller, offsets },
            frame,
            usage,
        ));
    }
    let texts = gather(heard, texts).await?;
    let written = texts.iter().map(|text| text.tokens).sum();
    let choices = texts
        .iter()
        .enumerate()
        .map(|(number, text)| teller.whole(number, text));
    let answer = frame.whole(choices.collect(), prompt_tokens, written);
    Ok(json_response(StatusCode::OK, &answer))
}

/// Says what was written.
struct Teller {
    writer: Arc<Writer>,
    asked: Vec<EncodedPrompt>,
    /// Texts behind each prompt.
    count: usize,
    /// Whether the prompt is a part of the text.
    echo: bool,
    has_scores: bool,
}

impl Teller {
    fn prompt(&self, number: usize) -> &EncodedPrompt {
        &self.asked[number / self.count]
    }

    fn whole(&self, number: usize, text: &Text) -> Value {
        let asked = self.prompt(number);
        let mut log = Log::default();
        let mut whole = String::new();
        if self.echo {
            whole.push_str(&asked.text);
            log.prompt(asked, &text.prompt_scores, &self.writer);
        }
        whole.push_str(&text.text);
        text.scores
            .iter()
            .for_each(|score| log.token(score, &self.writer));
        self.choice(
            number,
            &whole,
            self.has_scores.then_some(&log),
            reason(text.finish),
        )
    }

    fn choice(&self, number: usize, text: &str, log: Option<&Log>, reason: Value) -> Value {
        json!({
            "index": number, "text": text, "logprobs": log.map(Log::value),
            "finish_reason": reason,
        })
    }
}

/// Says it as it grows.
struct Growing {
    teller: Teller,
    /// Where the next token of each text begins.
    offsets: Vec<usize>,
}

impl Speak for Growing {
    fn choices(&mut self, number: usize, event: Event) -> Vec<Value> {
        let teller = &self.teller;
        let mut log = Log::at(self.offsets[number]);
        let (text, finish) = match event {
            Event::Read(_) if !teller.echo => return Vec::new(),
            Event::Read(scores) => {
                let asked = teller.prompt(number);
                log.prompt(asked, &scores, &teller.writer);
                (asked.text.clone(), None)
            }
            Event::Token { text, score, .. } => {
                score
                    .iter()
                    .for_each(|score| log.token(score, &teller.writer));
                (text, None)
            }
            Event::End { finish, rest, .. } => (rest, Some(finish)),
            Event::Failed(_) => return Vec::new(),
        };
        self.offsets[number] = log.offset;
        let has_log = teller.has_scores && !log.tokens.is_empty();
        if text.is_empty() && !has_log && finish.is_none() {
            return Vec::new();
        }
        vec![teller.choice(number, &text, has_log.then_some(&log), reason(finish))]
    }
}

/// Log-probabilities as lists over tokens.
#[derive(Debug, Default)]
struct Log {
    tokens: Vec<String>,
    values: Vec<Option<f64>>,
    likeliest: Vec<Option<Map<String, Value>>>,
    offsets: Vec<usize>,
    /// Where the next token begins, in characters.
    offset: usize,
}

impl Log {
    fn at(offset: usize) -> Self {
        Self {
            offset,
            ..Self::default()
        }
    }

    /// The tokens of a prompt, the first of which has no probability.
    fn prompt(&mut self, asked: &EncodedPrompt, scores: &[TokenScore], writer: &Writer) {
        if scores.len() + 1 != asked.tokens.len() {
            return;
        }
        self.add(writer.token_text(asked.tokens[0]), None, None);
        scores.iter().for_each(|score| self.token(score, writer));
    }

    fn token(&mut self, score: &TokenScore, writer: &Writer) {
        let NamedScore {
            token,
            log_probability,
            likeliest,
        } = NamedScore::of(score, writer);
        let mut best = Map::new();
        // Tokens of the same text: the likelier one stands for both.
        for (token, value) in likeliest {
            best.entry(token).or_insert_with(|| value.into());
        }
        best.entry(token.clone())
            .or_insert_with(|| log_probability.into());
        self.add(token, Some(log_probability), Some(best));
    }

    fn add(&mut self, token: String, value: Option<f64>, best: Option<Map<String, Value>>) {
        self.offsets.push(self.offset);
        self.offset += token.chars().count();
        self.tokens.push(token);
        self.values.push(value);
        self.likeliest.push(best);
    }

    fn value(&self) -> Value {
        json!({
            "tokens": self.tokens, "token_logprobs": self.values, "top_logprobs": self.likeliest,
            "text_offset": self.offsets,
        })
    }
}
