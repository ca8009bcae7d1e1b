//! From requests to a server to tokens and router inputs, and back.

use burn::tensor::Tensor;
use molora_models::{Backbone, Decoder, ForwardContext, GenerateError};

use super::Prompt;
use super::engine::{EncodedPrompt, Variant};
use super::writer::{WriteOptions, Writer};
use crate::error::TrainError;
use crate::run::ReadBase;

impl Writer {
    /// A prompt as the model reads it; with `is_chat` a text is a user's message.
    ///
    /// # Errors
    /// A prompt that is empty or longer than the model's context, or a template that is not there or fails
    /// on it.
    pub fn encode_prompt(
        &self,
        prompt: &Prompt,
        is_chat: bool,
    ) -> Result<EncodedPrompt, TrainError> {
        let options = WriteOptions {
            is_chat,
            uses_template: false,
            system: None,
            stop: Vec::new(),
            max_new_tokens: 0,
            sampling: None,
            seed: 0,
            batch: 1,
        };
        let (tokens, left_out) = self.tokens(0, prompt, &options)?;
        let is_chat = is_chat || matches!(prompt, Prompt::Chat(_));
        Ok(EncodedPrompt {
            tokens,
            text: prompt.text().to_owned(),
            left_out,
            stop_tokens: self.ends(is_chat).to_vec(),
        })
    }

    /// A prompt that is given as tokens.
    ///
    /// # Errors
    /// No token, or a number that is none of the model.
    pub fn prompt_of_tokens(&self, tokens: Vec<usize>) -> Result<EncodedPrompt, TrainError> {
        let vocab_size = self.backbone.vocab_size();
        if tokens.is_empty() {
            return Err(GenerateError::EmptyPrompt { row: 0 }.into());
        }
        if let Some(&token) = tokens.iter().find(|&&token| token >= vocab_size) {
            return Err(GenerateError::OutsideVocabulary {
                row: 0,
                token: i64::try_from(token).unwrap_or(i64::MAX),
                vocab_size,
            }
            .into());
        }
        Ok(EncodedPrompt {
            text: self.text(&tokens, 0)?,
            tokens,
            left_out: 0,
            stop_tokens: self.ends(false).to_vec(),
        })
    }

    /// The text of one token; special tokens by their names, and empty for a number that is no token.
    pub fn token_text(&self, token: usize) -> String {
        let token = u32::try_from(token).unwrap_or(u32::MAX);
        self.tokenizer.token(token).unwrap_or_default()
    }

    /// Why none of the run's experts can write alone, if that is so: where weights that are 1 for one expert
    /// and 0 for the others would not make the model that has this expert only.
    pub fn why_no_expert_alone(&self) -> Option<&'static str> {
        match &self.mixture {
            None => Some("it is no run"),
            Some(mixture) => mixture.why_none_exactly(),
        }
    }

    /// Whether one [engine](super::Engine) can write texts of both in the same passes: they are decoders on the
    /// same base in the same type, on the same device, whose positions do not depend on the longest text.
    pub fn can_join(&self, other: &Self) -> bool {
        let is_alike = match (&self.backbone, &other.backbone) {
            (Backbone::Decoder(own), Backbone::Decoder(_)) => !own.depends_on_length(),
            _ => false,
        };
        let same = |own: &ReadBase| other.read.as_ref().is_some_and(|other| own.is_same(other));
        is_alike && self.read.as_ref().is_some_and(same)
    }

    /// The model of a writer that an engine has.
    ///
    /// # Panics
    /// If it is no decoder, which engines refuse.
    pub(super) fn decoder(&self) -> &Decoder {
        match &self.backbone {
            Backbone::Decoder(model) => model,
            _ => unreachable!("refused when the engine was made"),
        }
    }

    /// What routers read of one text beside its tokens.
    ///
    /// # Errors
    /// A text that cannot be tokenized, or a task or expert that the run has not.
    pub(super) fn context_of(
        &self,
        text: &str,
        variant: Variant,
    ) -> Result<ForwardContext, TrainError> {
        let mut context = ForwardContext::new(Tensor::ones([1, 1], &self.device));
        if let Some(mixture) = &self.mixture {
            mixture.guide_as(&[text], variant, &mut context)?;
        }
        Ok(context)
    }
}
