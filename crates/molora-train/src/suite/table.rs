//! The table of a reproduction, for the terminal and in Markdown. ASCII only.

use comfy_table::presets::{ASCII_BORDERS_ONLY_CONDENSED, ASCII_MARKDOWN};

use super::format::PaperRow;
use super::reproduce::Reproduction;
use crate::report::format::last_part;
use crate::report::standing::spread_text;
use crate::report::table::{aligned, markdown, with_total};

/// The papers' scores beside ours, other rows of the papers, and what differs.
pub fn tables(reproduction: &Reproduction) -> String {
    let (header, rows) = rows_of(reproduction);
    let table = with_total(aligned(ASCII_BORDERS_ONLY_CONDENSED, header, rows, 2));
    format!(
        "{} (scores in %, ours: mean +- standard deviation over seeds)\n{table}\n\n{}",
        reproduction.title,
        notes(reproduction)
    )
}

/// The content of `reproduce.md`.
pub(super) fn document(reproduction: &Reproduction) -> String {
    let (header, rows) = rows_of(reproduction);
    let table = markdown(aligned(ASCII_MARKDOWN, header, rows, 2), 2);
    format!(
        "# {}\n\nSuite {}. Seeds: {}. Model {}, molora {}. Scores in %; ours are the mean +- the standard \
         deviation over seeds.\n\n{table}\n\n{}\n",
        reproduction.title,
        reproduction.suite,
        reproduction.seeds,
        last_part(&reproduction.model),
        reproduction.molora_version,
        notes(reproduction)
    )
}

/// Heads of the columns, and a row for each task, each of several test splits, and the mean: of every recipe what
/// the papers print, and then ours.
pub fn rows_of(reproduction: &Reproduction) -> (Vec<String>, Vec<Vec<String>>) {
    let sources = sources(reproduction);
    let mut header = vec!["task".to_owned(), "metric".to_owned()];
    let mut columns: Vec<Column<'_>> = Vec::new();
    for recipe in &reproduction.recipes {
        let of_recipe = |row: &&PaperRow| row.recipe.as_ref() == Some(recipe);
        for row in reproduction.paper.iter().filter(of_recipe) {
            header.push(format!("{} [{}]", row.method, number(&sources, row)));
            columns.push(Column::Paper(row));
        }
        header.push(format!("{recipe}, ours"));
        columns.push(Column::Ours(recipe));
    }
    let row = |key: &String| {
        let (title, metric) = match key.split_once('/') {
            Some((_, test)) => (format!("  {test}"), String::new()),
            None => {
                let metric = reproduction.metrics.get(key);
                (key.clone(), metric.cloned().unwrap_or_default())
            }
        };
        let cells = columns.iter().map(|column| column.score(reproduction, key));
        [title, metric].into_iter().chain(cells).collect()
    };
    let mut rows: Vec<Vec<String>> = reproduction.keys.iter().map(row).collect();
    let means = columns.iter().map(|column| column.mean(reproduction));
    let first = ["mean".to_owned(), String::new()];
    rows.push(first.into_iter().chain(means).collect());
    (header, rows)
}

enum Column<'a> {
    Paper(&'a PaperRow),
    Ours(&'a String),
}

impl Column<'_> {
    fn score(&self, reproduction: &Reproduction, key: &str) -> String {
        match self {
            Self::Paper(row) => paper(row.scores.get(key).copied()),
            Self::Ours(recipe) => {
                let found = reproduction.ours.get(*recipe).and_then(|of| of.get(key));
                found.map_or_else(none, spread_text)
            }
        }
    }

    fn mean(&self, reproduction: &Reproduction) -> String {
        match self {
            Self::Paper(row) => paper(row.mean),
            Self::Ours(recipe) => {
                let found = reproduction.means.get(*recipe);
                found.map_or_else(none, spread_text)
            }
        }
    }
}

/// A printed number, as the paper prints it.
fn paper(number: Option<f64>) -> String {
    number.map_or_else(none, |number| number.to_string())
}

fn none() -> String {
    "-".into()
}

/// Where rows stand and for which model, each once.
fn sources(reproduction: &Reproduction) -> Vec<String> {
    let mut sources = Vec::new();
    for row in &reproduction.paper {
        let text = source(row);
        if !sources.contains(&text) {
            sources.push(text);
        }
    }
    sources
}

fn source(row: &PaperRow) -> String {
    format!("{}; {}", row.source, row.model)
}

fn number(sources: &[String], row: &PaperRow) -> usize {
    let text = source(row);
    1 + sources.iter().position(|one| *one == text).unwrap_or(0)
}

/// Where the papers' numbers stand, other rows of theirs, and what differs.
fn notes(reproduction: &Reproduction) -> String {
    let sources = sources(reproduction);
    let mut lines = Vec::new();
    if sources.is_empty() {
        lines.push("No number of a paper could be confirmed for this suite.".to_owned());
    }
    for (index, text) in sources.iter().enumerate() {
        lines.push(format!("[{}] {text}", index + 1));
    }
    let is_shown = |row: &&PaperRow| match &row.recipe {
        Some(recipe) => reproduction.recipes.contains(recipe),
        None => false,
    };
    let others: Vec<&PaperRow> = reproduction
        .paper
        .iter()
        .filter(|row| !is_shown(row))
        .collect();
    if !others.is_empty() {
        lines.push("\nAlso printed there:\n".into());
    }
    for row in others {
        let scores = row
            .scores
            .iter()
            .map(|(key, score)| format!("{key} {score}"));
        let mean = row.mean.map(|mean| format!("mean {mean}"));
        let all: Vec<String> = scores.chain(mean).collect();
        lines.push(format!(
            "- {} [{}]: {}",
            row.method,
            number(&sources, row),
            all.join(", ")
        ));
    }
    lines.push("\nWhat differs from the papers:\n".into());
    let differs = reproduction.differs.iter().map(|text| format!("- {text}"));
    lines.extend(differs);
    lines.join("\n")
}
