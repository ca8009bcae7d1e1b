//! `molora generate --interactive`: a conversation in the terminal, or through pipes.

use std::io::{BufRead as _, ErrorKind, IsTerminal, Write as _};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dialoguer::{BasicHistory, Input};
use molora_kernels::random::Seed;
use molora_models::Finish;

use super::signals::stop_on_interrupt;
use super::terminal::line;
use super::{print_written, say};
use molora_train::generate::{Conversation, Reply, WriteOptions, Writer};

const HELP: &str = "\
/task [NAME]    the task that gates and routers take your messages for; no name: none
/expert [NAME]  let this expert alone answer; no name: the routers choose again
/system [TEXT]  tell the model how to behave; no text: nothing
/reset          forget what was said
/help           this list
/quit           end, as Ctrl-C does here; while an answer is written Ctrl-C stops that
A message that begins with a slash needs a space in front of it.";

/// A conversation with what generates its answers.
pub(super) struct Chat<'a> {
    /// The run or model, as the user has named it.
    pub(super) source: &'a str,
    pub(super) writer: Writer,
    pub(super) options: WriteOptions,
}

impl Chat<'_> {
    /// Reads messages and commands until there are no more, and prints the answers.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let mut messages = Messages::new()?;
        say(&format!("{}: {}", line(self.source), self.kind()));
        let mut conversation = Conversation::default();
        let seed = Seed::new(self.options.seed).child("conversation");
        let mut number = 0;
        while let Some(message) = messages.next()? {
            match message.split_whitespace().next() {
                None => {}
                Some(word) if message.starts_with('/') => {
                    let rest = message[word.len()..].trim();
                    if self.command(word, rest, &mut conversation).is_break() {
                        return Ok(());
                    }
                }
                Some(_) => {
                    self.options.seed = seed.index(number).value();
                    number += 1;
                    self.answer(message.trim(), &mut conversation, &messages.stop)?;
                }
            }
        }
        Ok(())
    }

    fn kind(&self) -> &'static str {
        match self.options.is_chat {
            true => "say something; /help lists commands",
            false => {
                "no chat template frames what you write: each line is continued by itself, without \
                 what was written before; /help lists commands"
            }
        }
    }

    /// Prints the answer to a message while it is written.
    fn answer(
        &self,
        message: &str,
        conversation: &mut Conversation,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        let mut shown = Shown::default();
        let mut failed = None;
        let watch = &mut |_: usize, text: &str| {
            if let Err(error) = shown.grow(certain(text, &self.options.stop)) {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            match stop.load(Ordering::SeqCst) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let reply = conversation.reply(&self.writer, message, &self.options, watch);
        let is_stopped = stop.load(Ordering::SeqCst);
        if let Some(error) = failed {
            return Err(error);
        }
        match reply {
            Ok(reply) => {
                shown.end(&reply.written.text)?;
                self.remark(&reply, is_stopped);
            }
            // The next message may do better.
            Err(error) => say(&format!("error: {}", line(&error.to_string()))),
        }
        Ok(())
    }

    /// Says what of a reply the answer does not show.
    fn remark(&self, reply: &Reply, is_stopped: bool) {
        for message in &reply.forgotten {
            let most = self.writer.max_tokens().unwrap_or_default();
            let message = line(message);
            say(&format!(
                "(forgotten, as the model holds {most} tokens: \"{message}\" and its answer)"
            ));
        }
        match reply.written.finish {
            Finish::MaxNewTokens => {
                let most = self.options.max_new_tokens;
                say(&format!("(ended after --max-new-tokens {most})"));
            }
            Finish::ContextEnd => say("(ended, as the model holds no more tokens)"),
            Finish::Watcher if is_stopped => say("(stopped)"),
            Finish::Watcher | Finish::StopToken => {}
        }
    }

    /// Does what a command says; what it tells goes to standard error.
    fn command(
        &mut self,
        name: &str,
        rest: &str,
        conversation: &mut Conversation,
    ) -> ControlFlow<()> {
        let value = (!rest.is_empty()).then_some(rest);
        match (name, rest) {
            ("/quit", "") => return ControlFlow::Break(()),
            ("/help", "") => say(&self.help()),
            ("/reset", "") => {
                conversation.reset();
                say("forgotten");
            }
            ("/task", _) => match self.writer.set_task(value) {
                Err(error) => say(&format!("error: {}", line(&error.to_string()))),
                Ok(()) if value.is_some() && !self.writer.reads_tasks() => say(&format!(
                    "task {}: it changes no answer, as neither gates nor routers read it",
                    line(rest)
                )),
                Ok(()) => {
                    say(&value.map_or("no task".into(), |name| format!("task {}", line(name))))
                }
            },
            ("/expert", _) => match self.writer.set_expert(value) {
                Err(error) => say(&format!("error: {}", line(&error.to_string()))),
                Ok(()) => say(&value.map_or("the routers choose".into(), |name| {
                    format!("expert {} alone", line(name))
                })),
            },
            ("/system", _) if !self.options.is_chat => {
                say("error: /system needs a chat template; put the text in front of your message");
            }
            ("/system", _) => {
                self.options.system = value.map(str::to_owned);
                say(value.map_or("no system message", |_| "system message set"));
            }
            _ => say(&format!(
                "error: no command `{}`; /help lists those that there are",
                line(format!("{name} {rest}").trim())
            )),
        }
        ControlFlow::Continue(())
    }

    /// The commands, and what they can name.
    fn help(&self) -> String {
        let mut text = HELP.to_owned();
        for (what, names) in [
            ("tasks", self.writer.tasks()),
            ("experts", self.writer.experts()),
        ] {
            if !names.is_empty() {
                text += &format!("\n{what}: {}", line(&names.join(", ")));
            }
        }
        text
    }
}

/// What the user writes: on a terminal with line editing and the history of this conversation, else the lines of
/// standard input.
struct Messages {
    history: Option<BasicHistory>,
    /// Set by Ctrl-C while an answer is written.
    stop: Arc<AtomicBool>,
}

impl Messages {
    fn new() -> anyhow::Result<Self> {
        let is_terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        Ok(Self {
            history: is_terminal.then(|| BasicHistory::new().no_duplicates(true)),
            stop: stop_on_interrupt()?,
        })
    }

    /// The next message; none at the end of the input, or after Ctrl-C. What is no text is named and passed over.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            match self.read() {
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    say(&format!("error: {error}; say it again"));
                }
                other => return Ok(other?),
            }
        }
    }

    /// The next message, or [`ErrorKind::InvalidData`] for one that is not UTF-8.
    fn read(&mut self) -> std::io::Result<Option<String>> {
        let Some(history) = &mut self.history else {
            // Nothing else hears of Ctrl-C while a line is waited for: with the flag set it ends the program.
            self.stop.store(true, Ordering::SeqCst);
            let mut bytes = Vec::new();
            let count = std::io::stdin().lock().read_until(b'\n', &mut bytes);
            self.stop.store(false, Ordering::SeqCst);
            return match count? {
                0 => Ok(None),
                _ => message_of(bytes).map(Some),
            };
        };
        self.stop.store(false, Ordering::SeqCst);
        let input = Input::new().with_prompt("you").allow_empty(true);
        match input.history_with(history).interact_text() {
            Ok(message) => Ok(Some(message)),
            Err(dialoguer::Error::IO(error)) if error.kind() == ErrorKind::Interrupted => {
                say("");
                Ok(None)
            }
            Err(dialoguer::Error::IO(error)) => Err(error),
        }
    }
}

/// The text of a line without its end.
fn message_of(mut line: Vec<u8>) -> std::io::Result<String> {
    for end in *b"\n\r" {
        if line.last() == Some(&end) {
            line.pop();
        }
    }
    String::from_utf8(line).map_err(|error| {
        let byte = error.utf8_error().valid_up_to() + 1;
        let problem = format!("the message is no UTF-8 text: byte {byte}");
        std::io::Error::new(ErrorKind::InvalidData, problem)
    })
}

/// What of a growing text was printed.
#[derive(Default)]
struct Shown(String);

impl Shown {
    /// Prints what is new. A text that begins in another way than what was printed waits for its end.
    fn grow(&mut self, text: &str) -> anyhow::Result<()> {
        let Some(more) = text.strip_prefix(&self.0[..]) else {
            return Ok(());
        };
        if !more.is_empty() {
            print_written(more)?;
            // A line is not shown before its end otherwise.
            drop(std::io::stdout().flush());
            self.0 += more;
        }
        Ok(())
    }

    /// Prints the rest of the whole text, or all of it where it turned out to begin in another way.
    fn end(self, whole: &str) -> anyhow::Result<()> {
        match whole.strip_prefix(&self.0[..]) {
            Some(rest) => print_written(&format!("{rest}\n")),
            None => print_written(&format!("\n{whole}\n")),
        }
    }
}

/// The beginning of a text that what follows cannot change: without the bytes of an unfinished character, and
/// without what may be the beginning of a text that ends it.
fn certain<'a>(text: &'a str, stop: &[String]) -> &'a str {
    let text = text.trim_end_matches('\u{fffd}');
    let held = stop.iter().flat_map(|stop| {
        let ends = stop.char_indices().map(|(end, _)| end);
        ends.filter(|&end| text.ends_with(&stop[..end]))
    });
    &text[..text.len() - held.max().unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_line_without_its_end() {
        let read = |line: &[u8]| message_of(line.to_vec()).map_err(|error| error.to_string());
        assert_eq!(read(b"a b\r\n").as_deref(), Ok("a b"));
        assert_eq!(read(b"a\n").as_deref(), Ok("a"));
        assert_eq!(
            read(b"a\r").as_deref(),
            Ok("a"),
            "the last one may have none"
        );
        let error = read(b"caf\xe9\n").expect_err("Latin-1");
        assert_eq!(error, "the message is no UTF-8 text: byte 4");
    }

    #[test]
    fn what_may_still_change_is_not_shown() {
        let stop = ["</s>".to_owned(), "\n\n".to_owned()];
        assert_eq!(certain("a b", &stop), "a b");
        assert_eq!(certain("a b</", &stop), "a b");
        assert_eq!(certain("a b\n", &stop), "a b");
        assert_eq!(certain("gr\u{fc}\u{fffd}", &[]), "gr\u{fc}");
        assert_eq!(certain("", &stop), "");
    }
}
