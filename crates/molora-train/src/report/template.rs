//! Pages from templates: no script, nothing loaded from elsewhere, all text escaped, ASCII only.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value, context};

/// The templates by name; `frame.html` has the body of every page in it.
const TEMPLATES: [(&str, &str); 7] = [
    ("frame.html", include_str!("frame.html")),
    ("parts.html", include_str!("parts.html")),
    ("page.html", include_str!("page.html")),
    ("answers.html", include_str!("answers.html")),
    ("experts.html", include_str!("experts.html")),
    ("routing.html", include_str!("routing.html")),
    ("comparison.html", include_str!("comparison.html")),
];

/// Text that is HTML, or CSS, already.
pub(super) fn safe(text: &str) -> Value {
    Value::from_safe_string(text.into())
}

/// A whole page with the body that a template gives.
///
/// # Panics
/// If the values are not those of the template: both are a part of this crate.
pub(super) fn page(title: &str, template: &str, values: Value) -> String {
    let pages = environment();
    let render = |name: &str, values: Value| {
        let found = pages.get_template(name);
        found
            .and_then(|template| template.render(values))
            .unwrap_or_else(|error| panic!("{name} does not fit its values: {error:#}"))
    };
    let body = render(template, values);
    let frame = context! {
        title => title,
        style => safe(include_str!("style.css")),
        body => safe(&body),
        version => env!("CARGO_PKG_VERSION"),
    };
    as_ascii(&render("frame.html", frame))
}

fn environment() -> Environment<'static> {
    let mut pages = Environment::new();
    pages.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build();
    pages.set_syntax(syntax.expect("the usual delimiters"));
    for (name, text) in TEMPLATES {
        pages
            .add_template(name, text)
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
    pages
}

/// Text with references in the place of other characters, so that no program that hands the page on
/// can garble them, and without control characters.
fn as_ascii(text: &str) -> String {
    let mut ascii = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' | ' '..='~' => ascii.push(character),
            _ if character.is_control() => ascii.push_str("&#xFFFD;"),
            _ => ascii.push_str(&format!("&#x{:X};", u32::from(character))),
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_can_be_read() {
        environment();
    }

    #[test]
    fn other_characters_are_references() {
        assert_eq!(as_ascii("a\t\u{e9}\u{1f600}\n"), "a\t&#xE9;&#x1F600;\n");
        assert_eq!(as_ascii("\0\u{1b}\r"), "&#xFFFD;&#xFFFD;&#xFFFD;");
    }
}
