//! Metrics of all kinds of tasks: of classes, of texts and of numbers.
//!
//! The zero cases follow scikit-learn: macro-F1 averages over the classes that stand in the
//! predictions or the targets, an F1 without any true positive is 0, and a Matthews correlation
//! that is undefined (all predictions or all targets of one class) is 0. An empty split scores 0.

mod counts;
mod number;
mod pattern;
mod text;

use std::fmt;

use crate::data::TaskKind;
use counts::Counts;
pub(crate) use number::{pearson, rmse, spearman};
pub use pattern::{AnswerConfig, AnswerPattern, Take};
pub(crate) use text::exact_match;
#[cfg(test)]
use text::extract_answer;

/// How a task is scored; higher is better.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Metric {
    /// Share of right predictions, in `0..=1`.
    Accuracy,
    /// Unweighted mean of the classes' F1, in `0..=1`.
    MacroF1,
    /// Matthews correlation of any number of classes, in `-1..=1` (Gorodkin 2004, the R_K
    /// statistic; for two classes it is the phi coefficient).
    MatthewsCorrelation,
    /// F1 of one class, in `0..=1`.
    F1 {
        /// Index of the class.
        class: usize,
        /// Its name.
        label: String,
    },
    /// Share of texts that are the expected answer, in `0..=1`; see `exact_match`.
    ExactMatch {
        /// Only what follows this text counts, as `####` in gsm8k.
        marker: Option<String>,
    },
    /// Share of texts in which the expected answer is found, in `0..=1`.
    Extracted(AnswerPattern),
    /// Rank correlation, in `-1..=1`; see `spearman`.
    Spearman,
    /// Correlation, in `-1..=1`; see `pearson`.
    Pearson,
}

/// A metric's text that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetricError {
    /// No metric of that name.
    #[error("unknown metric \"{text}\", expected {expected}")]
    Unknown {
        /// The metric's text.
        text: String,
        /// The metrics of this kind of task.
        expected: &'static str,
    },
    /// `f1_<label>` with a label that the task does not have.
    #[error(
        "metric \"{text}\" names no label of the task, the labels are {}",
        listed(labels)
    )]
    UnknownLabel {
        /// The metric's text.
        text: String,
        /// The task's labels.
        labels: Vec<String>,
    },
}

impl Metric {
    /// Reads the text of `task.json` for a kind of task: as [`Metric::parse`] for classification;
    /// `accuracy` for multiple choice; `exact_match` or `exact match`, either with `of the number
    /// after MARKER` or `after MARKER`, for generation; `spearman` or `pearson` for regression. A
    /// remark may follow in parentheses, behind ` / ` or behind a semicolon.
    ///
    /// # Errors
    /// If this kind of task has no such metric.
    pub fn parse_for(kind: TaskKind, text: &str, labels: &[String]) -> Result<Self, MetricError> {
        let name = without_remark(text);
        let found = match kind {
            TaskKind::Classification => return Self::parse(text, labels),
            TaskKind::MultipleChoice => (name == "accuracy").then_some(Self::Accuracy),
            TaskKind::Generation => Self::exact_match(name),
            TaskKind::Regression => match name {
                "spearman" => Some(Self::Spearman),
                "pearson" => Some(Self::Pearson),
                _ => None,
            },
        };
        found.ok_or_else(|| MetricError::Unknown {
            text: text.into(),
            expected: match kind {
                TaskKind::MultipleChoice => "accuracy",
                TaskKind::Regression => "spearman or pearson",
                _ => "exact_match, or exact_match after a marker as in \"exact_match after ####\"",
            },
        })
    }

    fn exact_match(name: &str) -> Option<Self> {
        let rest = name
            .strip_prefix("exact_match")
            .or_else(|| name.strip_prefix("exact match"))?;
        if rest.is_empty() {
            return Some(Self::ExactMatch { marker: None });
        }
        let (between, marker) = rest.split_once(" after ")?;
        let is_known = matches!(
            between,
            "" | " of the number" | " of the text" | " of the answer"
        );
        let marker = marker.trim();
        (is_known && !marker.is_empty()).then(|| Self::ExactMatch {
            marker: Some(marker.into()),
        })
    }

    /// Reads the text of a classification task: a name, and after it, in parentheses or behind ` / `, any
    /// remark, as in `f1_spam (accuracy second)`.
    ///
    /// A label's spaces may be written as underscores.
    ///
    /// # Errors
    /// If the name, or the label behind `f1_`, is not known.
    pub fn parse(text: &str, labels: &[String]) -> Result<Self, MetricError> {
        // A label may itself hold parentheses: the whole text goes first.
        if let Some(metric) = Self::f1_of(text.trim(), labels) {
            return Ok(metric);
        }
        let name = without_remark(text);
        match name {
            "accuracy" => Ok(Self::Accuracy),
            "macro_f1" => Ok(Self::MacroF1),
            "matthews_correlation" => Ok(Self::MatthewsCorrelation),
            _ if name.starts_with("f1_") => {
                Self::f1_of(name, labels).ok_or_else(|| MetricError::UnknownLabel {
                    text: text.into(),
                    labels: labels.to_vec(),
                })
            }
            _ => Err(MetricError::Unknown {
                text: text.into(),
                expected: "accuracy, macro_f1, matthews_correlation or f1_<label>",
            }),
        }
    }

    fn f1_of(name: &str, labels: &[String]) -> Option<Self> {
        let wanted = name.strip_prefix("f1_")?;
        let exact = labels.iter().position(|label| label == wanted);
        let class = exact.or_else(|| {
            let wanted = wanted.replace(' ', "_");
            labels
                .iter()
                .position(|label| label.replace(' ', "_") == wanted)
        })?;
        Some(Self::F1 {
            class,
            label: labels[class].clone(),
        })
    }

    /// The metric of `predictions` against `targets`, both class indices below `num_classes`. Of
    /// numbered choices, an exact match is a right index and a correlation is one of indices.
    ///
    /// # Panics
    /// If the two differ in length or a class index is too large.
    pub fn score(&self, predictions: &[usize], targets: &[usize], num_classes: usize) -> f64 {
        let counts = Counts::new(predictions, targets, num_classes);
        match self {
            Self::Accuracy | Self::ExactMatch { .. } | Self::Extracted(_) => {
                ratio(counts.hits() as f64, counts.total as f64)
            }
            Self::MacroF1 => counts.macro_f1(),
            Self::MatthewsCorrelation => counts.matthews(),
            Self::F1 { class, .. } => counts.f1(*class),
            Self::Spearman | Self::Pearson => {
                let numbers = |classes: &[usize]| -> Vec<f64> {
                    classes.iter().map(|&class| class as f64).collect()
                };
                self.score_numbers(&numbers(predictions), &numbers(targets))
            }
        }
    }

    /// Share of `predictions` that match the text of the same place in `targets`. The marker of
    /// [`Metric::ExactMatch`] and the pattern of [`Metric::Extracted`] are used; any other metric compares
    /// whole texts.
    ///
    /// # Panics
    /// If the two differ in length.
    pub fn score_texts(&self, predictions: &[String], targets: &[String]) -> f64 {
        assert_eq!(
            predictions.len(),
            targets.len(),
            "one prediction for each target"
        );
        let marker = match self {
            Self::ExactMatch { marker } => marker.as_deref(),
            _ => None,
        };
        let pairs = predictions.iter().zip(targets);
        let hits = pairs.filter(|(prediction, target)| match self {
            Self::Extracted(pattern) => pattern.is_same(prediction, target),
            _ => exact_match(prediction, target, marker),
        });
        ratio(hits.count() as f64, targets.len() as f64)
    }

    /// Correlation of `predictions` with `targets`: Pearson's for [`Metric::Pearson`], otherwise
    /// Spearman's.
    ///
    /// # Panics
    /// If the two differ in length.
    pub fn score_numbers(&self, predictions: &[f64], targets: &[f64]) -> f64 {
        match self {
            Self::Pearson => pearson(predictions, targets),
            _ => spearman(predictions, targets),
        }
    }

    /// The metric of always predicting the most frequent class of `targets` (of equally frequent
    /// ones, the first): the floor that a model has to beat.
    ///
    /// # Panics
    /// If a class index is too large.
    pub fn majority_share(&self, targets: &[usize], num_classes: usize) -> f64 {
        let mut counts = vec![0_usize; num_classes];
        targets.iter().for_each(|&class| counts[class] += 1);
        let most = counts.iter().max().copied().unwrap_or(0);
        let class = counts.iter().position(|&count| count == most).unwrap_or(0);
        self.score(&vec![class; targets.len()], targets, num_classes)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accuracy => f.write_str("accuracy"),
            Self::MacroF1 => f.write_str("macro_f1"),
            Self::MatthewsCorrelation => f.write_str("matthews_correlation"),
            Self::F1 { label, .. } => write!(f, "f1_{}", label.replace(' ', "_")),
            Self::ExactMatch { marker: None } => f.write_str("exact_match"),
            Self::ExactMatch {
                marker: Some(marker),
            } => write!(f, "exact_match after {marker}"),
            Self::Extracted(pattern) => write!(f, "exact_match by {}", pattern.name()),
            Self::Spearman => f.write_str("spearman"),
            Self::Pearson => f.write_str("pearson"),
        }
    }
}

/// Share of right predictions.
///
/// # Panics
/// If the two differ in length.
pub(crate) fn accuracy(predictions: &[usize], targets: &[usize]) -> f64 {
    let classes = predictions
        .iter()
        .chain(targets)
        .max()
        .map_or(0, |class| class + 1);
    Metric::Accuracy.score(predictions, targets, classes)
}

/// A metric's name without what follows it in parentheses, behind ` / ` or behind a semicolon.
fn without_remark(text: &str) -> &str {
    let end = [" (", " / ", ";"]
        .iter()
        .filter_map(|mark| text.find(mark))
        .min();
    text[..end.unwrap_or(text.len())].trim()
}

/// The first ten labels, and how many more there are.
fn listed(labels: &[String]) -> String {
    let first = labels[..labels.len().min(10)].join(", ");
    match labels.len().saturating_sub(10) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// A quotient that is 0 where it is undefined.
fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator == 0.0 {
        0.0
    } else {
        numerator / denominator
    }
}

#[cfg(test)]
mod tests;
