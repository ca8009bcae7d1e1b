//! `config.json` of the BERT family.

use std::path::Path;

use serde::Deserialize;

use crate::ModelError;
use crate::layers::Activation;

/// Sizes of a BERT encoder, by Hugging Face's names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BertConfig {
    /// Must be `bert`.
    pub model_type: String,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Non-linearity of the feed-forward part.
    pub hidden_act: Activation,
    /// Added to the variance in layer normalisation.
    pub layer_norm_eps: f64,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Number of token types.
    pub type_vocab_size: usize,
    /// Must be `absolute` where it is given.
    #[serde(default)]
    pub position_embedding_type: Option<String>,
    /// Must be false: this is an encoder.
    #[serde(default)]
    pub is_decoder: bool,
    /// Must be false.
    #[serde(default)]
    pub add_cross_attention: bool,
}

impl BertConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::File`], naming the field that cannot be used.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let text = std::fs::read_to_string(path).map_err(|source| ModelError::Io {
            path: path.into(),
            source,
        })?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| ModelError::file(path, e.to_string()))?;
        match value.get("model_type").and_then(|family| family.as_str()) {
            Some("bert") => {}
            other => {
                let found = other.unwrap_or("nothing");
                return Err(ModelError::file(
                    path,
                    format!(
                        "model_type is {found}, expected bert: no other family is supported yet"
                    ),
                ));
            }
        }
        // From the text again: its errors know line and column.
        let config: Self =
            serde_json::from_str(&text).map_err(|e| ModelError::file(path, e.to_string()))?;
        config
            .check()
            .map_err(|problem| ModelError::file(path, problem))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ];
        if let Some((field, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(format!("{field} is 0, expected at least 1"));
        }
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if width % heads != 0 {
            return Err(format!(
                "hidden_size {width} is no multiple of num_attention_heads {heads}"
            ));
        }
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => {
                return Err(format!(
                    "position_embedding_type is {other}, expected absolute"
                ));
            }
        }
        for (field, is_set) in [
            ("is_decoder", self.is_decoder),
            ("add_cross_attention", self.add_cross_attention),
        ] {
            if is_set {
                return Err(format!(
                    "{field} is true, expected false: this is an encoder"
                ));
            }
        }
        Ok(())
    }
}
