//! What can be wrong with data, each as one line that names the file.

use std::path::{Path, PathBuf};

use super::ChatError;
use super::format::FormatError;
use super::metrics::MetricError;

/// An error in task folders, tokenizers or sampler settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder is missing or cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file, or one line of it, is no JSON.
    #[error("{place}: broken JSON: {message}")]
    Json {
        /// File, or `file:line` for JSON lines.
        place: Place,
        /// The parser's message with line and column inside the text it was given.
        message: String,
    },
    /// A key that has to be there is not.
    #[error("{place}: key \"{key}\" is missing")]
    MissingKey {
        /// File, or `file:line`.
        place: Place,
        /// The key.
        key: &'static str,
    },
    /// A key holds a value of the wrong type.
    #[error("{place}: key \"{key}\" holds {found}, expected {expected}")]
    WrongType {
        /// File, or `file:line`.
        place: Place,
        /// The key.
        key: &'static str,
        /// What was found, shortened.
        found: String,
        /// What the schema asks for.
        expected: &'static str,
    },
    /// A key holds a value of the right type that contradicts what was read before.
    #[error("{place}: key \"{key}\" is \"{found}\", but {expected}")]
    Contradiction {
        /// File, or `file:line`.
        place: Place,
        /// The key.
        key: &'static str,
        /// The value found.
        found: String,
        /// The value expected and where it stands.
        expected: String,
    },
    /// A label is no index into the labels (or choices).
    #[error("{place}: label {found} is out of range: there are {count} {what} (0 to {})", count - 1)]
    LabelRange {
        /// `file:line`.
        place: Place,
        /// The label found.
        found: i64,
        /// Number of labels or choices, at least 1.
        count: usize,
        /// `labels` or `choices`.
        what: &'static str,
    },
    /// A line in the middle of a file is blank.
    #[error("{place}: blank line between records")]
    BlankLine {
        /// `file:line`.
        place: Place,
    },
    /// A split has no record at all.
    #[error("{}: holds no records", path.display())]
    EmptySplit {
        /// The split's file.
        path: PathBuf,
    },
    /// A classification task lists fewer than two labels.
    #[error("{}: key \"labels\" lists {found} labels, a classification task needs at least 2", path.display())]
    TooFewLabels {
        /// The `task.json`.
        path: PathBuf,
        /// Number of labels found.
        found: usize,
    },
    /// A label name stands twice in the list.
    #[error("{}: label \"{label}\" is listed twice, at {first} and {second}", path.display())]
    DuplicateLabel {
        /// The `task.json`.
        path: PathBuf,
        /// The label's name.
        label: String,
        /// Index of its first place.
        first: usize,
        /// Index of its second place.
        second: usize,
    },
    /// The metric of a task is not known for its kind.
    #[error("{}: {source}", path.display())]
    Metric {
        /// The `task.json`.
        path: PathBuf,
        /// What is wrong with it.
        source: MetricError,
    },
    /// How answers are found in texts is not said right.
    #[error("{}: key \"answer\": {problem}", path.display())]
    Answer {
        /// The `task.json`.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The words for labels do not fit these.
    #[error("{}: key \"label_words\": {problem}", path.display())]
    LabelWords {
        /// The `task.json`.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A folder holds no task.
    #[error(
        "{}: no task in it: expected a task folder, or sub-folders that hold a task.json or a \
         train split (.jsonl, .json, .csv or .parquet)",
        path.display()
    )]
    NoTasks {
        /// The folder.
        path: PathBuf,
    },
    /// A file is not what its format or its columns ask for.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A template for prompts is broken.
    #[error("{field}, {problem}")]
    Template {
        /// Where it is from, as `data.writing.template`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A template for prompts cannot ask for a record.
    #[error("{place}: record {id}: {problem}")]
    Prompt {
        /// `file:line`.
        place: Place,
        /// The record's id.
        id: String,
        /// Where the template is from, and what is wrong.
        problem: String,
    },
    /// The chat template fails on a record.
    #[error("record {id}: {source}")]
    Chat {
        /// The record's id.
        id: String,
        /// What the template said.
        source: ChatError,
    },
    /// A chat has what the text of it would not show.
    #[error(
        "record {id}: it has {part}, which {format} does not show; choose a model whose chat template \
         does, or leave such records out"
    )]
    NotShown {
        /// The record's id.
        id: String,
        /// What it has.
        part: &'static str,
        /// What texts are made by.
        format: &'static str,
    },
    /// The chat template changes what it rendered before when a message follows.
    #[error(
        "record {id}: the chat template renders message {message} differently from what it \
         renders before it, so the answer's text cannot be told from its prompt's"
    )]
    ChatPrefix {
        /// The record's id.
        id: String,
        /// The message, from 1.
        message: usize,
    },
    /// A task was asked for that is not there.
    #[error("{}: no task \"{name}\"{}; there are {}", path.display(), did_you_mean(near), available.join(", "))]
    UnknownTask {
        /// The folder searched.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// Similar names that exist, the nearest first.
        near: Vec<String>,
        /// All names that exist.
        available: Vec<String>,
    },
    /// The choice of tasks is empty or names one twice.
    #[error("task selection: {0}")]
    Selection(String),
    /// Tasks whose answers a probe cannot tell.
    #[error("a probe tells the classes of classification tasks alone: {found}; choose others")]
    Unsupported {
        /// `name (kind)` of every such task, joined by commas.
        found: String,
    },
    /// Tasks whose answers no head can predict, for a model that generates no text.
    #[error(
        "{found}: an encoder writes no answers; choose a decoder or an encoder-decoder with --model, \
         or other tasks with --tasks"
    )]
    NeedsWriter {
        /// `name is kind` of every such task, joined by commas.
        found: String,
    },
    /// A candidate answer that cannot be scored.
    #[error(
        "record {id}: candidate \"{text}\" has {tokens} tokens, expected at least 1 and fewer than \
         data.writing.max_length {max_length}"
    )]
    Candidate {
        /// The record's id.
        id: String,
        /// The candidate.
        text: String,
        /// Its number of tokens.
        tokens: usize,
        /// The longest text.
        max_length: usize,
    },
    /// The tokenizer file is broken.
    #[error("{}: no usable tokenizer: {source}", path.display())]
    Tokenizer {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// What the tokenizers crate said.
        source: tokenizers::Error,
    },
    /// The tokenizer can yield ids that the model has no embedding for.
    #[error(
        "{}: yields token ids up to {max_id}, but the model's vocabulary has {vocab_size} entries",
        path.display()
    )]
    Vocabulary {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// The largest id.
        max_id: u32,
        /// Rows of the model's embedding.
        vocab_size: usize,
    },
    /// A text holds a token that the model has no embedding for.
    #[error(
        "{}: text \"{text}\" holds the token {token} with id {id}, but the model's vocabulary has \
         {vocab_size} entries",
        path.display()
    )]
    NoRow {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// The beginning of the text.
        text: String,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the model's embedding.
        vocab_size: usize,
    },
    /// The length limit leaves no room for text.
    #[error("max_length {max_length} leaves no room for text beside {special} special tokens")]
    MaxLength {
        /// The limit in tokens.
        max_length: usize,
        /// Special tokens that the tokenizer adds to this kind of input.
        special: usize,
    },
    /// A text could not be tokenized.
    #[error("text \"{text}\" cannot be tokenized: {source}")]
    Encode {
        /// The beginning of the text.
        text: String,
        /// What the tokenizers crate said.
        source: tokenizers::Error,
    },
    /// A record yields no token.
    #[error("record {id}: its text yields no token")]
    NoTokens {
        /// The record's id.
        id: String,
    },
    /// A record of which no answer is to be learned.
    #[error("record {id}: no answer of it is to be learned")]
    NothingToLearn {
        /// The record's id.
        id: String,
    },
    /// A sampler setting is out of range.
    #[error("sampler: {key} is {found}, expected {expected}")]
    Sampler {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// The allowed range.
        expected: &'static str,
    },
    /// A task that cannot be read piece by piece.
    #[error("{}: cannot be streamed (data.streaming): {problem}", path.display())]
    Streaming {
        /// The task.
        path: PathBuf,
        /// Why not, and what would be.
        problem: String,
    },
    /// Two texts for a model that knows one.
    #[error(
        "task {task}: its second texts have token type {found}, but the model knows {limit} types"
    )]
    TokenType {
        /// The task.
        task: String,
        /// The type.
        found: u32,
        /// Number of types.
        limit: usize,
    },
    /// A restored sampler does not belong to this data.
    #[error("sampler: the saved state belongs to other data: {0}")]
    SamplerData(String),
    /// The state of a restored sampler contradicts itself.
    #[error("sampler: the saved state is broken: {0}")]
    SamplerState(String),
}

/// A file, and what in it is meant where it holds many records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line (JSON lines, CSV) or row in it, if one is meant.
    pub at: At,
}

/// What of a file is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The file as a whole.
    File,
    /// A line, from 1.
    Line(usize),
    /// A row of a table or an entry of a list, from 1.
    Row(usize),
}

impl Place {
    /// A file as a whole.
    pub fn file(path: &Path) -> Self {
        Self::new(path, At::File)
    }

    /// A part of a file.
    pub fn new(path: &Path, at: At) -> Self {
        Self {
            path: path.into(),
            at,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display();
        match self.at {
            At::File => write!(f, "{path}"),
            At::Line(line) => write!(f, "{path}:{line}"),
            At::Row(row) => write!(f, "{path}, row {row}"),
        }
    }
}

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() {
        return String::new();
    }
    format!(" (did you mean {}?)", near.join(" or "))
}
