//! One text while it is generated.

use std::ops::ControlFlow;

use molora_kernels::random::Seed;
use molora_models::{Finish, ForwardContext, choose, likeliest, log_sum_exp};

use super::request::{Event, Listener, Request, TokenScore};
use crate::generate::Writer;
use crate::generate::writer::stop_at;

/// A request and how far it is.
pub(super) struct Row {
    /// The number of the model that writes it.
    pub(super) model: usize,
    pub(super) request: Request,
    pub(super) context: ForwardContext,
    listener: Box<dyn Listener>,
    pub(super) written: Vec<usize>,
    /// Bytes of the text that the listener has.
    sent: usize,
}

impl Row {
    pub(super) fn new(
        model: usize,
        request: Request,
        context: ForwardContext,
        listener: Box<dyn Listener>,
    ) -> Self {
        Self {
            model,
            request,
            context,
            listener,
            written: Vec::new(),
            sent: 0,
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.listener.is_gone()
    }

    /// The token that the model reads next, after the prompt.
    pub(super) fn newest(&self) -> usize {
        *self
            .written
            .last()
            .expect("a row joins with its first token")
    }

    /// Reports that the prompt was read; whether the row continues.
    pub(super) fn read(&mut self, scores: Vec<TokenScore>, writer: &Writer) -> bool {
        if self.listener.hear(Event::Read(scores)).is_break() {
            return false;
        }
        if self.request.max_new_tokens == 0 {
            self.end(Finish::MaxNewTokens, writer);
            return false;
        }
        true
    }

    /// Adds a token by the scores `[V]`; whether the row continues in a model that reads so many tokens.
    pub(super) fn choose(
        &mut self,
        logits: &mut [f32],
        max_tokens: usize,
        writer: &Writer,
    ) -> bool {
        let step = self.written.len();
        if !logits.iter().all(|score| score.is_finite()) {
            self.fail(&format!("scores for token {step} are not finite"));
            return false;
        }
        let request = &self.request;
        let raw = request.scores.map(|count| (logits.to_vec(), count));
        request
            .penalties
            .apply(logits, &request.asked.tokens, &self.written);
        let seed = Seed::new(request.seed).index(request.number as u64);
        let token = choose(logits, request.sampling.as_ref(), seed.index(step as u64));
        let score = raw.map(|(raw, count)| score(&raw, token, count));
        if request.asked.stop_tokens.contains(&token) {
            let text = String::new();
            if self
                .listener
                .hear(Event::Token { token, text, score })
                .is_continue()
            {
                self.end(Finish::StopToken, writer);
            }
            return false;
        }
        self.written.push(token);
        let tokens = request.asked.tokens.len() + self.written.len();
        let whole = self.text(writer);
        let stopped = stop_at(&whole, &self.request.stop);
        let finish = match stopped {
            Some(_) => Some(Finish::Watcher),
            None if self.written.len() >= self.request.max_new_tokens => Some(Finish::MaxNewTokens),
            None if tokens > max_tokens => Some(Finish::ContextEnd),
            None => None,
        };
        let until = stopped.unwrap_or_else(|| settled(&whole, &self.request.stop));
        let text = self.grown(&whole, until);
        let heard = self.listener.hear(Event::Token { token, text, score });
        match (heard, finish) {
            (ControlFlow::Break(()), _) => false,
            (_, Some(finish)) => {
                self.end(finish, writer);
                false
            }
            _ => true,
        }
    }

    /// Says that the text is complete.
    fn end(&mut self, finish: Finish, writer: &Writer) {
        let mut text = self.text(writer);
        text.truncate(stop_at(&text, &self.request.stop).unwrap_or(text.len()));
        let rest = self.grown(&text, text.len());
        // There is nothing to be stopped any more.
        let _ = self.listener.hear(Event::End { finish, text, rest });
    }

    /// Says that there is no answer.
    pub(super) fn fail(&mut self, why: &str) {
        let _ = self.listener.hear(Event::Failed(why.to_owned()));
    }

    /// What is written. Tokens that are no text say so when the whole is decoded.
    fn text(&self, writer: &Writer) -> String {
        let text = writer.text(&self.written, self.request.asked.left_out);
        text.unwrap_or_default()
    }

    /// What the listener lacks of a text up to a byte.
    fn grown(&mut self, text: &str, until: usize) -> String {
        let grown = text.get(self.sent..until).unwrap_or_default().to_owned();
        self.sent = self.sent.max(until);
        grown
    }
}

/// The score of a token among scores `[V]`, with those of so many likeliest ones.
pub(super) fn score(logits: &[f32], token: usize, count: usize) -> TokenScore {
    let sum = log_sum_exp(logits);
    let of = |token: usize| f64::from(logits[token]) - sum;
    let best = likeliest(logits, count).into_iter();
    TokenScore {
        token,
        log_probability: of(token),
        likeliest: best.map(|token| (token, of(token))).collect(),
    }
}

/// The byte up to which a text stays as it is, whatever follows: before a character that may be cut, and
/// before what may become a text that ends it.
fn settled(text: &str, stop: &[String]) -> usize {
    // What a tokenizer decodes the bytes of half a character to.
    let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
    let begins = |stop: &String| {
        let lengths = stop.char_indices().map(|(length, _)| length).rev();
        let mut lengths = lengths.filter(|length| *length > 0);
        lengths.find(|length| whole.ends_with(&stop[..*length]))
    };
    whole.len() - stop.iter().filter_map(begins).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_still_change_is_held_back() {
        let stop = ["END".to_owned(), "N\u{f6}!".to_owned()];
        let kept = |text: &str| text[..settled(text, &stop)].to_owned();
        assert_eq!(kept("so far"), "so far");
        assert_eq!(kept("the EN"), "the ");
        assert_eq!(kept("the E"), "the ");
        assert_eq!(kept("the ENE"), "the EN");
        assert_eq!(kept("a N\u{f6}"), "a ");
        assert_eq!(kept("half \u{fffd}"), "half ");
        assert_eq!(kept(""), "");
    }

    #[test]
    fn scores_are_log_probabilities() {
        let half = 0.5_f64.ln();
        let found = score(&[0.5_f32.ln(), 0.25_f32.ln(), 0.25_f32.ln()], 1, 2);
        assert_eq!(found.token, 1);
        assert!((found.log_probability - 2.0 * half).abs() < 1e-6);
        let best: Vec<usize> = found.likeliest.iter().map(|(token, _)| *token).collect();
        assert_eq!(best, [0, 1]);
        assert!((found.likeliest[0].1 - half).abs() < 1e-6);
    }
}
