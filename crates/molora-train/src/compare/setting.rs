//! What a comparison tries on the validation split: keys of recipes, each with a list of values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::Value;

use super::error::CompareError;
use crate::TrainError;
use crate::recipe::{Recipe, overrides};

/// The key that stands for the rate of every stage that trains.
pub const LEARNING_RATE: &str = "learning_rate";
/// Keys of a recipe that change nothing of what is trained, or what states are compared by.
const FIXED: [&str; 6] = [
    "name",
    "citation",
    "checkpoint",
    "checkpoint_every",
    "report",
    "validation",
];
/// What is tried of it where nothing is said.
const LEARNING_RATES: [f64; 5] = [5e-4, 1e-3, 2e-3, 5e-3, 1e-2];

/// What is tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Steps of a trial in place of the recipe's own; recipes that train experts apart keep theirs, as
    /// each expert has few already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// The keys; all their values are tried with all of the others.
    pub keys: Vec<TunedKey>,
}

/// A key of recipes and its values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunedKey {
    /// `learning_rate`, or a path as `--set` takes it.
    pub key: String,
    /// The values, in the order in which they are tried.
    pub values: Vec<Value>,
}

impl TunedKey {
    /// Reads `KEY=V1,V2,...`; `learning_rate` alone stands for a list that reaches 1e-2.
    ///
    /// # Errors
    /// What is wrong with the text, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, list) = match text.split_once('=') {
            Some((key, list)) => (key.trim(), list),
            None if text.trim() == LEARNING_RATE => {
                return Ok(Self {
                    key: LEARNING_RATE.into(),
                    values: LEARNING_RATES.map(Value::Float).into(),
                });
            }
            None => return Err("no `=`, expected key.path=value,value,...".into()),
        };
        let values: Vec<Value> = entries(list).into_iter().map(overrides::parse).collect();
        let is_rate = key == LEARNING_RATE;
        for (place, value) in values.iter().enumerate() {
            if matches!(value, Value::String(text) if text.is_empty()) {
                return Err(format!("value {} is empty", place + 1));
            }
            if values[..place].contains(value) {
                return Err(format!("{value} is there twice"));
            }
            if is_rate && !number(value).is_some_and(|rate| rate > 0.0 && rate.is_finite()) {
                return Err(format!(
                    "{value} is no learning rate, expected a number above 0"
                ));
            }
        }
        Ok(Self {
            key: key.into(),
            values,
        })
    }
}

/// A list's entries: what stands between commas that are in no bracket.
fn entries(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0_i32, 0, Vec::new());
    for (place, character) in list.char_indices() {
        match character {
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(list[start..place].trim());
                start = place + 1;
            }
            _ => {}
        }
    }
    found.push(list[start..].trim());
    found
}

pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number),
        Value::Integer(number) => Some(*number as f64),
        _ => None,
    }
}

/// Values by their keys.
pub type Setting = BTreeMap<String, Value>;

impl Tuning {
    /// All settings, those of the last key changing fastest.
    pub(super) fn settings(&self) -> Vec<Setting> {
        let mut settings = vec![Setting::new()];
        for tuned in &self.keys {
            let with = |setting: &Setting| {
                let of = |value: &Value| {
                    let mut setting = setting.clone();
                    setting.insert(tuned.key.clone(), value.clone());
                    setting
                };
                tuned.values.iter().map(of).collect::<Vec<_>>()
            };
            settings = settings.iter().flat_map(with).collect();
        }
        settings
    }

    /// What is wrong, before anything is tried.
    pub(super) fn check(&self, recipes: &[Recipe]) -> Result<(), CompareError> {
        let refuse = |problem: String| Err(CompareError::Tuning { problem });
        for (place, tuned) in self.keys.iter().enumerate() {
            let key = &tuned.key;
            if self.keys[..place].iter().any(|other| other.key == *key) {
                return refuse(format!("{key} is there twice"));
            }
            if tuned.values.is_empty() {
                return refuse(format!("{key} has no values"));
            }
            let root = key.split('.').next().unwrap_or_default();
            if FIXED.contains(&root) {
                return refuse(format!("{key} is no setting of the training"));
            }
        }
        if self.keys.is_empty() {
            return refuse("there is nothing to try: give --tune too".into());
        }
        if self.steps == Some(0) {
            return refuse("--tune-steps is 0, expected at least 1".into());
        }
        for recipe in recipes {
            for setting in self.settings() {
                self.trial(recipe, &setting)?.check()?;
            }
        }
        Ok(())
    }

    /// A recipe as it is tried.
    pub(super) fn trial(&self, recipe: &Recipe, setting: &Setting) -> Result<Recipe, CompareError> {
        let mut trial = with_setting(recipe, setting)?;
        let trains_apart = trial.stages.iter().any(|stage| stage.trains_alone());
        if let Some(steps) = self.steps.filter(|_| !trains_apart) {
            trial.set_total_steps(steps);
        }
        Ok(trial)
    }
}

/// A recipe with other values.
pub(super) fn with_setting(recipe: &Recipe, setting: &Setting) -> Result<Recipe, CompareError> {
    let mut recipe = recipe.clone();
    for (key, value) in setting {
        if let Some(rate) = number(value).filter(|_| key == LEARNING_RATE) {
            recipe.set_learning_rate(rate);
            continue;
        }
        let changed = overrides::apply(&recipe, &[format!("{key}={value}")]);
        recipe = changed.map_err(|error| match error {
            TrainError::RecipeText { problem, .. } => CompareError::Tuning {
                problem: format!("{key}={value} in {}: {problem}", recipe.name),
            },
            other => other.into(),
        })?;
    }
    Ok(recipe)
}

/// The setting as one text: `learning_rate 0.002, adapter.bank.rank 4`.
pub fn setting_text(setting: &Setting) -> String {
    let texts = setting.iter().map(|(key, value)| format!("{key} {value}"));
    texts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::recipe::find;

    pub(in crate::compare) fn tuning(texts: &[&str]) -> Tuning {
        let key = |text: &&str| TunedKey::parse(text).expect("valid");
        Tuning {
            steps: None,
            keys: texts.iter().map(key).collect(),
        }
    }

    #[test]
    fn lists_are_read() {
        let found = TunedKey::parse("learning_rate").expect("the default list");
        assert_eq!(found.values.last(), Some(&Value::Float(1e-2)));
        let found = TunedKey::parse("a.b=[1, 2],[3]").expect("lists of lists");
        assert_eq!(found.values.len(), 2);
        for (text, expected) in [
            ("adapter.bank.rank", "no `=`"),
            ("learning_rate=1e-3,0", "is no learning rate"),
            ("learning_rate=1e-3,1e-3", "is there twice"),
            ("learning_rate=", "is empty"),
            ("adapter.bank.rank=4,,8", "value 2 is empty"),
        ] {
            let error = TunedKey::parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn all_values_are_tried_with_all_others() {
        let settings = tuning(&["learning_rate=1e-3,2e-3", "adapter.bank.rank=2,4,8"]).settings();
        assert_eq!(settings.len(), 6);
        assert_eq!(settings[1]["adapter.bank.rank"], Value::Integer(4));
        assert_eq!(settings[3]["learning_rate"], Value::Float(2e-3));
    }

    #[test]
    fn rates_of_stages_keep_their_ratios() {
        let mut recipe = find("moa").expect("listed");
        let rates = |recipe: &Recipe| -> Vec<f64> {
            let stages = recipe.stages.iter();
            let trained = stages.filter(|stage| stage.transform.is_none());
            trained.map(|stage| stage.optimizer.learning_rate).collect()
        };
        recipe.stages[2].optimizer.learning_rate *= 4.0;
        let before = rates(&recipe);
        let setting = tuning(&["learning_rate=3e-3"]).settings().remove(0);
        let after = rates(&with_setting(&recipe, &setting).expect("valid"));
        assert_eq!(after[0], 3e-3);
        assert!((after[1] / after[0] - before[1] / before[0]).abs() < 1e-12);
    }
}
