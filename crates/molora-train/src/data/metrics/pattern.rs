//! The answer that stands in a text, found by a regular expression or by words.

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which of several matches counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// The first.
    #[default]
    First,
    /// The last.
    Last,
}

/// How the answer is found in a text: key `answer` of `task.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum AnswerConfig {
    /// What a regular expression matches.
    Regex {
        /// The expression, of the syntax of the crate `regex`.
        pattern: String,
        /// Looked for in texts that the expression does not match.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        otherwise: Option<String>,
        /// The group that is the answer; the whole match where it is not given or is 0.
        #[serde(default, skip_serializing_if = "is_whole")]
        group: usize,
        /// Which match counts.
        #[serde(default)]
        take: Take,
    },
    /// One of some words, as a whole word in letters of either case; of two that begin at the same place,
    /// the longer one.
    Contains {
        /// The words; the task's labels where there are none.
        #[serde(default)]
        words: Vec<String>,
        /// Which word counts.
        #[serde(default)]
        take: Take,
    },
}

fn is_whole(group: &usize) -> bool {
    *group == 0
}

/// A way to find an answer that is ready for use.
#[derive(Debug, Clone)]
pub struct AnswerPattern {
    config: AnswerConfig,
    /// Tried in turn.
    expressions: Vec<Regex>,
    group: usize,
    take: Take,
    ignores_case: bool,
}

impl PartialEq for AnswerPattern {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
    }
}

impl Eq for AnswerPattern {}

impl AnswerPattern {
    /// Prepares a way to find answers; `labels` are the words where it has none of its own.
    ///
    /// # Errors
    /// What is wrong, in words: a broken expression, a group that it does not have, or no word.
    pub fn new(config: &AnswerConfig, labels: &[String]) -> Result<Self, String> {
        let (sources, group, take, ignores_case) = match config {
            AnswerConfig::Regex {
                pattern,
                otherwise,
                group,
                take,
            } => {
                let sources = [Some(pattern.clone()), otherwise.clone()];
                let sources: Vec<String> = sources.into_iter().flatten().collect();
                (sources, *group, *take, false)
            }
            AnswerConfig::Contains { words, take } => {
                let words = if words.is_empty() { labels } else { words };
                (vec![alternatives(words)?], 0, *take, true)
            }
        };
        let expression = |source: &String| -> Result<Regex, String> {
            let found = Regex::new(source).map_err(|error| one_line(source, &error))?;
            match found.captures_len() {
                groups if group < groups => Ok(found),
                groups => Err(format!(
                    "group is {group}, but \"{source}\" has {} groups",
                    groups - 1
                )),
            }
        };
        Ok(Self {
            config: config.clone(),
            expressions: sources.iter().map(expression).collect::<Result<_, _>>()?,
            group,
            take,
            ignores_case,
        })
    }

    /// The answer in a text, if there is one.
    pub fn find(&self, text: &str) -> Option<String> {
        let found = self.expressions.iter().find_map(|one| self.by(one, text))?;
        Some(match self.ignores_case {
            true => found.to_lowercase(),
            false => found.to_owned(),
        })
    }

    fn by<'t>(&self, expression: &Regex, text: &'t str) -> Option<&'t str> {
        let mut all = expression.captures_iter(text);
        let captures = match self.take {
            Take::First => all.next(),
            Take::Last => all.last(),
        };
        // None for a group that took no part in the match.
        Some(captures?.get(self.group)?.as_str())
    }

    /// Whether a text gives the same answer as another, which is its own answer where none is found in it.
    pub(super) fn is_same(&self, prediction: &str, target: &str) -> bool {
        let own = || match self.ignores_case {
            true => target.trim().to_lowercase(),
            false => target.trim().to_owned(),
        };
        let target = self.find(target).unwrap_or_else(own);
        self.find(prediction).is_some_and(|found| found == target)
    }

    /// `regex` or `contains`.
    pub(super) fn name(&self) -> &'static str {
        match self.config {
            AnswerConfig::Regex { .. } => "regex",
            AnswerConfig::Contains { .. } => "contains",
        }
    }
}

/// An expression for any of some words, the longest first.
fn alternatives(words: &[String]) -> Result<String, String> {
    let mut words: Vec<&str> = words.iter().map(|word| word.trim()).collect();
    words.retain(|word| !word.is_empty());
    if words.is_empty() {
        return Err("contains has no words, and the task no labels".into());
    }
    words.sort_by_key(|word| std::cmp::Reverse(word.chars().count()));
    let edge = |c: Option<char>| match c {
        Some(c) if c.is_alphanumeric() || c == '_' => r"\b",
        _ => "",
    };
    let whole = |word: &str| {
        let (front, back) = (edge(word.chars().next()), edge(word.chars().last()));
        format!("{front}{}{back}", regex::escape(word))
    };
    let all: Vec<String> = words.into_iter().map(whole).collect();
    Ok(format!("(?i)(?:{})", all.join("|")))
}

/// The last line of the message, which says what is wrong; the lines before it draw where.
fn one_line(source: &str, error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    let last = last.trim().trim_start_matches("error: ");
    format!("\"{source}\" is no regular expression: {last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(config: &str) -> Result<AnswerPattern, String> {
        let config: AnswerConfig = serde_json::from_str(config).expect("a way");
        let labels = ["entailment", "not_entailment"].map(String::from);
        AnswerPattern::new(&config, &labels)
    }

    fn found(config: &str, text: &str) -> Option<String> {
        pattern(config).expect("valid").find(text)
    }

    /// By hand: Python's `re.findall(r"true|false", text)[0]`, and `[-1]`.
    #[test]
    fn the_first_or_the_last_match_counts() {
        let first = r#"{"regex": {"pattern": "true|false"}}"#;
        let last = r#"{"regex": {"pattern": "true|false", "take": "last"}}"#;
        let text = "the correct answer is false, not true";
        assert_eq!(found(first, text).as_deref(), Some("false"));
        assert_eq!(found(last, text).as_deref(), Some("true"));
        assert_eq!(found(first, "True"), None, "letters of the other case");
        assert_eq!(
            found(first, "untrue").as_deref(),
            Some("true"),
            "inside a word"
        );
    }

    /// By hand, as SAMoRA's script reads answers: `answer1` to `answer5`, else the first bare digit.
    #[test]
    fn a_group_and_a_second_expression() {
        let way = r#"{"regex": {"pattern": "answer([1-5])", "otherwise": "([1-4])", "group": 1}}"#;
        for (text, expected) in [
            ("the correct answer is answer3", Some("3")),
            ("2 of 4 say answer5", Some("5")),
            ("It is 2.", Some("2")),
            ("answer9", None),
        ] {
            assert_eq!(found(way, text).as_deref(), expected, "{text}");
        }
        let pattern = pattern(way).expect("valid");
        assert!(pattern.is_same("3", "the correct answer is answer3"));
        assert!(!pattern.is_same("none", "the correct answer is answer3"));
    }

    #[test]
    fn words_are_whole_and_the_longer_one_wins() {
        let first = r#"{"contains": {}}"#;
        let last = r#"{"contains": {"take": "last"}}"#;
        let text = "Not_Entailment, since entailment would ...";
        assert_eq!(found(first, text).as_deref(), Some("not_entailment"));
        assert_eq!(found(last, text).as_deref(), Some("entailment"));
        let short = r#"{"contains": {"words": ["no", "not sure", "C++"]}}"#;
        assert_eq!(found(short, "I know"), None);
        assert_eq!(found(short, "Not sure, no.").as_deref(), Some("not sure"));
        assert_eq!(found(short, "in c++.").as_deref(), Some("c++"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (config, expected) in [
            (
                r#"{"regex": {"pattern": "("}}"#,
                "\"(\" is no regular expression: unclosed group",
            ),
            (
                r#"{"regex": {"pattern": "a(b)", "group": 2}}"#,
                "group is 2, but \"a(b)\" has 1 groups",
            ),
        ] {
            assert_eq!(pattern(config).expect_err(config), expected);
        }
        let none = AnswerConfig::Contains {
            words: Vec::new(),
            take: Take::First,
        };
        let error = AnswerPattern::new(&none, &[]).expect_err("no words");
        assert!(error.contains("has no words"), "{error}");
    }
}
