//! Text from files on its way to a terminal: names, values and messages may hold anything.

use std::fmt::Write as _;

/// The most characters of one line on standard error; its middle is left out.
const LONGEST: usize = 2000;

/// One line: characters that would steer a terminal or begin another line are escaped, and a long
/// text is shortened.
pub(crate) fn line(text: &str) -> String {
    shorten(&escape(text, ""))
}

/// Several lines: as [`line`], but line breaks and tabs stay, and nothing is left out.
pub(crate) fn lines(text: &str) -> String {
    escape(text, "\n\t")
}

fn escape(text: &str, kept: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match steers(character) && !kept.contains(character) {
            true => write!(out, "{}", character.escape_default()).expect("a String takes all"),
            false => out.push(character),
        }
    }
    out
}

/// Control characters, and those that turn the direction of text or begin a line.
fn steers(character: char) -> bool {
    let turns = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
    );
    let isolates = matches!(character, '\u{2066}'..='\u{2069}');
    character.is_control() || turns || isolates || matches!(character, '\u{2028}' | '\u{2029}')
}

fn shorten(text: &str) -> String {
    let count = text.chars().count();
    if count <= LONGEST {
        return text.into();
    }
    let (head, tail) = (LONGEST * 3 / 5, LONGEST / 5);
    let begin: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    format!(
        "{begin} [{} characters left out] {end}",
        count - head - tail
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        let found = line("a\u{1b}[31m\nerror: b\r\u{9b}2J\u{202e}\u{fc}\t");
        assert_eq!(
            found,
            "a\\u{1b}[31m\\nerror: b\\r\\u{9b}2J\\u{202e}\u{fc}\\t"
        );
        assert_eq!(lines("a\tb\n\u{7}"), "a\tb\n\\u{7}");
    }

    #[test]
    fn long_lines_keep_their_ends() {
        let text = format!("begin{}end", "x".repeat(200_000));
        let short = line(&text);
        assert!(short.len() < 2100, "{}", short.len());
        assert!(short.starts_with("beginx") && short.ends_with("xend"));
        assert!(short.contains("[198408 characters left out]"), "{short}");
        assert_eq!(line("short"), "short");
    }
}
