//! Files that llama.cpp and Ollama load: a LoRA, or a whole model.

use std::path::{Path, PathBuf};

use molora_models::Backbone;
use molora_models::gguf::{self, SpecialToken, Vocabulary};
use molora_models::peft::{MergedDtype, PeftAdapter, ResolvedAdapter};
use serde_json::Value;

use super::Exported;
use super::export::exported;
use super::lora::{LoraSelector, as_lora};
use crate::base::base_model::BaseModel;
use crate::base::place::NewFolder;
use crate::base::{AdapterFolder, DeviceSpec, chat_stop_tokens, stop_tokens};
use crate::data::{ChatTemplate, SpecialTokens, TextTokenizer};
use crate::error::{RunProblem, TrainError};
use crate::run::open_without_data;

/// What becomes a file.
#[derive(Debug, Clone)]
pub enum GgufSource {
    /// The mixture of a run, or one of its experts, as a LoRA.
    Run {
        /// The run folder.
        folder: PathBuf,
        /// The mixture, or one expert.
        choice: LoraSelector,
    },
    /// An adapter that PEFT or [`export`](crate::exchange::export) wrote, as a LoRA.
    Adapter(AdapterFolder),
    /// A whole model, such as one that [`merge`](crate::exchange::merge) wrote.
    Model(BaseModel),
}

/// What is exported, and where to.
#[derive(Debug, Clone)]
pub struct GgufRequest {
    /// The run, adapter or model.
    pub source: GgufSource,
    /// File to write.
    pub out: PathBuf,
    /// Type of the numbers of matrices: of a model as in its files, of a LoRA f32 if `None`.
    pub dtype: Option<MergedDtype>,
    /// The device; that of the run, or the CPU, if `None`.
    pub device: Option<DeviceSpec>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GgufWritten {
    /// A LoRA for the base model.
    Lora(Exported),
    /// A whole model.
    Model {
        /// Number of tokens of its vocabulary.
        tokens: usize,
    },
}

/// Writes a GGUF file.
///
/// # Errors
/// A file that is there already; a family, tokenizer or adapter that llama.cpp is not known to compute the
/// same; a mixture that no single LoRA equals, with what can be done; whatever reading and writing give.
pub fn export_gguf(request: &GgufRequest) -> Result<GgufWritten, TrainError> {
    let out = &request.out;
    let Some(file) = out.file_name().filter(|_| !out.is_dir()) else {
        return Err(TrainError::run(out, RunProblem::NoFileName));
    };
    if out.is_symlink() || out.exists() {
        return Err(TrainError::run(out, RunProblem::NotEmpty));
    }
    let new = NewFolder::for_file(out)?;
    let path = new.path().join(file);
    let device = request.device;
    let written = match &request.source {
        GgufSource::Run { folder, choice } => {
            let opened = open_without_data(folder, device)?;
            let base = &opened.loaded.folder;
            gguf::check_family(base)?;
            let adapter = as_lora(folder, &opened, choice)?;
            if opened.model.heads.iter().any(Option::is_some) {
                let folder = folder.display();
                tracing::warn!("{folder}: the heads of its tasks have no place in a GGUF file");
            }
            Lora {
                source: folder,
                base,
                adapter: &adapter,
            }
            .write(&path, request)?
        }
        GgufSource::Adapter(adapter) => {
            let base = &adapter.base.folder;
            gguf::check_family(base)?;
            let model = Backbone::from_folder(base, &device.unwrap_or(DeviceSpec::Cpu).open()?)?;
            let resolved = PeftAdapter::open(&adapter.folder)?.resolve(&model)?;
            let source = &adapter.folder;
            Lora {
                source,
                base,
                adapter: &resolved,
            }
            .write(&path, request)?
        }
        GgufSource::Model(base) => {
            let folder = &base.folder;
            gguf::check_family(folder)?;
            let model = Backbone::from_folder(folder, &device.unwrap_or(DeviceSpec::Cpu).open()?)?;
            let tokens = model.vocab_size();
            let vocabulary = vocabulary(folder, tokens)?;
            let dtype = request.dtype.unwrap_or_default();
            gguf::write_model(&path, folder, &model, &vocabulary, &name(folder), dtype)?;
            GgufWritten::Model { tokens }
        }
    };
    new.put_files()?;
    Ok(written)
}

/// A LoRA and the folders that it comes from and belongs to.
struct Lora<'a> {
    source: &'a Path,
    base: &'a Path,
    adapter: &'a ResolvedAdapter,
}

impl Lora<'_> {
    fn write(&self, path: &Path, request: &GgufRequest) -> Result<GgufWritten, TrainError> {
        let (source, base, adapter) = (self.source, self.base, self.adapter);
        let dtype = request.dtype.unwrap_or(MergedDtype::Float32);
        gguf::write_adapter(path, base, source, adapter, &name(source), dtype)?;
        Ok(GgufWritten::Lora(exported(
            request.out.clone(),
            adapter,
            false,
        )))
    }
}

/// The last part of a folder's path.
fn name(folder: &Path) -> String {
    let full = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
    let name = full.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The tokenizer of a model folder with the roles of its tokens and its chat template.
fn vocabulary(folder: &Path, size: usize) -> Result<Vocabulary, TrainError> {
    let mut vocabulary = Vocabulary::from_folder(folder, size)?;
    let tokenizer = TextTokenizer::from_folder(folder)?;
    let special = SpecialTokens::from_folder(folder)?;
    for (role, key) in [
        (SpecialToken::Begin, "bos_token"),
        (SpecialToken::Unknown, "unk_token"),
        (SpecialToken::Padding, "pad_token"),
    ] {
        let id = special.get(key).and_then(|text| tokenizer.id_of(text));
        let id = match role {
            SpecialToken::Begin => id.or(configured_begin(folder)?),
            _ => id,
        };
        if let Some(id) = id {
            vocabulary = vocabulary.with_token(role, id);
        }
    }
    let template = ChatTemplate::from_folder(folder)?;
    let ends = match &template {
        Some(template) => chat_stop_tokens(folder, &tokenizer, template)?,
        None => stop_tokens(folder, &tokenizer)?,
    };
    let roles = [SpecialToken::End, SpecialToken::EndOfTurn];
    for (role, &id) in roles.into_iter().zip(&ends) {
        vocabulary = vocabulary.with_token(role, id as u32);
    }
    if ends.len() > roles.len() {
        let left = ends[roles.len()..].iter().map(usize::to_string);
        tracing::warn!(
            "{}: a GGUF file names two tokens that end an answer; llama.cpp knows others by their \
             texts or not at all: {}",
            folder.display(),
            left.collect::<Vec<_>>().join(", ")
        );
    }
    Ok(match template {
        Some(template) => vocabulary.with_chat_template(template.source()),
        None => vocabulary,
    })
}

/// `bos_token_id` of `config.json`.
fn configured_begin(folder: &Path) -> Result<Option<u32>, TrainError> {
    let path = folder.join("config.json");
    let text = fs_err::read_to_string(&path)?;
    let config: Value = serde_json::from_str(&text).map_err(TrainError::json(&path))?;
    let id = config["bos_token_id"].as_u64();
    Ok(id.and_then(|id| id.try_into().ok()))
}
