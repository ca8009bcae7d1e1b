//! How PEFT's configuration picks modules: lists of names, regular expressions, layers.

use std::path::Path;

// Python's expressions look around, which the `regex` crate refuses.
use fancy_regex::Regex;

use crate::ModelError;

/// Modules by their paths.
#[derive(Debug, Clone)]
pub enum Targets {
    /// A module whose path is one of the names or ends with `.` and one of them.
    Names(Vec<String>),
    /// A module whose whole path matches.
    Pattern(Box<Pattern>),
    /// Every linear layer but the head.
    AllLinear,
}

/// A regular expression with the text that it was read from.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Reads an expression of the field `field`; `wrap` gives what surrounds it.
    pub(super) fn new(
        text: &str,
        wrap: impl FnOnce(&str) -> String,
        (path, field): (&Path, &str),
    ) -> Result<Self, ModelError> {
        let regex = Regex::new(&wrap(text)).map_err(|error| {
            let error = error.to_string().replace('\n', " ");
            let problem = format!("{field} has the regular expression `{text}`: {error}");
            ModelError::file(path, problem)
        })?;
        Ok(Self {
            text: text.into(),
            regex,
        })
    }

    /// An expression that matches the whole path.
    pub(super) fn whole(text: &str, place: (&Path, &str)) -> Result<Self, ModelError> {
        Self::new(text, |text| format!("^(?:{text})$"), place)
    }

    /// What was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a path matches. An expression that gives up after too many steps does not; see
    /// `gives_up`.
    pub fn matches(&self, path: &str) -> bool {
        self.regex.is_match(path).unwrap_or(false)
    }

    /// Whether an expression takes so many steps on a path that it is given up.
    pub(super) fn gives_up(&self, path: &str) -> bool {
        self.regex.is_match(path).is_err()
    }

    /// The number that the first group matches.
    pub(super) fn number(&self, path: &str) -> Option<usize> {
        let captures = self.regex.captures(path).ok()??;
        captures.get(1)?.as_str().parse().ok()
    }
}

impl Targets {
    /// Whether a module is meant; `is_linear` is false for embeddings and the head.
    pub fn matches(&self, path: &str, is_linear: bool) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|name| ends_with(path, name)),
            Self::Pattern(pattern) => pattern.matches(path),
            Self::AllLinear => is_linear,
        }
    }
}

impl Targets {
    /// The expression, if this is one.
    pub(super) fn pattern(&self) -> Option<&Pattern> {
        match self {
            Self::Pattern(pattern) => Some(pattern),
            Self::Names(_) | Self::AllLinear => None,
        }
    }
}

/// Whether a path is a name or ends with `.` and the name.
pub(crate) fn ends_with(path: &str, name: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: (&str, &str) = ("adapter_config.json", "target_modules");

    fn whole(text: &str) -> Result<Pattern, ModelError> {
        Pattern::whole(text, (PLACE.0.as_ref(), PLACE.1))
    }

    #[test]
    fn names_match_ends_and_expressions_match_all() {
        let path = "model.layers.1.self_attn.q_proj";
        let names = |name: &str| Targets::Names(vec![name.into()]);
        assert!(names("q_proj").matches(path, true));
        assert!(names("self_attn.q_proj").matches(path, true));
        assert!(names(path).matches(path, true));
        assert!(!names("_proj").matches(path, true));
        assert!(whole(r".*\.(q|v)_proj").expect("valid").matches(path));
        assert!(!whole("q_proj").expect("valid").matches(path));
        let around = whole(r".*layers\.(?!0\.).*q_proj").expect("looks ahead");
        assert!(around.matches(path) && !around.matches("model.layers.0.self_attn.q_proj"));
        assert!(Targets::AllLinear.matches(path, true));
        assert!(!Targets::AllLinear.matches("lm_head", false));
    }

    #[test]
    fn a_bad_expression_names_file_and_field() {
        let text = whole("(").expect_err("open").to_string();
        assert!(
            text.starts_with("adapter_config.json: target_modules has"),
            "{text}"
        );
        assert!(!text.contains('\n'), "one line: {text}");
    }
}
