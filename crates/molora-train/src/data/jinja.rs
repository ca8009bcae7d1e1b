//! Templates in Jinja, with what transformers gives chat templates beside Jinja itself, so that they
//! render the same text here.

mod bounded;
mod source;
mod template;

use std::borrow::Cow;
use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};

use source::rewritten;
pub(super) use template::{Template, TemplateProblem};

/// Adds functions, filters and the way in which values become text.
fn set_up(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(format);
    environment.add_filter("tojson", to_json);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function("raise_exception", |text: String| -> Result<String, Error> {
        Err(invalid(text))
    });
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}

/// The local time by a format of C's `strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = jiff::Zoned::now();
    jiff::fmt::strtime::format(format, &now)
        .map_err(|error| invalid(format!("strftime_now({format:?}): {error}")))
}

/// Values as Python prints them.
fn format(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Seq | ValueKind::Map => {
            let mut text = String::new();
            Style::PYTHON.write(&mut text, value, 0)?;
            out.write_str(&text).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Python's `json.dumps` with the options that transformers has; nothing but ASCII where that is asked.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let is_ascii: Option<bool> = options.get("ensure_ascii")?;
    let indent: Option<Value> = options.get("indent")?;
    let indent = indent.filter(|indent| !indent.is_none());
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorts: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let indent = match indent {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(MOST_INDENT)),
        }),
    };
    let [item, key] = match separators.as_deref() {
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => return Err(invalid("tojson: separators holds two texts")),
        None if indent.is_some() => [",".into(), ": ".into()],
        None => [", ".into(), ": ".into()],
    };
    let style = Style {
        is_json: true,
        is_ascii: is_ascii.unwrap_or(false),
        sorts: sorts.unwrap_or(false),
        indent,
        separators: [item.into(), key.into()],
    };
    let mut text = String::new();
    style.write(&mut text, value, 0)?;
    Ok(Value::from(text))
}

/// Widest indent, in spaces.
const MOST_INDENT: usize = 64;

/// How a value is written.
struct Style {
    /// JSON, or else Python's own text.
    is_json: bool,
    is_ascii: bool,
    sorts: bool,
    indent: Option<String>,
    /// Between items, and between a key and its value.
    separators: [Cow<'static, str>; 2],
}

impl Style {
    const PYTHON: Self = Self {
        is_json: false,
        is_ascii: false,
        sorts: false,
        indent: None,
        separators: [Cow::Borrowed(", "), Cow::Borrowed(": ")],
    };

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        let [none, yes, no] = match self.is_json {
            true => ["null", "true", "false"],
            false => ["None", "True", "False"],
        };
        match value.kind() {
            ValueKind::None => *out += none,
            ValueKind::Bool => *out += if value.is_true() { yes } else { no },
            ValueKind::Number => write!(out, "{value}").map_err(Error::from)?,
            ValueKind::String => self.write_text(out, value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_all(out, ['[', ']'], &items, depth, |out, item| {
                    self.write(out, item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorts {
                    keys.sort();
                }
                self.write_all(out, ['{', '}'], &keys, depth, |out, key| {
                    self.write_key(out, key)?;
                    *out += &self.separators[1];
                    self.write(out, &value.get_item(key)?, depth + 1)
                })?;
            }
            other => return Err(invalid(format!("tojson: {other} is no JSON"))),
        }
        Ok(())
    }

    /// Keys of JSON are texts.
    fn write_key(&self, out: &mut String, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.write(out, key, 0),
            _ if !self.is_json => self.write(out, key, 0),
            _ => {
                let mut text = String::new();
                self.write(&mut text, key, 0)?;
                self.write_text(out, &text)
            }
        }
    }

    fn write_all(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut String, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                *out += "\n";
                *out += &indent.repeat(depth);
            }
        };
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                *out += &self.separators[0];
            }
            line(out, depth + 1);
            write(out, item)?;
        }
        if !items.is_empty() {
            line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn write_text(&self, out: &mut String, text: &str) -> Result<(), Error> {
        if self.is_json {
            let json = serde_json::to_string(text).map_err(|error| invalid(error.to_string()))?;
            return match self.is_ascii {
                true => write_ascii(out, &json).map_err(Error::from),
                false => {
                    *out += &json;
                    Ok(())
                }
            };
        }
        let has_double = text.contains('"');
        let quote = if text.contains('\'') && !has_double {
            '"'
        } else {
            '\''
        };
        out.push(quote);
        for letter in text.chars() {
            match letter {
                '\n' => *out += "\\n",
                '\r' => *out += "\\r",
                '\t' => *out += "\\t",
                '\\' => *out += "\\\\",
                letter if letter == quote => out.extend(['\\', letter]),
                letter => out.push(letter),
            }
        }
        out.push(quote);
        Ok(())
    }
}

/// Letters beyond ASCII as `\uXXXX`, in pairs where one has no room.
fn write_ascii(out: &mut String, json: &str) -> std::fmt::Result {
    let mut units = [0; 2];
    for letter in json.chars() {
        match letter.is_ascii() && letter != '\u{7f}' {
            true => out.push(letter),
            false => {
                for unit in letter.encode_utf16(&mut units) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        let mut environment = Environment::new();
        set_up(&mut environment);
        let values = minijinja::context! {
            text => "a <b> & '\u{e9}\u{1f600}'", nested => minijinja::context! { z => 1, a => vec![true] },
        };
        let source = rewritten(source);
        let text = environment.render_str(&source, values);
        text.unwrap_or_else(|error| panic!("{source}: {error:#}"))
    }

    #[test]
    fn json_is_that_of_python() {
        for (source, expected) in [
            ("{{ text | tojson }}", "\"a <b> & '\u{e9}\u{1f600}'\""),
            (
                "{{ text | tojson(ensure_ascii=False) }}",
                "\"a <b> & '\u{e9}\u{1f600}'\"",
            ),
            (
                "{{ text | tojson(ensure_ascii=True) }}",
                r#""a <b> & '\u00e9\ud83d\ude00'""#,
            ),
            (
                "{{ {'z': 1, 'a': [true, none]} | tojson }}",
                r#"{"z": 1, "a": [true, null]}"#,
            ),
            (
                "{{ {'z': 1, 'a': 2.5} | tojson(sort_keys=true) }}",
                r#"{"a": 2.5, "z": 1}"#,
            ),
            (
                "{{ {'z': [1, 2], 'a': {}} | tojson(separators=(',', ':')) }}",
                r#"{"z":[1,2],"a":{}}"#,
            ),
            (
                "{{ {'z': [1, []]} | tojson(indent=2) }}",
                "{\n  \"z\": [\n    1,\n    []\n  ]\n}",
            ),
        ] {
            assert_eq!(render(source), expected, "{source}");
        }
    }

    #[test]
    fn values_are_printed_as_in_python() {
        for (source, expected) in [
            ("{{ none }} {{ true }} {{ 1 == 2 }}", "None True False"),
            ("{{ ['a', \"it's\", 1] }}", "['a', \"it's\", 1]"),
            ("{{ {'a': none} }}", "{'a': None}"),
            ("{{ missing }}{{ 2.5 }}{{ 'x<' }}", "2.5x<"),
        ] {
            assert_eq!(render(source), expected, "{source}");
        }
    }

    #[test]
    fn loops_end_early_and_generation_marks_nothing() {
        let source =
            "{% for n in [1, 2, 3] %}{% if n == 2 %}{% continue %}{% endif %}{{ n }}{% endfor %}";
        assert_eq!(render(source), "13");
        assert_eq!(
            render("{% for n in [1, 2] %}{{ n }}{% break %}{% endfor %}"),
            "1"
        );
        let source = "a {%- generation -%} b {% endgeneration %} generation";
        assert_eq!(render(source), "ab  generation");
        assert_eq!(render("{{ '%s is %d' % (text[0], 3) }}"), "a is 3");
    }

    #[test]
    fn the_date_is_that_of_today() {
        let now = jiff::Zoned::now();
        let year = now.year().to_string();
        assert!(render("{{ strftime_now('%Y') }}").starts_with(&year[..3]));
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}").len(), 11);
    }
}
