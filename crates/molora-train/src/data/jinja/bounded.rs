//! Bounds of templates: they are programs that come with models and recipes.
//!
//! Steps and output are counted by minijinja. What it does not count, how deep operators nest and how
//! long a text gets that is added to itself, is bounded from outside, see [`contain`].

use std::io::{self, Write};
use std::time::Duration;

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};

use crate::data::contain::{self, Bounds};

/// The longest source in bytes; published templates have up to 30 thousand.
const MAX_SOURCE: usize = 128 << 10;
/// Instructions for one text; a published chat template takes some hundred for each message.
pub(super) const STEPS: u64 = 1_000_000;
/// For one text, which takes less than a millisecond.
const BOUNDS: Bounds = Bounds {
    // Operators nest at most once a byte of the source, and each takes under 2 KiB.
    stack: MAX_SOURCE * 2048,
    memory: 512 << 20,
    time: Duration::from_secs(10),
};

/// Why there is no text.
pub(super) enum Failure {
    /// The template fails on these values.
    Template(Error),
    /// It breaks a bound, in words.
    Bound(String),
}

/// Refuses a source that is too long.
pub(super) fn check_source(source: &str) -> Result<(), String> {
    match source.len() {
        0..=MAX_SOURCE => Ok(()),
        found => Err(format!("has {found} bytes, expected at most {MAX_SOURCE}")),
    }
}

/// The longest text that parts of so many bytes in all may become, in bytes.
fn output_limit(parts: usize, bytes: usize) -> usize {
    (1 << 20) + 8 * bytes + 1024 * parts
}

/// Runs work within [`BOUNDS`].
pub(super) fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    contain::run(BOUNDS, work)
}

/// The text that a template makes of values, which hold so many parts and bytes.
pub(super) fn render(
    environment: &Environment<'static>,
    name: &str,
    values: Value,
    (parts, bytes): (usize, usize),
) -> Result<String, Failure> {
    let limit = output_limit(parts, bytes);
    let template = environment.get_template(name).map_err(Failure::Template)?;
    let mut text = Limited {
        bytes: Vec::new(),
        limit,
        is_over: false,
    };
    let rendered = template.render_captured_to(values, &mut text).map(|_| ());
    match rendered {
        _ if text.is_over => Err(Failure::Bound(format!("writes more than {limit} bytes"))),
        Err(error) if error.kind() == ErrorKind::OutOfFuel => {
            Err(Failure::Bound(format!("takes more than {STEPS} steps")))
        }
        Err(error) => Err(Failure::Template(error)),
        // minijinja writes texts only.
        Ok(()) => String::from_utf8(text.bytes)
            .map_err(|_| Failure::Bound("writes bytes that are no UTF-8 text".into())),
    }
}

/// A text that refuses to become longer than its limit.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
    is_over: bool,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.is_over = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::MAX_SOURCE;
    use crate::data::{ChatError, ChatTemplate, Message};

    fn refusal(source: &str) -> String {
        let template = ChatTemplate::new(
            "t".into(),
            source.into(),
            crate::data::SpecialTokens::of("", ""),
        );
        let result = template.and_then(|chat| chat.render(&[Message::user("Hi")], true));
        let error = result.expect_err("a template without bounds");
        assert!(matches!(error, ChatError::Bound { .. }), "{error}");
        error.to_string()
    }

    fn renders(source: &str) -> Result<String, ChatError> {
        let template = ChatTemplate::new(
            "t".into(),
            source.into(),
            crate::data::SpecialTokens::of("", ""),
        );
        template.and_then(|chat| chat.render(&[Message::user("Hi")], true))
    }

    #[test]
    fn loops_in_loops_end() {
        let loops = "{% for a in range(99999) %}".repeat(3) + &"{% endfor %}".repeat(3);
        let expected = "t: chat template takes more than 1000000 steps for one chat";
        assert_eq!(refusal(&loops), expected);
    }

    #[test]
    fn output_is_bounded() {
        let text = "a".repeat(1000);
        let source = format!("{{% for a in range(9999) %}}{text}{{% endfor %}}");
        let expected = "t: chat template writes more than 1049616 bytes for one chat";
        assert_eq!(refusal(&source), expected);
    }

    #[test]
    fn texts_that_double_are_given_up() {
        let double = "{% set n = namespace(s='0123456789') %}{% for a in range(99) %}\
                      {% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s | length }}";
        let expected = "t: chat template takes more than 512 MiB of memory for one chat";
        let found = refusal(double);
        // Elsewhere memory is not told.
        assert!(found == expected || !cfg!(target_os = "linux"), "{found}");
    }

    #[test]
    fn operators_nest_as_deep_as_a_source_is_long() {
        let count = MAX_SOURCE / 2 - 10;
        for (begin, step) in [
            ("", "-"),
            ("1", "+1"),
            ("1", "~1"),
            ("a", ".a"),
            ("a", "|e"),
        ] {
            let source = format!("{{{{ {begin}{}1 }}}}", step.repeat(count / step.len()));
            // Some are no valid templates; none may overflow the stack.
            let _ = renders(&source);
        }
        for step in ["not ", "{% elif a %}"] {
            let chain = step.repeat(count / step.len());
            let source = match step {
                "not " => format!("{{{{ {chain} a }}}}"),
                _ => format!("{{% if a %}}{chain}{{% endif %}}"),
            };
            let _ = renders(&source);
        }
        let long = " ".repeat(MAX_SOURCE + 1);
        let expected = "t: chat template has 131073 bytes, expected at most 131072";
        assert_eq!(refusal(&long), expected);
    }

    #[test]
    fn values_nest_as_deep_as_steps_allow() {
        let nest = "{% set n = namespace(s=[]) %}{% for b in range(9) %}{% for a in range(9999) %}\
                    {% set n.s = [n.s] %}{% endfor %}{% endfor %}end";
        assert_eq!(renders(nest).expect("a text"), "end");
    }
}
