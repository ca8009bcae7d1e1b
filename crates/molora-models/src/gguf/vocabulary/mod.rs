//! A tokenizer as llama.cpp has it: from `tokenizer.json` of the tokenizers library.
//!
//! llama.cpp knows two of its kinds: pairs of bytes under a rule of its own list that cuts texts into words
//! ([`byte_pairs`]), and SentencePiece's pieces with scores ([`pieces`]). All else is refused by name.

mod byte_pairs;
mod file;
mod pieces;
#[cfg(test)]
mod tests;

use std::path::Path;

use self::file::File;
use super::container::Value;
use crate::ModelError;

/// A token with a role of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialToken {
    /// In front of a text.
    Begin,
    /// Behind a text.
    End,
    /// Behind a message of a chat.
    EndOfTurn,
    /// In the place of what has no token.
    Unknown,
    /// Fills a batch up.
    Padding,
}

impl SpecialToken {
    fn key(self) -> &'static str {
        match self {
            Self::Begin => "bos",
            Self::End => "eos",
            Self::EndOfTurn => "eot",
            Self::Unknown => "unknown",
            Self::Padding => "padding",
        }
    }
}

/// What a token is to llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    /// Never found in a user's text.
    Control = 3,
    /// Found in texts before they are cut.
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// Tokens with their numbers and kinds.
type Tokens = Vec<(String, u32, Kind)>;

/// The values of the kind of tokenizer alone.
#[derive(Debug)]
enum Model {
    BytePairs {
        /// llama.cpp's name of the rule that cuts texts.
        rule: &'static str,
        merges: Vec<String>,
    },
    Pieces {
        scores: Vec<f32>,
        /// Whether a space is put in front of a text.
        adds_space: bool,
    },
}

/// A tokenizer, ready to be written.
#[derive(Debug)]
pub struct Vocabulary {
    model: Model,
    tokens: Vec<String>,
    kinds: Vec<Kind>,
    /// Tokens around every text.
    ends: [Option<u32>; 2],
    special: Vec<(SpecialToken, u32)>,
    chat_template: Option<String>,
}

impl Vocabulary {
    /// Reads `tokenizer.json` of a folder for a model with rows for `size` tokens.
    ///
    /// # Errors
    /// A file that cannot be read, or a tokenizer that llama.cpp does not have, with the field that says so.
    pub fn from_folder(folder: &Path, size: usize) -> Result<Self, ModelError> {
        let file = File::open(folder)?;
        let model = &file.root["model"];
        let is_pieces = model["byte_fallback"] == true;
        let (model, tokens) = match model["type"].as_str() {
            // Files of old have no type.
            Some("BPE") | None if is_pieces => pieces::read(&file, size)?,
            Some("BPE") | None => byte_pairs::read(&file)?,
            _ => return Err(file.refuse("model.type", "BPE")),
        };
        let mut vocabulary = Self {
            model,
            tokens: Vec::new(),
            kinds: Vec::new(),
            ends: file.ends()?,
            special: Vec::new(),
            chat_template: None,
        };
        vocabulary.put(&file, tokens, size)?;
        Ok(vocabulary)
    }

    /// With a token of a role.
    #[must_use]
    pub fn with_token(mut self, role: SpecialToken, id: u32) -> Self {
        self.special.push((role, id));
        self
    }

    /// With the template that frames messages, in Jinja.
    #[must_use]
    pub fn with_chat_template(mut self, template: impl Into<String>) -> Self {
        self.chat_template = Some(template.into());
        self
    }

    /// The tokens by their numbers, with those that are added to the model's own, and names for the rows of the
    /// model's table that no token has.
    fn put(&mut self, file: &File, own: Tokens, size: usize) -> Result<(), ModelError> {
        let added = file.added()?;
        let all = own.into_iter().chain(added);
        self.tokens = (0..size).map(|id| format!("[PAD{id}]")).collect();
        self.kinds = vec![Kind::Unused; size];
        for (text, id, kind) in all {
            let Some(place) = self.tokens.get_mut(id as usize) else {
                let problem = format!("token {id} `{text}` is beyond the model's {size} tokens");
                return Err(ModelError::file(&file.path, problem));
            };
            *place = text;
            self.kinds[id as usize] = kind;
        }
        if let Model::Pieces { scores, .. } = &mut self.model {
            // What is never joined from others has none.
            for (score, kind) in scores.iter_mut().zip(&self.kinds) {
                if *kind != Kind::Normal {
                    *score = 0.0;
                }
            }
        }
        Ok(())
    }

    /// All of it as values of a file.
    pub(super) fn values(&self) -> Vec<(String, Value)> {
        let kinds = self.kinds.iter().map(|&kind| kind as i32).collect();
        let mut values = match &self.model {
            Model::BytePairs { rule, merges } => vec![
                ("model", Value::Text("gpt2".into())),
                ("pre", Value::Text((*rule).into())),
                ("merges", Value::Texts(merges.clone())),
            ],
            Model::Pieces { scores, adds_space } => vec![
                ("model", Value::Text("llama".into())),
                ("pre", Value::Text("default".into())),
                ("scores", Value::Numbers(scores.clone())),
                ("add_space_prefix", Value::Bool(*adds_space)),
            ],
        };
        values.push(("tokens", Value::Texts(self.tokens.clone())));
        values.push(("token_type", Value::Integers(kinds)));
        let [begin, end] = self.ends;
        values.push(("add_bos_token", Value::Bool(begin.is_some())));
        values.push(("add_eos_token", Value::Bool(end.is_some())));
        let named = |(key, value): (&str, Value)| (format!("tokenizer.ggml.{key}"), value);
        let mut values: Vec<(String, Value)> = values.into_iter().map(named).collect();
        // What stands around a text is what those roles mean, whatever else is said.
        let around = [
            begin.map(|id| (SpecialToken::Begin, id)),
            end.map(|id| (SpecialToken::End, id)),
        ];
        let mut roles: Vec<(SpecialToken, u32)> = around.into_iter().flatten().collect();
        for &(role, id) in &self.special {
            if roles.iter().all(|(known, _)| *known != role) {
                roles.push((role, id));
            }
        }
        for (role, id) in roles {
            let key = format!("tokenizer.ggml.{}_token_id", role.key());
            values.push((key, Value::Integer(id)));
        }
        if let Some(template) = &self.chat_template {
            let key = "tokenizer.chat_template".to_owned();
            values.push((key, Value::Text(template.clone())));
        }
        values
    }
}
