//! The names that a tokenizer's files give to special tokens.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::ChatError;
use super::chat::read_config;

/// Tokens with a role of their own.
const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Special tokens by role (`bos_token` and so on): `tokenizer_config.json`, or where it says nothing of
/// a role `special_tokens_map.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SpecialTokens(BTreeMap<String, String>);

impl SpecialTokens {
    /// Those of a model folder; none where it has neither file.
    ///
    /// # Errors
    /// [`ChatError`] for files that cannot be read or are no JSON object.
    pub(crate) fn from_folder(folder: &Path) -> Result<Self, ChatError> {
        let mut tokens = BTreeMap::new();
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = folder.join(name);
            if !path.is_file() {
                continue;
            }
            let config = read_config(&path)?;
            let found = config.as_object().into_iter().flat_map(roles);
            for (role, token) in found {
                tokens.entry(role).or_insert(token);
            }
        }
        Ok(Self(tokens))
    }

    /// Begin and end of a text alone.
    #[cfg(test)]
    pub(crate) fn of(bos: &str, eos: &str) -> Self {
        let pair = |role: &str, token: &str| (role.to_owned(), token.to_owned());
        Self([pair("bos_token", bos), pair("eos_token", eos)].into())
    }

    /// The token of a role.
    pub(crate) fn get(&self, role: &str) -> Option<&str> {
        self.0.get(role).map(String::as_str)
    }

    /// All, by role.
    pub(super) fn all(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

/// The roles that a file knows, among them those of a model's own (`image_token`): a token is a text
/// or an object with its `content`.
fn roles(config: &Map<String, Value>) -> Vec<(String, String)> {
    let own = ["extra_special_tokens", "model_specific_special_tokens"];
    let own = own.iter().filter_map(|name| config.get(*name)?.as_object());
    let own = own.flatten();
    let known = config.iter().filter(|(name, _)| ROLES.contains(&&name[..]));
    let text = |(name, value): (&String, &Value)| {
        let text = value.as_str().or_else(|| value["content"].as_str())?;
        Some((name.clone(), text.to_owned()))
    };
    known.chain(own).filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_fills_what_the_configuration_leaves_open() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("writable");
        };
        let read = || SpecialTokens::from_folder(folder.path()).expect("two good files");
        assert_eq!(read(), SpecialTokens::default());
        write(
            "special_tokens_map.json",
            r#"{"bos_token": {"content": "<b>"}, "eos_token": "<map>", "pad_token": "<p>"}"#,
        );
        write(
            "tokenizer_config.json",
            r#"{"eos_token": "<e>", "pad_token": null, "add_bos_token": true,
                "extra_special_tokens": {"image_token": "<i>"}}"#,
        );
        let found = read();
        let expected = [
            ("bos_token", Some("<b>")),
            ("eos_token", Some("<e>")),
            ("pad_token", Some("<p>")),
            ("image_token", Some("<i>")),
            ("unk_token", None),
        ];
        for (role, token) in expected {
            assert_eq!(found.get(role), token, "{role}");
        }
    }
}
