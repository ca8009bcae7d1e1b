//! Whole runs on a tiny model and tiny tasks, through the library and through the program.

mod answers;
mod backends;
mod bad_data;
mod bad_folder;
mod bad_model;
mod bad_recipe;
mod bad_stages;
mod base;
mod batches;
mod checkpointing;
mod compare;
mod extend;
pub(crate) mod families;
mod files;
mod formats;
mod frozen;
mod frozen_stages;
mod grow;
mod grow_together;
mod guard;
mod hostile;
mod init;
mod language;
mod log;
mod machine;
mod optimization;
mod oracle;
mod predict;
mod ranks;
mod recover;
mod refusal;
mod report;
mod reproduce;
mod resume;
mod saved;
#[cfg(unix)]
mod signals;
mod switches;
mod task_weights;
mod templates;
#[cfg(unix)]
mod together;
mod tools;
mod unseen;
mod validation;
mod verify;
pub(crate) mod writer;
