//! Settings that are tried on the validation split before the runs: the same for every recipe, the
//! reference too.
//!
//! A trial is a run with seed 0 that is scored on the validation split in place of the test split. Of
//! its folder nothing is kept but the record `trials/<recipe>-<number>.json`.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use super::error::CompareError;
use super::plan::{Plan, PlannedRecipe, steps};
use super::setting::{Setting, TunedKey, Tuning, number, with_setting};
use super::{Crew, Event, Request, State};
use crate::base::place::{discard, write_json_atomically};
use crate::data::Split;
use crate::recipe::Recipe;
use crate::report::{SCHEMA_VERSION, StateMetric, ValidationScores};
use crate::{TrainError, run};

/// Folder of the trials in a comparison's folder.
const TRIALS: &str = "trials";

/// What a trial gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// What was tried.
    pub setting: Setting,
    /// Steps of the trial.
    pub steps: usize,
    /// Its value on the validation split, by the recipe's `checkpoint.metric`; none if it failed.
    pub value: Option<f64>,
    /// Why it failed: its loss was no number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Seconds of training and of scoring while it trained.
    pub seconds: f64,
}

/// What was tried for a recipe, and what was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuned {
    /// Name of the recipe.
    pub recipe: String,
    /// What trials are compared by.
    pub metric: StateMetric,
    /// The trials.
    pub trials: Vec<Trial>,
    /// Number of the best one.
    pub best: usize,
    /// Keys whose chosen value is the least or the greatest of those that were tried: another one
    /// beyond it may be better.
    pub at_end: Vec<String>,
}

impl Tuned {
    /// The chosen values.
    pub fn setting(&self) -> &Setting {
        &self.trials[self.best].setting
    }
}

/// A trial that comes next.
#[derive(Debug, Clone, Copy)]
pub struct TrialEvent<'a> {
    /// Its number, from 1.
    pub number: usize,
    /// Number of trials.
    pub total: usize,
    /// Name of the recipe.
    pub recipe: &'a str,
    /// What is tried.
    pub setting: &'a Setting,
    /// Whether it was done before.
    pub is_done: bool,
}

/// Tries all settings of all recipes; the plan with the best of each, and what was tried.
pub(super) fn tune_all(
    request: &Request,
    plan: &Plan,
    crew: &Crew<'_>,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<(Plan, Vec<Tuned>), CompareError> {
    let Some(tuning) = &plan.tune else {
        return Ok((plan.clone(), Vec::new()));
    };
    let settings = tuning.settings();
    let total = settings.len() * plan.recipes.len();
    let one = |planned, place| One {
        request,
        plan,
        planned,
        setting: &settings[place],
        crew,
        place: trial_place(&request.out, &planned.name, place),
    };
    let choose = |planned| {
        let trials = (0..settings.len()).map(|place| one(planned, place).read());
        chosen(planned, tuning, trials.collect::<Result<_, _>>()?)
    };
    for (index, planned) in plan.recipes.iter().enumerate() {
        for (place, setting) in settings.iter().enumerate() {
            if !crew.does(index, place) {
                continue;
            }
            let number = index * settings.len() + place + 1;
            let one = one(planned, place);
            let [is_done] = crew.first_says(|| [one.record().exists()])?;
            let interrupted = CompareError::Interrupted {
                what: "trial",
                number,
                total,
            };
            on_event(Event::Trial(TrialEvent {
                number,
                total,
                recipe: &planned.name,
                setting,
                is_done,
            }));
            if is_done {
                one.read()?;
                one.clear()?;
                continue;
            }
            if crew.is_stopped(stop)? {
                return Err(interrupted);
            }
            let mut inside = |event: run::Event<'_>| on_event(Event::Inside(event));
            match one.go_on(tuning, stop, &mut inside) {
                Err(CompareError::Train(TrainError::Interrupted { .. })) => {
                    return Err(interrupted);
                }
                other => other?,
            }
        }
        // Who has all trials of a recipe need not make those of others where none of them worked.
        if crew.is_alone() {
            choose(planned)?;
        }
    }
    crew.all_are_here()?;
    let (mut tuned_plan, mut all) = (plan.clone(), Vec::new());
    for (index, planned) in plan.recipes.iter().enumerate() {
        let tuned = choose(planned)?;
        tuned_plan.recipes[index].recipe = with_setting(&planned.recipe, tuned.setting())?;
        all.push(tuned);
    }
    Ok((tuned_plan, all))
}

/// The best trial of a recipe; the first of equally good ones.
fn chosen(
    planned: &PlannedRecipe,
    tuning: &Tuning,
    trials: Vec<Trial>,
) -> Result<Tuned, CompareError> {
    let metric = planned.recipe.checkpoint.metric;
    let mut best: Option<(usize, f64)> = None;
    for (place, trial) in trials.iter().enumerate() {
        if let Some(value) = trial.value
            && best.is_none_or(|(_, old)| metric.is_better(value, old))
        {
            best = Some((place, value));
        }
    }
    let Some((best, _)) = best else {
        let recipe = planned.name.clone();
        return Err(CompareError::NoTrial { recipe });
    };
    let setting = &trials[best].setting;
    let is_at_end = |tuned: &&TunedKey| {
        let numbers: Vec<f64> = tuned.values.iter().filter_map(number).collect();
        let found = number(&setting[&tuned.key]);
        numbers.len() > 1
            && found.is_some_and(|found| {
                numbers.iter().all(|&other| other <= found)
                    || numbers.iter().all(|&other| other >= found)
            })
    };
    let at_end = tuning.keys.iter().filter(is_at_end);
    Ok(Tuned {
        recipe: planned.name.clone(),
        metric,
        at_end: at_end.map(|tuned| tuned.key.clone()).collect(),
        trials,
        best,
    })
}

fn trial_place(out: &Path, recipe: &str, number: usize) -> PathBuf {
    out.join(TRIALS).join(format!("{recipe}-{number}"))
}

/// One trial and what it belongs to.
struct One<'a> {
    request: &'a Request,
    plan: &'a Plan,
    planned: &'a PlannedRecipe,
    setting: &'a Setting,
    crew: &'a Crew<'a>,
    /// Its folder.
    place: PathBuf,
}

impl One<'_> {
    fn record(&self) -> PathBuf {
        let mut name = self.place.clone().into_os_string();
        name.push(".json");
        name.into()
    }

    fn go_on(
        &self,
        tuning: &Tuning,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(run::Event<'_>),
    ) -> Result<(), CompareError> {
        let recipe = tuning.trial(&self.planned.recipe, self.setting)?;
        let steps = steps(&recipe);
        let metric = recipe.checkpoint.metric;
        let ended = self.train(recipe, stop, on_event);
        let (value, problem, seconds) = match ended {
            Ok(finished) => {
                let summary = &finished.summary;
                let seconds = summary.train_seconds + summary.validation_seconds;
                let value = metric.of(&ValidationScores::of(&finished.eval.tasks));
                (value.is_finite().then_some(value), None, seconds)
            }
            Err(CompareError::Train(error)) if is_divergence(&error) => {
                (None, Some(error.to_string()), 0.0)
            }
            Err(error) => return Err(error),
        };
        let trial = Trial {
            version: SCHEMA_VERSION,
            setting: self.setting.clone(),
            steps,
            value,
            problem,
            seconds,
        };
        if self.crew.writes() {
            write_json_atomically(&self.record(), &trial)?;
        }
        self.clear()
    }

    /// Removes the trial's folder.
    fn clear(&self) -> Result<(), CompareError> {
        match self.crew.writes() {
            true => Ok(discard(&self.place)?),
            false => Ok(()),
        }
    }

    /// Reads the record of a trial, which has to be of the same setting.
    fn read(&self) -> Result<Trial, CompareError> {
        let path = &self.record();
        let text = fs_err::read(path)?;
        let trial: Trial = serde_json::from_slice(&text)
            .map_err(|error| CompareError::folder(path, error.to_string()))?;
        match trial.setting == *self.setting {
            true => Ok(trial),
            false => {
                let text = "is of another setting; remove it to try this one";
                Err(CompareError::folder(path, text))
            }
        }
    }

    fn train(
        &self,
        recipe: Recipe,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(run::Event<'_>),
    ) -> Result<run::Finished, CompareError> {
        let (place, group) = (&self.place, self.crew.group());
        if self.crew.state(place)? == State::Unfinished {
            let whole = run::ResumeOptions::default();
            return Ok(run::resume_on(place, &whole, group, stop, on_event)?);
        }
        // A kill between its end and its record: it is short, and made anew.
        self.clear()?;
        let request = run::Request {
            recipe,
            scored: Split::Validation,
            ..self.plan.run(self.request, self.planned, 0, &self.place)
        };
        Ok(run::train_on(&request, group, stop, on_event)?)
    }
}

/// Whether a training ended as its numbers were none any more.
fn is_divergence(error: &TrainError) -> bool {
    matches!(
        error,
        TrainError::NotFinite { .. } | TrainError::ScoreNotFinite { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::super::setting::tests::tuning;
    use super::*;
    use crate::recipe::find;

    #[test]
    fn a_value_at_the_end_of_its_list_is_named() {
        let recipe = find("lora").expect("listed");
        let planned = PlannedRecipe {
            name: "lora".into(),
            parameters: 1,
            recipe,
        };
        let tuning = tuning(&["learning_rate=1e-3,2e-3,4e-3"]);
        let trials = |values: [Option<f64>; 3]| -> Vec<Trial> {
            let settings = tuning.settings().into_iter().zip(values);
            let trial = |(setting, value)| Trial {
                version: 1,
                setting,
                steps: 10,
                value,
                problem: None,
                seconds: 1.0,
            };
            settings.map(trial).collect()
        };
        let of = |values| chosen(&planned, &tuning, trials(values));
        let found = of([Some(0.5), Some(0.7), Some(0.7)]).expect("some worked");
        assert_eq!((found.best, found.at_end.len()), (1, 0));
        let found = of([Some(0.5), None, Some(0.7)]).expect("some worked");
        assert_eq!(
            (found.best, &found.at_end[..]),
            (2, &["learning_rate".to_owned()][..])
        );
        assert!(matches!(of([None; 3]), Err(CompareError::NoTrial { .. })));
    }
}
