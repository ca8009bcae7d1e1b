//! From tasks on disk to padded batches.
//!
//! The data goes one way: `task` finds the files, `format` reads their rows, `schema` says what
//! these mean and makes them a `record`, `prompt` puts its text together, `tokenizer` turns
//! texts into token ids, `example` and `written` hold
//! tokenized records, `batch` pads them, `sampler`
//! decides which examples the next step sees. `stream` goes the same way for training splits that do not fit
//! into memory. The format is described in `docs/data.md`.

mod ask;
pub(crate) mod batch;
mod chat;
pub(crate) mod contain;
pub(crate) mod draw;
pub(crate) mod error;
pub(crate) mod example;
mod fields;
mod format;
mod hold_out;
mod jinja;
mod kind;
mod message;
mod meta;
pub(crate) mod metrics;
pub(crate) mod prompt;
pub(crate) mod record;
pub(crate) mod sampler;
mod schema;
mod source;
mod special;
pub(crate) mod stream;
mod subset;
pub(crate) mod task;
mod thought;
pub(crate) mod tokenizer;
mod unlabelled;
pub(crate) mod written;

pub use ask::{Prompt, parse_prompts};
pub use batch::{AnswerToken, Batch};
pub use chat::{ChatError, ChatTemplate};
pub use contain::is_contained;
pub use error::DataError;
pub use example::{Example, Target, TokenizedTask, task_names, tokenize_tasks};
pub use format::{FormatError, text_of};
pub(crate) use format::{Row, read_published};
pub(crate) use message::Part;
pub use message::{Chat, Message};
pub use metrics::{AnswerConfig, AnswerPattern, Metric, MetricError, Take};
pub use prompt::{Piece, PromptFormat, PromptTemplate};
pub use record::{Label, Record};
pub(crate) use sampler::{Sampler, eval_batches};
pub use sampler::{SamplerConfig, Strategy};
pub(crate) use source::task_files;
pub(crate) use special::SpecialTokens;
pub(crate) use stream::{Encoder, Plan, StreamState, StreamedTask, Streams, TaskSource};
pub use stream::{StreamedSplit, StreamsState};
pub use task::{Split, Task, TaskKind, TaskMeta, list_tasks, load_task, load_tasks, task_path};
pub(crate) use task::{load_tasks_for, require_classification};
pub use tokenizer::{Encoded, TextTokenizer};
pub use unlabelled::{load_unlabelled, parse_unlabelled};
pub use written::{
    Average, Candidate, Normalize, PromptStyle, Question, ScoredTemplates, Templates, Writing,
    WritingConfig,
};
