//! From task folders on disk to padded batches.
//!
//! The data goes one way: [`task`] reads and checks `task.json` and the JSON lines, [`tokenizer`]
//! turns texts into token ids, [`batch`] holds tokenized examples and pads them, [`sampler`]
//! decides which examples the next step sees. The format is described in `docs/data.md`.

pub mod batch;
pub(crate) mod draw;
pub mod error;
mod kind;
pub mod record;
pub mod sampler;
pub mod task;
pub mod tokenizer;

pub use batch::{Batch, Example, Target, TokenizedTask, tokenize_tasks};
pub use error::DataError;
pub use record::{Label, Record};
pub use sampler::{Sampler, SamplerConfig, Strategy, eval_batches};
pub use task::{
    Split, Task, TaskKind, TaskMeta, list_tasks, load_task, load_tasks, require_classification,
};
pub use tokenizer::{Encoded, TextTokenizer};
