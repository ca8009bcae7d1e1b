//! Fused adapters that a few labelled records put right again (R-MTLLMF, arXiv:2411.18220).
//!
//! Contributors' task vectors may have been changed on their way. What suffers most from noise, the
//! embeddings, is left out of the sum; after it the fused adapter trains on a few records of each
//! task.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_models::peft::{ResolvedAdapter, attach, static_mixture, tables};
use molora_models::{Backbone, ParameterKind, SitePattern, TaskModel, select_sites};

use super::learn::constant_rate;
use super::scores::Asked;
use crate::TrainError;
use crate::data::{Batch, Example, Sampler, SamplerConfig, Split};
use crate::model::{inputs, set_trainable, task_losses, with_stable_ids};

/// Labelled records of each task.
pub(super) const SHOTS: usize = 16;

/// Adam's rate.
const RATE: f64 = 1e-3;

/// The adapters without the modules that are left out: tables of embeddings, and those that a pattern
/// names.
///
/// # Errors
/// A pattern that cannot be read, or that matches nothing.
pub(super) fn kept<'a>(
    base: &Backbone,
    adapters: impl Iterator<Item = &'a ResolvedAdapter>,
    exclude: &[String],
) -> Result<Vec<ResolvedAdapter>, TrainError> {
    let adapters: Vec<&ResolvedAdapter> = adapters.collect();
    if !exclude.is_empty() {
        let loras = adapters.iter().flat_map(|adapter| &adapter.loras);
        let paths: Vec<String> = loras.map(|lora| lora.path.clone()).collect();
        select_sites(exclude, &paths)?;
    }
    let tables = tables(base);
    let patterns = exclude.iter().map(|text| SitePattern::new(text));
    let patterns: Vec<SitePattern> = patterns.collect::<Result<_, _>>()?;
    let is_left_out =
        |path: &String| tables.contains(path) || patterns.iter().any(|p| p.matches(path));
    let keep = |adapter: &ResolvedAdapter| {
        let loras = adapter.loras.iter().filter(|lora| !is_left_out(&lora.path));
        ResolvedAdapter {
            loras: loras.cloned().collect(),
            ..adapter.clone()
        }
    };
    Ok(adapters.into_iter().map(keep).collect())
}

/// A few-shot training of a fused adapter.
pub(super) struct Realign<'a> {
    pub(super) base: &'a Backbone,
    pub(super) asked: &'a Asked,
    pub(super) shots: usize,
    pub(super) steps: usize,
    pub(super) seed: Seed,
    pub(super) device: &'a Device,
}

impl Realign<'_> {
    /// The adapter after the training, and the mean loss of the labelled records before and after. Heads
    /// stay as they are.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] if `stop` was set; a task without training records.
    pub(super) fn run(
        &self,
        fused: &ResolvedAdapter,
        stop: &AtomicBool,
    ) -> Result<(ResolvedAdapter, (f64, f64)), TrainError> {
        let mut backbone = self.base.clone();
        attach(&mut backbone, fused);
        let heads = self.asked.heads.clone();
        let model = with_stable_ids(TaskModel { backbone, heads });
        let mut model = set_trainable(model, &[ParameterKind::Adapters]);
        let batches = self.batches()?;
        let number = |loss: Tensor<1>| f64::from(loss.into_scalar::<f32>());
        let before = number(self.loss(&model, &batches)?);
        let mut optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
        for _ in 0..self.steps {
            if stop.load(Ordering::SeqCst) {
                return Err(TrainError::Stopped);
            }
            let loss = self.loss(&model, &batches)?;
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(constant_rate(RATE), model, gradients);
        }
        let after = number(self.loss(&model, &batches)?);
        let mut adapter = static_mixture(&model.backbone)?;
        // Heads of generative models are no linear layers, which alone train.
        let trained = |path: &str| adapter.loras.iter().any(|lora| lora.path == path);
        let others = fused.loras.iter().filter(|lora| !trained(&lora.path));
        let others: Vec<_> = others.cloned().collect();
        adapter.loras.extend(others);
        adapter.unties = fused.unties;
        Ok((adapter, (before, after)))
    }

    /// The labelled records of each task, drawn by the seed.
    fn batches(&self) -> Result<Vec<Batch>, TrainError> {
        let batch = |task: &crate::data::TokenizedTask| {
            let lengths = task.lengths(Split::Train);
            let config = SamplerConfig {
                batch_size: self.shots.min(lengths.len().max(1)),
                ..SamplerConfig::default()
            };
            let seed = self.seed.child("shots").child(&task.name).value();
            let rows = Sampler::new(config, &[lengths], seed)?.next_batch();
            let rows: Vec<&Example> = rows.iter().map(|(_, row)| &task.train[*row]).collect();
            Ok(Batch::from_examples(&rows))
        };
        self.asked.tasks.iter().map(batch).collect()
    }

    /// The mean over the tasks of their mean losses.
    fn loss(&self, model: &TaskModel, batches: &[Batch]) -> Result<Tensor<1>, TrainError> {
        let mut total = Tensor::<1>::zeros([1], self.device);
        let share = 1.0 / batches.len().max(1) as f64;
        for batch in batches {
            let (count, guidance) = (self.asked.tasks.len(), Default::default());
            let (input, context) = inputs(batch, count, None, guidance, self.device)?;
            let output = model.forward(&input, &context);
            for (_, loss) in task_losses(model, &input, output, batch, 0.0) {
                total = total + loss.mul_scalar(share / batch.num_examples() as f64);
            }
        }
        Ok(total)
    }
}
