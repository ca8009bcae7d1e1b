//! A conversation: each answer is generated from everything that was said before.

use super::{Prompt, TextWatcher, WriteOptions, Writer, Written};
use crate::TrainError;
use crate::data::Message;

/// A conversation with a model.
///
/// Where the chat template frames prompts, the model reads all earlier turns with every message. Without it
/// each message is a text to be continued, and nothing is remembered.
#[derive(Debug, Default)]
pub struct Conversation {
    /// What the user said and what was answered, the oldest turn first.
    turns: Vec<(String, String)>,
}

/// An answer in a conversation.
#[derive(Debug)]
pub struct Reply {
    /// What was written.
    pub written: Written,
    /// The user's messages of the turns that were forgotten for it, the oldest first: with them the prompt
    /// would not have fitted into the model's context.
    pub forgotten: Vec<String>,
}

impl Conversation {
    /// Forgets all turns.
    pub fn reset(&mut self) {
        self.turns.clear();
    }

    /// Number of the turns that are remembered.
    pub fn turns(&self) -> usize {
        self.turns.len()
    }

    /// The model's answer to a message, which `watch` sees while it grows and can end.
    ///
    /// The oldest turns are forgotten until the prompt leaves room in the model's context for
    /// `options.max_new_tokens`, but for no more than half of the context.
    ///
    /// # Errors
    /// As [`Writer::write`], also if the message alone is longer than the context; then the conversation is
    /// as it was.
    pub fn reply(
        &mut self,
        writer: &Writer,
        message: &str,
        options: &WriteOptions,
        watch: TextWatcher<'_>,
    ) -> Result<Reply, TrainError> {
        let mut first = 0;
        if let Some(most) = writer.max_tokens() {
            let room = options.max_new_tokens.min(most / 2);
            let fits = |first| {
                let prompt = self.prompt(first, message, options);
                Ok::<_, TrainError>(writer.count_tokens(&prompt, options)? + room <= most)
            };
            while first < self.turns.len() && !fits(first)? {
                first += 1;
            }
        }
        let prompt = self.prompt(first, message, options);
        let mut written = writer.write_watched(&[prompt], options, Some(watch))?;
        let written = written.remove(0);
        let forgotten = self.turns.drain(..first).map(|(said, _)| said).collect();
        if options.is_chat {
            self.turns.push((message.into(), written.text.clone()));
        }
        Ok(Reply { written, forgotten })
    }

    /// A message behind all turns from the given one on.
    fn prompt(&self, first: usize, message: &str, options: &WriteOptions) -> Prompt {
        if !options.is_chat {
            return Prompt::Text(message.into());
        }
        let turn = |(said, answer): &(String, String)| {
            [Message::user(&said[..]), Message::assistant(&answer[..])]
        };
        let turns = self.turns[first..].iter().flat_map(turn);
        Prompt::Chat(turns.chain([Message::user(message)]).collect())
    }
}
