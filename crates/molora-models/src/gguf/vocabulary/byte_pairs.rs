//! Pairs of bytes, as GPT-2 has them.
//!
//! llama.cpp has the rules that cut texts into words by name. A rule is found by what `pre_tokenizer` says, as
//! each stands for one text of regular expressions in llama.cpp's `llama-vocab.cpp`. It normalises no text:
//! Qwen's NFC is left out there, by its own converter too.

use serde_json::{Value as Json, json};

use super::{File, Kind, Model, Tokens};
use crate::ModelError;

/// How Llama 3 cuts texts.
pub(super) const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How Qwen 2 and 3 do: every digit alone.
pub(super) const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A rule by llama.cpp's name.
struct Rule {
    name: &'static str,
    /// Steps of `pre_tokenizer`, with the fields that matter.
    steps: Vec<Json>,
    /// Whether a word that is a token is not taken apart.
    ignores_merges: bool,
    normalises: bool,
}

fn rules() -> [Rule; 4] {
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "use_regex": use_regex});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"});
    let rule = |name, steps, ignores_merges, normalises| Rule {
        name,
        steps,
        ignores_merges,
        normalises,
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    [
        rule("gpt-2", vec![bytes(true)], false, false),
        rule("smollm", vec![digits, bytes(true)], false, false),
        rule("llama-bpe", vec![split(LLAMA_3), bytes(false)], true, false),
        rule("qwen2", vec![split(QWEN_2), bytes(false)], false, true),
    ]
}

/// The rule and merges of a file, and its tokens.
pub(super) fn read(file: &File) -> Result<(Model, Tokens), ModelError> {
    let found = steps(file);
    let rules = rules();
    let rule = rules.iter().find(|rule| {
        let same = |(found, rule): (&&Json, &Json)| is_step(found, rule);
        found.len() == rule.steps.len() && found.iter().zip(&rule.steps).all(same)
    });
    let Some(rule) = rule else {
        let names: Vec<&str> = rules.iter().map(|rule| rule.name).collect();
        let expected = format!(
            "the rules of {}, and this is none of them",
            names.join(", ")
        );
        return Err(file.refuse("pre_tokenizer", &expected));
    };
    let is_nfc = |normaliser: &Json| rule.normalises && normaliser["type"] == "NFC";
    if !file.field("normalizer").is_none_or(is_nfc) {
        return Err(file.refuse("normalizer", "none with this pre_tokenizer"));
    }
    file.refuse_options(&[
        ("dropout", Json::Null),
        ("continuing_subword_prefix", Json::Null),
        ("end_of_word_suffix", Json::Null),
        ("fuse_unk", false.into()),
        ("ignore_merges", rule.ignores_merges.into()),
    ])?;
    let merges = file.merges()?;
    let merges = merges.into_iter().map(|(a, b)| format!("{a} {b}"));
    let model = Model::BytePairs {
        rule: rule.name,
        merges: merges.collect(),
    };
    let own = file.own()?.into_iter();
    let own = own.map(|(text, id)| (text.clone(), id, Kind::Normal));
    Ok((model, own.collect()))
}

/// The steps of `pre_tokenizer`.
fn steps(file: &File) -> Vec<&Json> {
    let Some(root) = file.field("pre_tokenizer") else {
        return Vec::new();
    };
    match root["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![root],
    }
}

/// Whether a step is that of a rule: its fields, and none beside them that does anything.
fn is_step(found: &Json, rule: &Json) -> bool {
    let (Some(found), Some(rule)) = (found.as_object(), rule.as_object()) else {
        return false;
    };
    let is_same = rule.iter().all(|(key, value)| match found.get(key) {
        // Files before there was the field.
        None if key == "use_regex" => *value == true,
        found => found == Some(value),
    });
    let is_idle = |(key, value): (&String, &Json)| {
        // Offsets are no tokens.
        rule.contains_key(key) || key == "trim_offsets" || *value == false || value.is_null()
    };
    is_same && found.iter().all(is_idle)
}
