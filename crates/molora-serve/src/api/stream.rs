//! Answers that are sent while they are written: server-sent events that end in `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream::unfold;
use molora_train::generate::Event;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{Frame, usage};
use crate::error::ApiError;
use crate::texts::Heard;

/// Turns the events of one text into choices of an answer.
pub(super) trait Speak: Send + 'static {
    /// The choices to be sent for an event of the text of a number, in their order.
    fn choices(&mut self, number: usize, event: Event) -> Vec<Value>;
}

/// A stream and how far it is.
struct Stream<Speaker> {
    heard: UnboundedReceiver<Heard>,
    speaker: Speaker,
    frame: Frame,
    /// Tokens of the prompts, if the usage is told at the end.
    usage: Option<usize>,
    written: usize,
    /// Texts that are not complete.
    open: usize,
    lines: VecDeque<String>,
    has_ended: bool,
}

/// The response that sends the events of so many texts.
pub(super) fn respond(
    heard: UnboundedReceiver<Heard>,
    texts: usize,
    speaker: impl Speak,
    frame: Frame,
    usage: Option<usize>,
) -> Response {
    let stream = Stream {
        heard,
        speaker,
        frame,
        usage,
        written: 0,
        open: texts,
        lines: VecDeque::new(),
        has_ended: false,
    };
    let stream = unfold(stream, |mut stream| async move {
        let line = stream.next().await?;
        Some((Ok::<_, Infallible>(line), stream))
    });
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

impl<Speaker: Speak> Stream<Speaker> {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.has_ended {
                return None;
            }
            match self.heard.recv().await {
                Some((number, event)) => self.hear(number, event),
                None => self.fail("the model's thread has ended"),
            }
        }
    }

    fn hear(&mut self, number: usize, event: Event) {
        match &event {
            Event::Failed(why) => return self.fail(why),
            Event::Token { .. } => self.written += 1,
            Event::End { .. } => self.open -= 1,
            Event::Read(_) => {}
        }
        for choice in self.speaker.choices(number, event) {
            let mut chunk = self.frame.of(self.frame.object, vec![choice]);
            if self.usage.is_some() {
                chunk["usage"] = Value::Null;
            }
            self.say(&chunk);
        }
        if self.open == 0 {
            if let Some(prompt) = self.usage {
                let mut chunk = self.frame.of(self.frame.object, Vec::new());
                chunk["usage"] = usage(prompt, self.written);
                self.say(&chunk);
            }
            self.say(&"[DONE]");
        }
    }

    fn say(&mut self, data: &dyn std::fmt::Display) {
        let line = format!("data: {data}\n\n");
        self.has_ended |= line == "data: [DONE]\n\n";
        self.lines.push_back(line);
    }

    /// The status was sent already: the error is what remains to be said.
    fn fail(&mut self, why: &str) {
        self.say(&json!(ApiError::fault(why).body()));
        self.has_ended = true;
    }
}
