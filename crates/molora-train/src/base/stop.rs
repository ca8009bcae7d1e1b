//! When generation ends.

use std::path::Path;

use serde_json::{Map, Value};

use crate::data::{ChatTemplate, SpecialTokens, TextTokenizer};
use crate::error::{RunProblem, TrainError};

/// The tokens that end an answer: `eos_token_id` of `generation_config.json`, or of `config.json`, or
/// else the tokenizer's `eos_token`. A model that names none is warned of.
pub(crate) fn stop_tokens(
    folder: &Path,
    tokenizer: &TextTokenizer,
) -> Result<Vec<usize>, TrainError> {
    if let Some(found) = configured(folder)? {
        return Ok(found);
    }
    let found = tokenizer_end(folder, tokenizer)?;
    if found.is_none() {
        tracing::warn!(
            "{}: neither generation_config.json nor config.json has an eos_token_id, and the \
             tokenizer has no eos_token: texts are learned without an end, and answers go on for as \
             long as they may",
            folder.display()
        );
    }
    Ok(found.into_iter().collect())
}

/// The tokens that end an answer in a chat: those of [`stop_tokens`], the tokenizer's `eos_token`, and
/// what the template puts behind an assistant's message, which is what the model learns.
pub(crate) fn chat_stop_tokens(
    folder: &Path,
    tokenizer: &TextTokenizer,
    template: &ChatTemplate,
) -> Result<Vec<usize>, TrainError> {
    let mut found = configured(folder)?.unwrap_or_default();
    let behind = template.answer_end();
    let behind = behind.and_then(|text| tokenizer.added_at_start(&text));
    let more = behind.map(|id| id as usize);
    for end in tokenizer_end(folder, tokenizer)?.into_iter().chain(more) {
        if !found.contains(&end) {
            found.push(end);
        }
    }
    match found.is_empty() {
        true => stop_tokens(folder, tokenizer),
        false => Ok(found),
    }
}

/// The tokenizer's `eos_token`.
fn tokenizer_end(folder: &Path, tokenizer: &TextTokenizer) -> Result<Option<usize>, TrainError> {
    let special = SpecialTokens::from_folder(folder)?;
    let id = special
        .get("eos_token")
        .and_then(|end| tokenizer.id_of(end));
    Ok(id.map(|id| id as usize))
}

fn configured(folder: &Path) -> Result<Option<Vec<usize>>, TrainError> {
    for name in ["generation_config.json", "config.json"] {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let text = fs_err::read_to_string(&path)?;
        let config: Value = serde_json::from_str(&text).map_err(TrainError::json(&path))?;
        let number = |value: &Value| value.as_u64().map(|id| id as usize);
        let found = match &config["eos_token_id"] {
            Value::Null => continue,
            Value::Array(ids) => ids.iter().map(number).collect(),
            id => number(id).map(|id| vec![id]),
        };
        return found.map(Some).ok_or_else(|| {
            let problem = RunProblem::EndTokens {
                found: config["eos_token_id"].to_string(),
            };
            TrainError::run(&path, problem)
        });
    }
    Ok(None)
}

/// Writes the tokens that end an answer in a chat as `eos_token_id` of a `generation_config.json` in
/// `out`, with whatever else that of the model's folder says. Nothing is written if the model names
/// all of them itself, or has no template.
pub(crate) fn write_stop_tokens(folder: &Path, out: &Path) -> Result<(), TrainError> {
    let Some(template) = ChatTemplate::from_folder(folder)? else {
        return Ok(());
    };
    let tokenizer = TextTokenizer::from_folder(folder)?;
    let ends = chat_stop_tokens(folder, &tokenizer, &template)?;
    if ends.is_empty() || configured(folder)?.is_some_and(|found| found == ends) {
        return Ok(());
    }
    let path = folder.join("generation_config.json");
    let mut config = match path.is_file() {
        false => Value::Object(Map::new()),
        true => {
            let text = fs_err::read_to_string(&path)?;
            serde_json::from_str(&text).map_err(TrainError::json(&path))?
        }
    };
    config["eos_token_id"] = match ends[..] {
        [end] => end.into(),
        _ => ends.into(),
    };
    let out = out.join("generation_config.json");
    Ok(fs_err::write(out, format!("{config:#}\n"))?)
}
