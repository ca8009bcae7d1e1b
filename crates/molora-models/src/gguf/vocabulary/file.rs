//! The fields of `tokenizer.json`.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::{Kind, Tokens};
use crate::ModelError;

/// `tokenizer.json` of a folder.
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) root: Json,
}

impl File {
    pub(super) fn open(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer.json");
        let text = std::fs::read_to_string(&path).map_err(|source| ModelError::Io {
            path: path.clone(),
            source,
        })?;
        let root = serde_json::from_str(&text);
        let root = root.map_err(|error| ModelError::file(&path, error.to_string()))?;
        Ok(Self { path, root })
    }

    /// What a field at a path with dots says, if it is there and says anything.
    pub(super) fn field(&self, path: &str) -> Option<&Json> {
        let pointer = format!("/{}", path.replace('.', "/"));
        self.root.pointer(&pointer).filter(|value| !value.is_null())
    }

    /// That a field is something that llama.cpp does not have.
    pub(super) fn refuse(&self, path: &str, expected: &str) -> ModelError {
        let found = self
            .field(path)
            .map_or("nothing".to_owned(), Json::to_string);
        let found: String = match found.chars().count() > 120 {
            true => found.chars().take(120).chain("..".chars()).collect(),
            false => found,
        };
        let problem = format!("{path} is {found}; llama.cpp reads {expected}");
        ModelError::file(&self.path, problem)
    }

    /// Refuses fields of the model that change what it does and have no counterpart.
    pub(super) fn refuse_options(&self, allowed: &[(&str, Json)]) -> Result<(), ModelError> {
        for (field, expected) in allowed {
            let path = format!("model.{field}");
            let found = self.field(&path);
            let is_empty = found.is_none_or(|found| found == "" || found == false);
            // A field that is not there is off.
            let is_expected = match expected {
                Json::Null | Json::Bool(false) => is_empty,
                expected => found == Some(expected),
            };
            if !is_expected {
                return Err(self.refuse(&path, &expected.to_string()));
            }
        }
        Ok(())
    }

    /// The tokens of the model itself.
    pub(super) fn own(&self) -> Result<Vec<(&String, u32)>, ModelError> {
        let vocab = self.field("model.vocab").and_then(Json::as_object);
        let id = |(text, id)| {
            let id: Option<u32> = Json::as_u64(id).and_then(|id| id.try_into().ok());
            id.map(|id| (text, id))
        };
        let own: Option<Vec<_>> = vocab.and_then(|vocab| vocab.iter().map(id).collect());
        own.ok_or_else(|| self.refuse("model.vocab", "an object of tokens with their numbers"))
    }

    /// The pairs that become one, in their order.
    pub(super) fn merges(&self) -> Result<Vec<(&str, &str)>, ModelError> {
        let merges = self.root["model"]["merges"].as_array();
        let merges: Option<Vec<_>> = merges.and_then(|all| all.iter().map(pair_of).collect());
        merges.ok_or_else(|| self.refuse("model.merges", "a list of pairs"))
    }

    /// Tokens that were added to those of the model.
    pub(super) fn added(&self) -> Result<Tokens, ModelError> {
        let list = self.field("added_tokens").and_then(Json::as_array);
        let mut added = Vec::new();
        for token in list.into_iter().flatten() {
            let (Some(text), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else {
                return Err(self.refuse("added_tokens", "objects with id and content"));
            };
            for field in ["lstrip", "rstrip", "single_word"] {
                if token[field] == true {
                    tracing::warn!(
                        "{}: {field} of the added token `{text}` has no effect in llama.cpp",
                        self.path.display()
                    );
                }
            }
            let is_unknown = self.root["model"]["unk_token"] == *text;
            let (text, kind) = match token["special"] == true || looks_special(text) {
                _ if is_unknown => (text.to_owned(), Kind::Unknown),
                true => (text.to_owned(), Kind::Control),
                // Such a token is looked for in texts that are not normalised yet.
                false => (text.replace('\u{2581}', " "), Kind::UserDefined),
            };
            added.push((text, id as u32, kind));
        }
        Ok(added)
    }

    /// What the post-processor puts around every text: at most a token in front and one behind.
    pub(super) fn ends(&self) -> Result<[Option<u32>; 2], ModelError> {
        const FIELD: &str = "post_processor";
        let expected =
            "none, ByteLevel, or a TemplateProcessing with at most a token in front and one behind";
        let refuse = || self.refuse(FIELD, expected);
        let Some(processor) = self.field(FIELD) else {
            return Ok([None; 2]);
        };
        let several = processor["processors"].as_array();
        let single = std::slice::from_ref(processor);
        let mut ends = [None; 2];
        for processor in several.map_or(single, Vec::as_slice) {
            match processor["type"].as_str() {
                Some("ByteLevel") => {}
                Some("TemplateProcessing") => {
                    let parts = processor["single"].as_array().ok_or_else(refuse)?;
                    let text = parts.iter().position(|part| part.get("Sequence").is_some());
                    let text = text.ok_or_else(refuse)?;
                    let id = |part: &Json| -> Option<u32> {
                        let name = part["SpecialToken"]["id"].as_str()?;
                        let ids = processor["special_tokens"][name]["ids"].as_array()?;
                        let [id] = &ids[..] else { return None };
                        id.as_u64()?.try_into().ok()
                    };
                    for (end, parts) in [(0, &parts[..text]), (1, &parts[text + 1..])] {
                        match parts {
                            [] => {}
                            [part] => ends[end] = Some(id(part).ok_or_else(refuse)?),
                            _ => return Err(refuse()),
                        }
                    }
                }
                _ => return Err(refuse()),
            }
        }
        Ok(ends)
    }
}

/// A pair of a list of merges: a list of two, or in files of old a text with a space between them.
fn pair_of(merge: &Json) -> Option<(&str, &str)> {
    match merge {
        Json::String(text) => text.split_once(' '),
        Json::Array(pair) => match &pair[..] {
            [first, second] => first.as_str().zip(second.as_str()),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a token that is not marked as special is one all the same: llama.cpp's own converter goes by this.
fn looks_special(text: &str) -> bool {
    let is_between = |front: &str, back: &str| text.starts_with(front) && text.ends_with(back);
    ["<pad>", "<mask>"].contains(&text) || is_between("<|", "|>") || is_between("<unused", ">")
}
