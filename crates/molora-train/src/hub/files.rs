//! Which files of a repository a model consists of.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::listing::Listing;
use super::{HubError, ModelId};

/// Files that every model has to have.
pub(super) const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Files that change the prompts of a model, where a repository has them.
pub(super) const OPTIONAL: [&str; 4] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
];
/// All weights in one file.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// Names the shard of each weight.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The files to read, shards of an index not among them.
pub(super) fn wanted(model: &ModelId, listing: &Listing) -> Result<Vec<&'static str>, HubError> {
    let is_there = |file: &&str| listing.sizes.contains_key(*file);
    let missing = |file: &str, hint: String| HubError::NoSuchFile {
        model: model.clone(),
        file: file.into(),
        hint,
    };
    if let Some(file) = REQUIRED.iter().find(|file| !is_there(file)) {
        return Err(missing(file, String::new()));
    }
    let Some(weights) = [WEIGHTS, INDEX].into_iter().find(is_there) else {
        let other = listing.sizes.keys().find(|name| name.ends_with(".bin"));
        let hint = other.map(|name| format!("; molora does not read {name}"));
        return Err(missing(WEIGHTS, hint.unwrap_or_default()));
    };
    let optional = OPTIONAL.into_iter().filter(is_there);
    Ok(REQUIRED
        .into_iter()
        .chain(optional)
        .chain([weights])
        .collect())
}

/// The index, if the weights are in shards.
pub(super) fn index(listing: &Listing) -> Option<&'static str> {
    let is_sharded = !listing.sizes.contains_key(WEIGHTS) && listing.sizes.contains_key(INDEX);
    is_sharded.then_some(INDEX)
}

/// Names of the shards in an index, sorted.
pub(super) fn shards(index: &Path) -> Result<Vec<String>, HubError> {
    let text = std::fs::read(index).map_err(HubError::io(index))?;
    let problem = |problem: String| HubError::Index {
        path: index.to_owned(),
        problem,
    };
    let value: Value = serde_json::from_slice(&text).map_err(|e| problem(e.to_string()))?;
    let Some(map) = value["weight_map"].as_object() else {
        return Err(problem("no object `weight_map`".into()));
    };
    let mut shards = BTreeSet::new();
    for (weight, shard) in map {
        match shard.as_str().filter(|name| is_shard(name)) {
            Some(shard) => shards.insert(shard.to_owned()),
            None => {
                let text = format!("weight {weight}: found {shard}, expected a .safetensors file");
                return Err(problem(text));
            }
        };
    }
    if shards.is_empty() {
        return Err(problem("`weight_map` names no file".into()));
    }
    Ok(shards.into_iter().collect())
}

/// A name that leads nowhere but into the folder.
fn is_shard(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.ends_with(".safetensors") && !name.starts_with('.') && name.bytes().all(is_letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(files: &[&str]) -> Listing {
        Listing {
            commit: "0".repeat(40),
            sizes: files.iter().map(|&file| (file.into(), None)).collect(),
            digests: Default::default(),
        }
    }

    #[test]
    fn nothing_but_the_model_is_wanted() {
        let id: ModelId = "a/b".parse().expect("a name");
        let all = [
            "README.md",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            INDEX,
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let found = wanted(&id, &listing(&all)).expect("a whole model");
        let expected = [
            "config.json",
            "tokenizer.json",
            "generation_config.json",
            "chat_template.jinja",
            WEIGHTS,
        ];
        assert_eq!(found, expected);
        assert_eq!(index(&listing(&all)), None);
        let sharded = listing(&["config.json", "tokenizer.json", INDEX]);
        let found = wanted(&id, &sharded).expect("a whole model");
        assert_eq!(found.last(), Some(&INDEX));
        assert_eq!(index(&sharded), Some(INDEX));
    }

    #[test]
    fn what_is_missing_is_named() {
        let id: ModelId = "a/b".parse().expect("a name");
        for (files, expected) in [
            (
                vec!["tokenizer.json", WEIGHTS],
                "a/b: the repository has no config.json",
            ),
            (
                vec!["config.json", "tokenizer.json", "pytorch_model.bin"],
                "a/b: the repository has no model.safetensors; molora does not read \
                 pytorch_model.bin",
            ),
        ] {
            let error = wanted(&id, &listing(&files)).expect_err("a file is missing");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn shards_stay_in_the_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(INDEX);
        let read = |text: &str| {
            std::fs::write(&path, text).expect("writable");
            shards(&path).map_err(|error| error.to_string())
        };
        let text = r#"{"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors",
            "c": "m-2.safetensors"}}"#;
        let found = read(text).expect("two shards");
        assert_eq!(found, ["m-1.safetensors", "m-2.safetensors"]);
        for (text, expected) in [
            ("{", "EOF"),
            ("{}", "no object `weight_map`"),
            (r#"{"weight_map": {}}"#, "names no file"),
            (
                r#"{"weight_map": {"a": "../x.safetensors"}}"#,
                "weight a: found \"../x.saf",
            ),
            (r#"{"weight_map": {"a": "x.bin"}}"#, "weight a"),
            (r#"{"weight_map": {"a": 1}}"#, "weight a: found 1"),
        ] {
            let error = read(text).expect_err("no index");
            assert!(error.contains(expected), "{error}");
        }
    }
}
