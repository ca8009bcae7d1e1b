//! What minijinja has no syntax for, rewritten in the source of a template, line by line the same.

/// The source with blocks of `generation`, which mark an assistant's words, as plain blocks, and with
/// Python's `'..' % values` as the filter `format`.
pub(super) fn rewritten(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        out += &rest[..start];
        let tag = &rest[start..];
        let length = match tag.get(..2) {
            Some("{%") => expression(tag, "%}"),
            Some("{{") => expression(tag, "}}"),
            Some("{#") => tag.find("#}").map_or(tag.len(), |end| end + 2),
            _ => 1,
        };
        let (tag, after) = tag.split_at(length);
        out += &match tag.get(..2) {
            Some("{%") => formatted(&without_generation(tag)),
            Some("{{") => formatted(tag),
            _ => tag.to_owned(),
        };
        rest = after;
    }
    out + rest
}

/// Length of a tag whose end is no part of a string.
fn expression(tag: &str, end: &str) -> usize {
    let mut at = 2;
    while let Some(letter) = tag[at..].chars().next() {
        if tag[at..].starts_with(end) {
            return at + end.len();
        }
        at += match letter {
            '"' | '\'' => string(&tag[at..]),
            letter => letter.len_utf8(),
        };
    }
    tag.len()
}

/// Length of the string that a text begins with, quotes included.
fn string(text: &str) -> usize {
    let quote = text.chars().next();
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => drop(letters.next()),
            letter if Some(letter) == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn without_generation(tag: &str) -> String {
    match tag.trim_matches(['{', '%', '}', '-', '+']).trim() {
        "generation" => tag.replace("generation", "with      "),
        "endgeneration" => tag.replace("endgeneration", "endwith      "),
        _ => tag.to_owned(),
    }
}

/// `'..' % value` and `'..' % (value, value)` as `'..'|format(value)`.
fn formatted(tag: &str) -> String {
    let (mut out, mut at) = (String::new(), 0);
    while let Some(letter) = tag[at..].chars().next() {
        let length = match letter {
            '"' | '\'' => string(&tag[at..]),
            letter => letter.len_utf8(),
        };
        out += &tag[at..at + length];
        at += length;
        let behind = tag[at..].trim_start();
        if !matches!(letter, '"' | '\'') || !behind.starts_with('%') || behind.starts_with("%}") {
            continue;
        }
        let value = behind[1..].trim_start();
        let length = operand(value);
        if length == 0 {
            continue;
        }
        let values = &value[..length];
        let inner = values
            .strip_prefix('(')
            .and_then(|text| text.strip_suffix(')'));
        out += &format!(
            "|format({})",
            inner.unwrap_or(values).trim_end_matches([',', ' '])
        );
        at = tag.len() - value.len() + length;
    }
    out
}

/// Length of a value: a string, or a name or number with what follows it without a space.
fn operand(text: &str) -> usize {
    let mut at = 0;
    while let Some(letter) = text[at..].chars().next() {
        at += match letter {
            '(' | '[' => brackets(&text[at..]),
            '"' | '\'' if at == 0 => string(text),
            '.' if at > 0 => 1,
            letter if letter.is_alphanumeric() || letter == '_' => letter.len_utf8(),
            _ => break,
        };
        // What stands in parentheses first is a list of values.
        if text.starts_with('(') {
            break;
        }
    }
    at
}

/// Length of the brackets that a text begins with.
fn brackets(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while let Some(letter) = text[at..].chars().next() {
        at += match letter {
            '"' | '\'' => string(&text[at..]),
            letter => letter.len_utf8(),
        };
        match letter {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_generation_are_plain_blocks() {
        let source = "a {%- generation -%} b {% endgeneration %} generation {# % #}";
        let expected = "a {%- with       -%} b {% endwith       %} generation {# % #}";
        assert_eq!(rewritten(source), expected);
    }

    #[test]
    fn python_formats_become_a_filter() {
        for (source, expected) in [
            (
                "{{ '%s: %s' % (a, b['c, d']) }}",
                "{{ '%s: %s'|format(a, b['c, d']) }}",
            ),
            (
                "{{ '%s' % m.role + 'x' }}",
                "{{ '%s'|format(m.role) + 'x' }}",
            ),
            (
                "{% set x = \"%d\" % n[0]|int %}",
                "{% set x = \"%d\"|format(n[0])|int %}",
            ),
            ("{{ '%s' % (a,) }}", "{{ '%s'|format(a) }}"),
            ("{{ '%s' % '\u{e9}' }}", "{{ '%s'|format('\u{e9}') }}"),
        ] {
            assert_eq!(rewritten(source), expected);
        }
        // No format: numbers, the end of a tag, ends of tags in strings, text outside of tags.
        for same in [
            "{{ a % 2 }}{% if 'x' %}{% endif %}",
            "{{ '%}' + \"}}\" }}'a' % b {",
            "{% if x == 'a'%}'{% endif %}",
            "{{ 'open",
        ] {
            assert_eq!(rewritten(same), same);
        }
    }
}
