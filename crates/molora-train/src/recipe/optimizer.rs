//! AdamW with a learning rate per kind of parameter, warm-up and decay, and global-norm clipping.
//!
//! The update itself is burn's. Loshchilov and Hutter, arXiv:1711.05101.

mod adam_w;

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::lr_scheduler::LrSchedulerConfig;
use burn::optim::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrSchedulerConfig};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use molora_models::{ParameterKind, TaskModel};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Recipe;
use crate::model::ids_by_kind;
use adam_w::AdamWOn;

/// Numbers of AdamW; the defaults are PyTorch's but for the weight decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Peak learning rate of every kind of parameter that is not in `learning_rates`.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay of every kind of parameter that is not in `weight_decays`.
    pub weight_decay: f32,
    /// Gradients are scaled down so that their global norm does not exceed this; 0 for no limit.
    pub clip_norm: f64,
    /// Peak learning rates by kind of parameter.
    pub learning_rates: BTreeMap<ParameterKind, f64>,
    /// The learning rate of up-projections `B` is that of the adapters times this. Hayou et al., LoRA+,
    /// arXiv:2402.12354, section 4, where 16 is a good start and the rate of `A` is lowered.
    #[serde(skip_serializing_if = "is_one")]
    pub up_rate_ratio: f64,
    /// Decoupled weight decay by kind of parameter.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub weight_decays: BTreeMap<ParameterKind, f32>,
    /// That of up-projections `B`, where it is not the adapters'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_weight_decay: Option<f32>,
}

fn is_one(value: &f64) -> bool {
    *value == 1.0
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
            learning_rates: BTreeMap::from([(ParameterKind::Heads, 1e-2)]),
            up_rate_ratio: 1.0,
            weight_decays: BTreeMap::new(),
            up_weight_decay: None,
        }
    }
}

impl OptimizerConfig {
    /// What is out of range, each with the name of its field.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |field: &str, value: f64, is_ok: bool, expected: &str| {
            if !is_ok {
                problems.push(format!("{field} is {value}, expected {expected}"));
            }
        };
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let rate = self.learning_rate;
        check(
            "learning_rate",
            rate,
            positive(rate),
            "a finite number above 0",
        );
        for (kind, &rate) in &self.learning_rates {
            let field = format!("learning_rates.{kind:?}").to_lowercase();
            check(&field, rate, positive(rate), "a finite number above 0");
        }
        let ratio = self.up_rate_ratio;
        check(
            "up_rate_ratio",
            ratio,
            positive(ratio),
            "a finite number above 0",
        );
        for (field, beta) in [("beta_1", self.beta_1), ("beta_2", self.beta_2)] {
            let is_ok = (0.0..1.0).contains(&beta);
            check(field, beta.into(), is_ok, "at least 0 and less than 1");
        }
        check(
            "epsilon",
            self.epsilon.into(),
            positive(self.epsilon.into()),
            "above 0",
        );
        let mut check_decay = |field: &str, decay: f32| {
            let is_ok = decay.is_finite() && decay >= 0.0;
            check(field, decay.into(), is_ok, "at least 0");
        };
        check_decay("weight_decay", self.weight_decay);
        for (kind, &decay) in &self.weight_decays {
            check_decay(&format!("weight_decays.{kind:?}").to_lowercase(), decay);
        }
        if let Some(decay) = self.up_weight_decay {
            check_decay("up_weight_decay", decay);
        }
        let clip = self.clip_norm;
        check(
            "clip_norm",
            clip,
            clip.is_finite() && clip >= 0.0,
            "at least 0",
        );
        for kind in [ParameterKind::Base, ParameterKind::Frozen] {
            if self.weight_decays.contains_key(&kind) {
                let name = format!("weight_decays.{kind:?}").to_lowercase();
                problems.push(format!("{name} is of parameters that never train"));
            }
        }
        problems
    }

    /// An optimizer without state for the parameters of a model, on whose device a kept state is read.
    pub fn init(&self, model: &TaskModel) -> ModuleOptimizer {
        let device = model.devices().first().cloned().unwrap_or_default();
        let device = device.without_autodiff();
        let with_decay = |decay: f32| {
            let config = AdamWConfig::new()
                .with_beta_1(self.beta_1)
                .with_beta_2(self.beta_2)
                .with_epsilon(self.epsilon)
                .with_weight_decay(decay);
            AdamWOn {
                adam_w: config.build(),
                device: device.clone(),
            }
        };
        // The last group that a parameter is in has it; one of all has every parameter that is in no other.
        let all = with_decay(self.weight_decay);
        let mut optimizer = ModuleOptimizer::from(all.adam_w.clone());
        optimizer = optimizer.with_group(ParamGroup::all(), all, None);
        if !self.weight_decays.is_empty() {
            let ids = ids_by_kind(model);
            for (kind, &decay) in &self.weight_decays {
                let group = ids.get(kind).into_iter().flatten().copied();
                let group = ParamGroup::from_ids(group.collect::<Vec<_>>());
                optimizer = optimizer.with_group(group, with_decay(decay), None);
            }
        }
        if let Some(decay) = self.up_weight_decay {
            let up = ParamGroup::from_ids(model.up_projections().into_iter().collect::<Vec<_>>());
            optimizer = optimizer.with_group(up, with_decay(decay), None);
        }
        optimizer
    }

    /// The learning rates of one step, every peak times `factor`.
    ///
    /// # Panics
    /// Never: constant rates are always valid.
    pub fn rates(&self, model: &TaskModel, factor: f64) -> ModuleLearningRate {
        let ids = ids_by_kind(model);
        let base = LrSchedulerConfig::Constant(self.learning_rate * factor);
        let mut config = ModuleLrSchedulerConfig::new(base);
        let up = match self.up_rate_ratio == 1.0 {
            true => Default::default(),
            false => model.up_projections(),
        };
        let of_kind = |(kind, rate): (&ParameterKind, &f64)| {
            let ids = ids.get(kind).into_iter().flatten().copied();
            let ids: Vec<ParamId> = ids.filter(|id| !up.contains(id)).collect();
            (ids, *rate)
        };
        let mut groups: Vec<_> = self.learning_rates.iter().map(of_kind).collect();
        if !up.is_empty() {
            let rate = self.learning_rates.get(&ParameterKind::Adapters);
            let rate = rate.unwrap_or(&self.learning_rate) * self.up_rate_ratio;
            groups.push((up.iter().copied().collect(), rate));
        }
        for (ids, rate) in groups {
            let group = ParamGroup::from_ids(ids);
            config = config.with_group(group, LrSchedulerConfig::Constant(rate * factor));
        }
        config.init().expect("constant rates need no check").step()
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// It stays.
    Constant,
    /// On a line to zero at the last step.
    Linear,
    /// On half a cosine to zero at the last step.
    Cosine,
}

/// The learning rate over a stage, as a factor of its peak.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Share of the steps over which the rate rises on a line.
    pub warmup: f64,
    /// How it falls afterwards.
    pub decay: Decay,
    /// From this step on it rises and falls anew, over the steps that are left; 0 for never. A run that is
    /// continued after its end can use it.
    #[serde(skip_serializing_if = "is_zero")]
    pub restart_at: usize,
}

fn is_zero(step: &usize) -> bool {
    *step == 0
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            warmup: 0.03,
            decay: Decay::Linear,
            restart_at: 0,
        }
    }
}

impl ScheduleConfig {
    /// The factor at step `step` of `steps`, counted from 0, in (0, 1].
    pub fn factor(&self, step: usize, steps: usize) -> f64 {
        let (step, steps) = match step.checked_sub(self.restart_at) {
            Some(step) => (step, steps.saturating_sub(self.restart_at)),
            None => (step, self.restart_at),
        };
        let warmup = (self.warmup * steps as f64).ceil();
        let step = step as f64;
        if step < warmup {
            return (step + 1.0) / warmup;
        }
        let done = (step - warmup) / (steps as f64 - warmup);
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - done,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
}

impl Recipe {
    /// Sets the learning rate of the first stage that trains; those of the others keep their ratios to it.
    /// Rates that a stage gives to one kind of parameters stay as they are.
    pub fn set_learning_rate(&mut self, rate: f64) {
        let mut trained = self.stages.iter().filter(|stage| stage.transform.is_none());
        let Some(old) = trained.next().map(|stage| stage.optimizer.learning_rate) else {
            return; // named among the recipe's other problems
        };
        for stage in self.stages.iter_mut().chain(&mut self.growth) {
            let own = &mut stage.optimizer.learning_rate;
            // Not by a factor: a rate that is the first one's becomes the same number.
            *own = if *own == old { rate } else { *own / old * rate };
        }
    }
}

/// Scales gradients so that their global norm is at most `limit` (0 for no limit) and returns the
/// norm before, `[1]`. The factor is `limit / (norm + 1e-6)` where that is below 1, as in PyTorch.
pub(crate) fn clip_global_norm(
    gradients: &mut GradientsParams,
    model: &TaskModel,
    limit: f64,
) -> Option<Tensor<1>> {
    let mut squares = SumOfSquares {
        gradients,
        total: None,
    };
    model.visit(&mut squares);
    let norm = squares.total?.sqrt();
    if limit > 0.0 {
        let factor = (norm.clone() + 1e-6)
            .recip()
            .mul_scalar(limit)
            .clamp_max(1.0);
        model.visit(&mut Scale { gradients, factor });
    }
    Some(norm)
}

struct SumOfSquares<'a> {
    gradients: &'a GradientsParams,
    total: Option<Tensor<1>>,
}

impl ModuleVisitor for SumOfSquares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let square = gradient.square().sum();
            self.total = Some(match self.total.take() {
                Some(total) => total + square,
                None => square,
            });
        }
    }
}

struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    factor: Tensor<1>,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let scaled = gradient * self.factor.clone().reshape([1; D]);
            self.gradients.register(param.id, scaled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls_to_zero_after_the_last_step() {
        let schedule = ScheduleConfig {
            warmup: 0.1,
            decay: Decay::Linear,
            restart_at: 0,
        };
        let factors: Vec<f64> = (0..20).map(|step| schedule.factor(step, 20)).collect();
        assert_eq!(&factors[..3], &[0.5, 1.0, 1.0]);
        assert!((factors[19] - 1.0 / 18.0).abs() < 1e-12);
        let cosine = ScheduleConfig {
            warmup: 0.0,
            decay: Decay::Cosine,
            restart_at: 0,
        };
        assert_eq!(cosine.factor(0, 10), 1.0);
        assert!((cosine.factor(5, 10) - 0.5).abs() < 1e-12);
        let constant = ScheduleConfig {
            warmup: 0.0,
            decay: Decay::Constant,
            restart_at: 0,
        };
        assert_eq!(constant.factor(9, 10), 1.0);
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let config = OptimizerConfig {
            learning_rate: 0.0,
            beta_2: 1.0,
            weight_decays: [(ParameterKind::Routers, -1.0), (ParameterKind::Base, 0.1)].into(),
            up_weight_decay: Some(f32::NAN),
            ..Default::default()
        };
        let problems = config.problems();
        let expected = [
            "weight_decays.routers is -1, expected at least 0",
            "up_weight_decay is NaN, expected at least 0",
            "weight_decays.base is of parameters that never train",
        ];
        assert_eq!(problems[2..], expected);
        assert!(
            problems[0].starts_with("learning_rate is 0"),
            "{problems:?}"
        );
    }
}
