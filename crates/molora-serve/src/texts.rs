//! From the events of an engine to the answers of a request, whole or as they grow.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use molora_models::Finish;
use molora_train::generate::{Event, Listener, Request, TokenScore, Writer};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::models::TextModel;
use crate::worker::Place;

/// What happens to the text of a number.
pub(crate) type Heard = (usize, Event);

/// Passes the events of one text on to whoever answers the request.
struct Line {
    number: usize,
    events: UnboundedSender<Heard>,
    metrics: Arc<Metrics>,
    model: String,
    asked: Instant,
    has_begun: bool,
    _place: Place,
}

impl Listener for Line {
    fn hear(&mut self, event: Event) -> ControlFlow<()> {
        if !self.has_begun && matches!(event, Event::Token { .. } | Event::End { .. }) {
            self.has_begun = true;
            self.metrics.first_token(&self.model, self.asked.elapsed());
        }
        match self.events.send((self.number, event)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    fn is_gone(&self) -> bool {
        self.events.is_closed()
    }
}

/// Asks for texts, whose events come under their numbers.
pub(crate) fn ask(
    model: &TextModel,
    requests: Vec<Request>,
    metrics: &Arc<Metrics>,
) -> Result<UnboundedReceiver<Heard>, ApiError> {
    let places = model.room.take(requests.len())?;
    let (events, heard) = unbounded_channel();
    for ((number, request), place) in requests.into_iter().enumerate().zip(places) {
        let line = Line {
            number,
            events: events.clone(),
            metrics: Arc::clone(metrics),
            model: model.name.clone(),
            asked: Instant::now(),
            has_begun: false,
            _place: place,
        };
        model.ask(request, Box::new(line))?;
    }
    Ok(heard)
}

/// A complete text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Text {
    pub(crate) text: String,
    pub(crate) tokens: usize,
    pub(crate) scores: Vec<TokenScore>,
    pub(crate) prompt_scores: Vec<TokenScore>,
    pub(crate) finish: Option<Finish>,
}

/// Waits for all texts.
pub(crate) async fn gather(
    mut heard: UnboundedReceiver<Heard>,
    count: usize,
) -> Result<Vec<Text>, ApiError> {
    let mut texts = vec![Text::default(); count];
    while let Some((number, event)) = heard.recv().await {
        let found = &mut texts[number];
        match event {
            Event::Read(scores) => found.prompt_scores = scores,
            Event::Token { score, .. } => {
                found.tokens += 1;
                found.scores.extend(score);
            }
            Event::End { finish, text, .. } => {
                found.text = text;
                found.finish = Some(finish);
            }
            Event::Failed(why) => return Err(ApiError::fault(why)),
        }
    }
    match texts.iter().all(|text| text.finish.is_some()) {
        true => Ok(texts),
        false => Err(ApiError::fault("the model's thread has ended")),
    }
}

/// OpenAI's word for why a text ended.
pub(crate) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::StopToken | Finish::Watcher => "stop",
        Finish::MaxNewTokens | Finish::ContextEnd => "length",
    }
}

/// A score with the texts of its tokens.
#[derive(Debug, Clone)]
pub(crate) struct NamedScore {
    pub(crate) token: String,
    pub(crate) log_probability: f64,
    pub(crate) likeliest: Vec<(String, f64)>,
}

impl NamedScore {
    pub(crate) fn of(score: &TokenScore, writer: &Writer) -> Self {
        let name = |token: usize| writer.token_text(token);
        let likeliest = score.likeliest.iter();
        Self {
            token: name(score.token),
            log_probability: score.log_probability,
            likeliest: likeliest
                .map(|&(token, value)| (name(token), value))
                .collect(),
        }
    }
}
