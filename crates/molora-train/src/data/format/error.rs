//! What can be wrong with a file's format or columns.

use std::path::PathBuf;

use super::Place;

/// An error in the shape of a file, before its values are looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The ending of a file's name says nothing.
    #[error(
        "{}: unknown format, expected a name that ends in .jsonl, .json, .csv or .parquet",
        path.display()
    )]
    Ending {
        /// The file.
        path: PathBuf,
    },
    /// The text is no UTF-8.
    #[error("{place}: no UTF-8 text: byte {byte} belongs to no character")]
    Encoding {
        /// The file, or the line.
        place: Place,
        /// The first wrong byte inside the file or the line, from 1.
        byte: usize,
    },
    /// A CSV file is broken.
    #[error("{place}: broken CSV: {message}")]
    Csv {
        /// The line.
        place: Place,
        /// What is wrong with it.
        message: String,
    },
    /// A Parquet file is broken.
    #[error("{place}: broken Parquet: {message}")]
    Parquet {
        /// The file, or the row.
        place: Place,
        /// What the parquet crate said.
        message: String,
    },
    /// A format of which no part can be read alone.
    #[error(
        "{}: data.streaming reads .jsonl and .parquet, which can be read in parts: convert the file",
        path.display()
    )]
    NotByPieces {
        /// The file.
        path: PathBuf,
    },
    /// A line of a file that is read in parts.
    #[error(
        "{place}: the line is longer than {limit} MiB, expected a record of that length at most"
    )]
    LongLine {
        /// The line.
        place: Place,
        /// The longest in MiB.
        limit: usize,
    },
    /// This build cannot read Parquet.
    #[error(
        "{}: this molora was built without Parquet: build it with the feature parquet, or convert \
         the file to .jsonl",
        path.display()
    )]
    NoParquet {
        /// The file.
        path: PathBuf,
    },
    /// More columns than any file of texts has.
    #[error("{place}: found {found} columns, expected at most {limit}")]
    ManyColumns {
        /// The file, or the line.
        place: Place,
        /// Their number.
        found: usize,
        /// The most that are read.
        limit: usize,
    },
    /// More turns, choices or the like than a record has that is meant well.
    #[error("{place}: column \"{column}\" holds {found} entries, expected at most {limit}")]
    ManyEntries {
        /// The record.
        place: Place,
        /// The column.
        column: &'static str,
        /// Their number.
        found: usize,
        /// The most that are read.
        limit: usize,
    },
    /// Two columns have one name.
    #[error("{place}: column \"{column}\" stands twice")]
    DuplicateColumn {
        /// The file, or the line.
        place: Place,
        /// The name.
        column: String,
    },
    /// The columns are none that have a meaning.
    #[error("{place}: found the columns {}, expected {EXPECTED}", found.join(", "))]
    Columns {
        /// The first record.
        place: Place,
        /// Its columns.
        found: Vec<String>,
    },
    /// A column that has to be there is not.
    #[error("{place}: there is no column \"{column}\", found {}{reason}", found.join(", "))]
    MissingColumn {
        /// The record.
        place: Place,
        /// The column.
        column: String,
        /// The record's columns.
        found: Vec<String>,
        /// Why it is needed, or nothing.
        reason: &'static str,
    },
    /// A column that has to hold something holds nothing.
    #[error("{place}: column \"{column}\" is {found}, expected a value{reason}")]
    NullColumn {
        /// The record.
        place: Place,
        /// The column.
        column: String,
        /// `null`, or `empty` in a format of text.
        found: &'static str,
        /// Why it is needed, or nothing.
        reason: &'static str,
    },
    /// A label is no name or number of a label.
    #[error("{place}: column \"{column}\" holds \"{found}\", expected one of {expected}")]
    Choice {
        /// The record.
        place: Place,
        /// The column.
        column: &'static str,
        /// What it holds.
        found: String,
        /// The labels or choices.
        expected: String,
    },
    /// A classification task without a `task.json` of which a label never occurs.
    #[error(
        "{}: no record has label {label}, though larger ones occur: name the labels in a task.json",
        path.display()
    )]
    UnseenLabel {
        /// The file or folder.
        path: PathBuf,
        /// The label's number.
        label: u64,
    },
    /// A chat cannot be used.
    #[error("{place}: column \"{column}\", message {number}: {problem}")]
    Message {
        /// The record.
        place: Place,
        /// The column.
        column: &'static str,
        /// The message, from 1.
        number: usize,
        /// What was found and what was expected.
        problem: String,
    },
    /// `columns` of a `task.json` names something that has no meaning.
    #[error("{}: key \"columns\" gives a column for \"{name}\", expected {known}", path.display())]
    Rename {
        /// The `task.json`.
        path: PathBuf,
        /// The name.
        name: String,
        /// The names that have a meaning.
        known: String,
    },
    /// A split stands in several files of different names.
    #[error("{}: the split {split} stands in {}: keep one of them", path.display(), files.join(" and "))]
    TwoFiles {
        /// The folder.
        path: PathBuf,
        /// The split.
        split: &'static str,
        /// The files' names.
        files: Vec<String>,
    },
    /// Some parts of a split in several files are missing.
    #[error("{}: found {found} of the {expected} parts of the split {split}", path.display())]
    Parts {
        /// The folder.
        path: PathBuf,
        /// The split.
        split: &'static str,
        /// Number of files found.
        found: usize,
        /// Number of files that their names speak of.
        expected: usize,
    },
    /// Too few texts to hold some out.
    #[error(
        "{}: holds {found} different texts, expected at least {expected}, because {missing} is \
         held out from them",
        path.display()
    )]
    TooFew {
        /// The file or folder.
        path: PathBuf,
        /// Number of different texts.
        found: usize,
        /// The least number.
        expected: usize,
        /// The splits that are missing.
        missing: &'static str,
    },
}

/// The columns that have a meaning, for messages.
const EXPECTED: &str = "messages or conversations (a chat); instruction and output, with or \
    without input; input and output or label; prompt and completion or response; question, choices \
    and answer; or text; other names can be given by \"columns\" in a task.json";
