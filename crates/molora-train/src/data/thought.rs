//! What an assistant thinks before it speaks, in chat templates that have a place for it.
//!
//! Templates differ in where the place is. Qwen3's puts it into the answer. Those of DeepSeek-R1 and its
//! distilled models end what asks for an answer in `<think>`, which they do not show in front of an answer that
//! is there; others ask for an answer with an empty place in front.

use super::Message;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Whether a template has a place for thoughts.
pub(super) fn is_in(template: &str) -> bool {
    template.contains(OPEN) || template.contains(CLOSE)
}

/// Whether what asks for an answer ends where thoughts begin.
pub(super) fn is_open(asked: &str) -> bool {
    asked.trim_end().ends_with(OPEN)
}

/// The answer of a text that may have thoughts in front of it, without them. A text that ends before its thoughts
/// do stays as it is.
pub(super) fn without(text: &str) -> &str {
    text.rsplit(CLOSE).next().unwrap_or(text).trim()
}

/// What a model has to say behind `asked`, which has a place for thoughts at its end, so that it says `message`;
/// `whole` is the template's text with that message, which begins as `asked` does but for the place. None if the
/// two differ in anything else.
pub(super) fn answer(asked: &str, whole: &str, message: &Message) -> Option<String> {
    let place = asked.rfind(OPEN)?;
    let shown = whole
        .strip_prefix(&asked[..place])?
        .trim_start_matches('\n');
    let answer = match asked[place + OPEN.len()..].trim() {
        "" => match shown.strip_prefix(OPEN) {
            Some(rest) => rest.contains(CLOSE).then(|| rest.trim_start().to_owned())?,
            None => format!("{}\n{CLOSE}\n\n{shown}", thought(message)),
        },
        // There are none, so that the message must not have any.
        CLOSE => match shown.strip_prefix(OPEN) {
            Some(rest) => {
                let (thought, rest) = rest.split_once(CLOSE)?;
                let rest = rest.trim_start_matches('\n');
                thought.trim().is_empty().then(|| rest.to_owned())?
            }
            None => shown.to_owned(),
        },
        _ => return None,
    };
    (!answer.is_empty() && !shown.is_empty()).then_some(answer)
}

/// What the assistant thought, as the message says it: by itself, or in front of its content.
fn thought(message: &Message) -> &str {
    let beside = message.more.get("reasoning_content");
    let before = || {
        let (before, _) = message.content.split_once(CLOSE)?;
        Some(before.rsplit(OPEN).next().unwrap_or(before))
    };
    let found = beside.map(|text| &text[..]).or_else(before);
    found.unwrap_or_default().trim_matches('\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_follows_its_thoughts() {
        for (text, expected) in [
            ("<think>\n\n</think>\n\n4", "4"),
            ("2 and 2\n</think>\n\n4 ", "4"),
            ("<think>2 and", "<think>2 and"),
            (" 4 ", "4"),
        ] {
            assert_eq!(without(text), expected);
        }
    }

    #[test]
    fn what_is_said_fills_the_place_that_the_prompt_has() {
        let plain = Message::assistant("2");
        let beside = plain.clone().with("reasoning_content", "\nadd\n");
        let inside = Message::assistant("<think>\nadd\n</think>\n\n2");
        let open = "<a><think>\n";
        for (asked, whole, message, expected) in [
            (open, "<a>2</s>", &plain, Some("\n</think>\n\n2</s>")),
            (open, "<a>2</s>", &beside, Some("add\n</think>\n\n2</s>")),
            (
                open,
                "<a>\n\n2</s>",
                &inside,
                Some("add\n</think>\n\n2</s>"),
            ),
            (
                open,
                "<a><think>add</think>2</s>",
                &inside,
                Some("add</think>2</s>"),
            ),
            (open, "<a><think>add", &inside, None),
            (open, "<b>2</s>", &plain, None),
            (open, "<a>", &plain, None),
            ("<a>", "<b>2", &plain, None),
            ("<think>x</think><a>", "<a>2", &plain, None),
            (
                "<a><think>\n\n</think>\n\n",
                "<a>2</s>",
                &plain,
                Some("2</s>"),
            ),
            (
                "<a><think></think>",
                "<a><think>\n</think>\n2</s>",
                &plain,
                Some("2</s>"),
            ),
            (
                "<a><think></think>",
                "<a><think>add</think>2</s>",
                &inside,
                None,
            ),
        ] {
            let found = answer(asked, whole, message);
            assert_eq!(found.as_deref(), expected, "{asked} {whole}");
        }
    }
}
