//! Files for other programs, and experts from other programs.
//!
//! | command | what it makes |
//! |---|---|
//! | `molora export` ([`export`]) | an adapter that PEFT loads, where one computes the same, as PEFT's own method where it has it |
//! | `molora export --format gguf` ([`export_gguf`]) | a LoRA or a whole model that llama.cpp and Ollama load |
//! | `molora export --format transformers` ([`export_transformers`]) | a whole model with its mixture, and Python that computes it |
//! | `molora merge` ([`merge`]) | a whole model that transformers loads, where one computes the same |
//! | `molora combine` ([`combine()`]) | one adapter, a whole model, or a run with gates, from several experts |
//! | `molora distill` ([`distill`]) | the nearest adapter that PEFT loads, with its error |
//! | `molora import` ([`import()`]) | a run of a PolyTropon, X-LoRA, Lily or Arrow model that PEFT wrote |
//! | `molora assemble` ([`assemble`]) | a run whose experts are adapters that PEFT wrote |

mod assemble;
mod combine;
mod distill;
mod export;
mod gguf;
mod import;
mod lora;
mod merge;
mod method;
mod transformers;

use std::path::{Path, PathBuf};

pub use molora_adapters::merge::Sign;

pub use assemble::{AssembleRequest, Assembled, Given, RouterChoice, assemble};
pub use combine::{CombineRequest, Combined, How, Written, combine};
pub use distill::{DistillRequest, Distilled, SiteFit, Teacher, distill};
pub use export::{ExportRequest, Exported, export};
pub use gguf::{GgufRequest, GgufSource, GgufWritten, export_gguf};
pub use import::{ImportRequest, import};
pub use lora::LoraSelector;
pub use merge::{MergeRequest, Merged, merge, merge_adapter};
pub use transformers::{TransformersRequest, TransformersWritten, export_transformers};

use crate::base::write_stop_tokens;
use crate::data::PromptStyle;
use crate::error::{RunProblem, TrainError};
use crate::run::Opened;
use crate::store::checkpoint::HEADS;

/// Refuses a folder that is there already with something in it, and a link, which a run from elsewhere
/// may have where its files are to come.
fn check_new(folder: &Path) -> Result<(), TrainError> {
    if folder.is_symlink() {
        return Err(TrainError::run(folder, RunProblem::NotPlain));
    }
    if !folder.exists() {
        return Ok(());
    }
    let mut entries = fs_err::read_dir(folder)?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(TrainError::run(folder, RunProblem::NotEmpty)),
    }
}

/// Refuses an expert that is given twice, also by another path: it would count twice in silence.
fn refuse_twice<'a>(experts: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), TrainError> {
    let mut seen = Vec::new();
    for folder in experts {
        // One that is not there is named where it is read.
        let Ok(place) = folder.canonicalize() else {
            continue;
        };
        if seen.contains(&place) {
            return Err(TrainError::run(folder, RunProblem::GivenTwice));
        }
        seen.push(place);
    }
    Ok(())
}

/// Says beside what is written which tokens end an answer, where the run's tasks were asked by a chat
/// template: it may end them by another token than the base model names.
fn carry_ends(opened: &Opened, out: &Path) -> Result<(), TrainError> {
    let is_chat = opened.config.recipe.data.writing.prompt == PromptStyle::Chat;
    match is_chat && opened.loaded.base.writes() {
        true => write_stop_tokens(&opened.loaded.folder, out),
        false => Ok(()),
    }
}

/// Copies the heads of a run's tasks beside what is written, if it has any: neither PEFT nor
/// transformers knows them, and without them an encoder's answers are lost.
fn copy_heads(run: &Path, out: &Path, has_heads: bool) -> Result<bool, TrainError> {
    if has_heads {
        let (from, to) = (run.join(HEADS), out.join(HEADS));
        fs_err::copy(&from, &to)?;
    }
    Ok(has_heads)
}
