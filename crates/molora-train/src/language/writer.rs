//! A language model that answers in words.

use std::path::Path;

use burn::tensor::Device;
use molora_models::{Decoder, DecoderInput, ForwardContext, GenerateOptions};
use serde_json::Value;

use super::{ChatTemplate, Message};
use crate::data::TextTokenizer;
use crate::{TrainError, base_model};

/// A decoder with its tokenizer and chat template.
#[derive(Debug)]
pub struct Writer {
    decoder: Decoder,
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    stop_tokens: Vec<usize>,
    device: Device,
}

impl Writer {
    /// Loads a language model by the name of its folder, or by one that [`base_model::find`] knows.
    ///
    /// # Errors
    /// Whatever reading the model, its tokenizer or its chat template gives.
    pub fn open(name: &str, device: &Device) -> Result<Self, TrainError> {
        let folder = base_model::find(name, &mut base_model::silent)?.folder;
        let device = device.clone().inner();
        Ok(Self {
            decoder: Decoder::from_folder(&folder, &device)?,
            tokenizer: TextTokenizer::from_folder(&folder)?,
            template: ChatTemplate::from_folder(&folder)?,
            stop_tokens: stop_tokens(&folder)?,
            device,
        })
    }

    /// The likeliest answer to a request, in at most `max_new_tokens` tokens. A model without a chat
    /// template goes on with the text of the request.
    ///
    /// # Errors
    /// A template that fails, or a request that is longer than the model's context.
    pub fn answer(&self, request: &str, max_new_tokens: usize) -> Result<String, TrainError> {
        let text = match &self.template {
            Some(template) => template.render(&[Message::user(request)], true)?,
            None => request.to_owned(),
        };
        let has_special = self.template.is_some();
        let ids = self.tokenizer.encode_whole(&text, !has_special)?;
        let ids: Vec<usize> = ids.into_iter().map(|id| id as usize).collect();
        let prompts = DecoderInput::from_sequences(&[ids], &self.device);
        let options = GenerateOptions {
            max_new_tokens,
            stop_tokens: self.stop_tokens.clone(),
            ..GenerateOptions::default()
        };
        let context = ForwardContext::new(prompts.mask.clone().float());
        let rows = self.decoder.generate(&prompts, &options, &context)?;
        let new: Vec<u32> = rows[0].tokens.iter().map(|&token| token as u32).collect();
        Ok(self.tokenizer.decode(&new)?)
    }
}

/// The tokens that end an answer: `eos_token_id` of `generation_config.json`, or of `config.json`.
pub(crate) fn stop_tokens(folder: &Path) -> Result<Vec<usize>, TrainError> {
    for name in ["generation_config.json", "config.json"] {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        let config: Value =
            serde_json::from_str(&text).map_err(|e| TrainError::run(&path, e.to_string()))?;
        let number = |value: &Value| value.as_u64().map(|id| id as usize);
        let found = match &config["eos_token_id"] {
            Value::Null => continue,
            Value::Array(ids) => ids.iter().map(number).collect(),
            id => number(id).map(|id| vec![id]),
        };
        return found.ok_or_else(|| {
            let problem = format!(
                "eos_token_id is {}, expected a number or a list of them",
                config["eos_token_id"]
            );
            TrainError::run(&path, problem)
        });
    }
    Ok(Vec::new())
}
