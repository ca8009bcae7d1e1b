//! When a model has said all.

use std::path::Path;

use serde_json::Value;

use crate::error::{RunProblem, TrainError};

/// The tokens that end an answer: `eos_token_id` of `generation_config.json`, or of `config.json`.
pub(crate) fn stop_tokens(folder: &Path) -> Result<Vec<usize>, TrainError> {
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
        return found.ok_or_else(|| {
            let problem = RunProblem::EndTokens {
                found: config["eos_token_id"].to_string(),
            };
            TrainError::run(&path, problem)
        });
    }
    Ok(Vec::new())
}
