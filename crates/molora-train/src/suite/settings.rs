//! Recipes with the settings of a suite, and where they have others.

use serde_json::Value;

use super::format::Suite;
use super::prepare::Prepared;
use crate::TrainError;
use crate::compare::LEARNING_RATE;
use crate::data::Templates;
use crate::recipe::{BaseKind, Recipe, overrides};

/// Settings of models that write.
const WRITING: &str = "data.writing";

impl Suite {
    /// A recipe with the settings of the papers' scripts: prompts, decoding, lengths, rates and steps. An
    /// encoder has no prompts.
    ///
    /// # Errors
    /// A setting that no recipe has.
    pub fn set_up(
        &self,
        recipe: &Recipe,
        kind: BaseKind,
        prepared: &Prepared,
    ) -> Result<Recipe, TrainError> {
        let mut recipe = recipe.clone();
        for (key, value) in self.settings_for(kind) {
            recipe = with(&recipe, key, value)?;
        }
        if kind == BaseKind::Writer {
            let writing = &mut recipe.data.writing;
            writing.template.clone_from(&self.template);
            for task in &self.tasks {
                let is_trained = prepared.trained.contains(&task.name);
                if let Some(templates) = Templates::new(task.templates.clone())
                    && is_trained
                {
                    writing.templates.insert(task.name.clone(), templates);
                }
            }
        }
        if let Some(rate) = self.published.learning_rate {
            recipe.set_learning_rate(rate);
        }
        self.set_steps(&mut recipe, prepared);
        Ok(recipe)
    }

    /// Gives a recipe the papers' number of steps, which depends on the size of its batches.
    pub fn set_steps(&self, recipe: &mut Recipe, prepared: &Prepared) {
        if let Some(steps) = self.steps(recipe, prepared) {
            recipe.set_total_steps(steps);
        }
    }

    fn settings_for(&self, kind: BaseKind) -> impl Iterator<Item = (&String, &Value)> {
        let is_read = move |(key, _): &(&String, &Value)| {
            kind == BaseKind::Writer || !key.starts_with(WRITING)
        };
        self.settings.iter().filter(is_read)
    }

    /// The papers' number of steps on the records that there are.
    fn steps(&self, recipe: &Recipe, prepared: &Prepared) -> Option<usize> {
        let rows = recipe.data.sampling.batch_size.max(1);
        let of_epochs = |epochs: f64| (epochs * prepared.records as f64 / rows as f64).ceil();
        let of_epochs = self.published.epochs.map(of_epochs);
        let steps = self
            .published
            .steps
            .or(of_epochs.map(|steps| steps as usize));
        steps.map(|steps| steps.max(1))
    }

    /// Where a recipe has other settings than the papers, a sentence each.
    pub(super) fn differences(
        &self,
        recipe: &Recipe,
        kind: BaseKind,
        prepared: &Prepared,
    ) -> Vec<String> {
        let mut found = Vec::new();
        for (key, value) in self.settings_for(kind) {
            let is_same = with(recipe, key, value).is_ok_and(|with| with == *recipe);
            if !is_same {
                let ours = at(recipe, key);
                found.push(format!("{key}: ours {ours}, the papers' {value}"));
            }
        }
        let published = &self.published;
        if let Some(rate) = published.learning_rate {
            let ours = recipe.stages.iter().find(|stage| stage.transform.is_none());
            let ours = ours.map(|stage| stage.optimizer.learning_rate);
            if let Some(ours) = ours.filter(|ours| *ours != rate) {
                found.push(format!("{LEARNING_RATE}: ours {ours}, the papers' {rate}"));
            }
        }
        if let Some(steps) = self.steps(recipe, prepared) {
            let ours: usize = recipe.stages.iter().map(|stage| stage.steps).sum();
            if ours != steps {
                let told = match published.epochs {
                    Some(epochs) => format!("{steps} ({epochs} epochs of these records)"),
                    None => steps.to_string(),
                };
                found.push(format!("steps: ours {ours}, the papers' {told}"));
            }
        }
        let ours = recipe.adapter.bank.rank;
        if let Some(rank) = published.rank.filter(|rank| *rank != ours) {
            found.push(format!("rank: ours {ours}, the papers' {rank}"));
        }
        found
    }
}

fn with(recipe: &Recipe, key: &str, value: &Value) -> Result<Recipe, TrainError> {
    overrides::apply(recipe, &[format!("{key}={value}")])
}

/// The value at a path of a recipe, as it is written.
fn at(recipe: &Recipe, path: &str) -> String {
    let root = serde_json::to_value(recipe).expect("recipes are plain data");
    let found = root.pointer(&format!("/{}", path.replace('.', "/")));
    found.map_or_else(|| "its default".into(), Value::to_string)
}
