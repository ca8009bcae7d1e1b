//! One optimizer step: a batch in, a changed model and what was measured out.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_models::{AdapterSpec, EmbeddingNoise, ForwardContext, TaskModel, TextInput};
use molora_regularize::ObjectiveConfig;
use molora_routing::Guidance;

use super::balance::{SelectionCounts, plain};
use super::checkpointed::{self, MicroBatchShare};
use super::decisions::{self, Whole};
use super::micro_batch::{Measured, MicroBatch, Name, gathered};
use super::watch::{Found, Watch};
use crate::TrainError;
use crate::collective::{self, Collective, Local, TreeSum};
use crate::data::Batch;
use crate::model::{Auxiliary, NewValues, inputs, sum_of, task_losses};
use crate::recipe::{GuardRule, StageConfig, clip_global_norm};

/// What a step measured, before it is put into words.
#[derive(Debug, Clone, PartialEq)]
pub struct StepValues {
    /// Mean task loss plus weighted auxiliary terms.
    pub loss: f64,
    /// Mean task loss over the examples of the batch, each times the weight of its task.
    pub task_loss: f64,
    /// Unweighted auxiliary terms by name.
    pub terms: BTreeMap<String, f64>,
    /// Mean loss of each task in the batch without its weight, by task number.
    pub tasks: BTreeMap<usize, f64>,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// What a guard watches; empty where it did not look.
    pub watched: Vec<Found>,
}

/// Everything that decides a step beside the model and the batch.
#[expect(missing_debug_implementations, reason = "functions have none")]
pub struct Step<'a> {
    /// The specification of the mixture.
    pub spec: &'a AdapterSpec,
    /// The auxiliary terms, if there are any.
    pub objective: Option<&'a ObjectiveConfig>,
    /// The stage that the step belongs to.
    pub stage: &'a StageConfig,
    /// The values that alone train, if that is not all that the stage trains.
    pub only: Option<&'a NewValues>,
    /// The learning rates of this step as a factor of their peaks.
    pub rate_factor: f64,
    /// What the loss of each task is multiplied by, by task number; none where all count alike.
    pub task_weights: &'a [f64],
    /// Key of the step's dropout masks, and of the noise on its embedded tokens.
    pub dropout: Seed,
    /// The device, with autodiff.
    pub device: &'a Device,
    /// The ranks that each compute a share of the micro-batches.
    pub collective: &'a dyn Collective,
    /// The rules of a guard that looks at the step; none where it does not.
    pub rules: &'a [GuardRule],
    /// The guidance of the routers for the sequences of a batch.
    pub guidance: &'a dyn Fn(&Batch) -> Result<Guidance, TrainError>,
}

impl<'a> Step<'a> {
    /// A step at the peak rates, of one process, with nothing beside the task loss: what a training of one's own begins
    /// with.
    pub fn new(
        spec: &'a AdapterSpec,
        stage: &'a StageConfig,
        dropout: Seed,
        device: &'a Device,
    ) -> Self {
        Self {
            spec,
            objective: None,
            stage,
            only: None,
            rate_factor: 1.0,
            task_weights: &[],
            dropout,
            device,
            collective: &Local,
            rules: &[],
            guidance: &|_| Ok(Guidance::default()),
        }
    }
}

impl Step<'_> {
    /// Runs the step: forward and backward over the micro-batches, clipping, AdamW.
    ///
    /// The task loss is the mean over all examples of the batch, each times the weight of its task, and
    /// gradients of micro-batches are added up along one [tree](TreeSum), so that splitting a batch changes nothing
    /// but rounding (and dropout masks), and ranks that share its micro-batches nothing at all. Auxiliary
    /// terms about decisions, such as a load balance, are those of the whole batch; others are weighted by each
    /// micro-batch's share of the tokens, which is exact for penalties on weights.
    ///
    /// # Errors
    /// A task number out of range, ranks that cannot exchange data.
    pub fn run(
        &self,
        model: TaskModel,
        optimizer: &mut ModuleOptimizer,
        batch: &Batch,
    ) -> Result<(TaskModel, StepValues), TrainError> {
        let micro_batches = batch.split(self.micro_rows(batch));
        let (rank, ranks) = (self.collective.rank(), self.collective.world_size());
        let whole = self.whole(&model, batch, &micro_batches)?;
        let (mut sum, mut own) = (TreeSum::default(), Vec::new());
        for index in collective::share(micro_batches.len(), rank, ranks) {
            let micro = &micro_batches[index];
            let (gradients, found) =
                self.backward(&model, batch, (index, micro), whole.as_ref())?;
            sum.push_leaf(index, gradients, |left, right| {
                collective::add(&model, left, right)
            });
            own.push(found);
        }
        let device = self.device.clone().inner();
        let (mut gradients, all) = gathered(self.collective, &model, sum, own, &device)?;
        let (mut choices, mut watch) = (SelectionCounts::default(), Watch::default());
        let mut measured = Vec::new();
        for micro in all {
            choices.add(micro.choices);
            watch.add(micro.watch);
            measured.extend(micro.measured);
        }
        if let Some(only) = self.only {
            only.keep_others(&mut gradients, &model);
        }
        if !self.rules.is_empty() {
            watch.weigh(&gradients, &model);
        }
        let norm = clip_global_norm(&mut gradients, &model, self.stage.optimizer.clip_norm);
        measured.extend(norm.map(|norm| (Name::GradientNorm, 1.0, norm)));
        let rates = self.stage.optimizer.rates(&model, self.rate_factor);
        let mut model = optimizer.step(rates, model, gradients);
        choices.balance(&mut model);
        let mut values = self.read(measured, batch);
        if !self.rules.is_empty() {
            values.watched = watch.read(&model, self.rules);
        }
        Ok((model, values))
    }

    /// Rows of a forward pass. Without a number of its own, each rank has one.
    fn micro_rows(&self, batch: &Batch) -> usize {
        match self.stage.micro_batch_size {
            0 => batch.rows.div_ceil(self.collective.world_size()),
            rows => rows,
        }
    }

    /// What terms about the whole batch read, if there are any and the batch is in several parts.
    fn whole(
        &self,
        model: &TaskModel,
        batch: &Batch,
        micro_batches: &[Batch],
    ) -> Result<Option<Whole>, TrainError> {
        let Some(objective) = self.objective.map(|terms| terms.of_decisions(true)) else {
            return Ok(None);
        };
        if objective.terms.is_empty() || micro_batches.len() < 2 {
            return Ok(None);
        }
        let (rank, ranks) = (self.collective.rank(), self.collective.world_size());
        let starts = micro_batches.iter().scan(0, |rows, micro| {
            let first = *rows;
            *rows += micro.rows;
            Some(first)
        });
        let first_rows: Vec<usize> = starts.collect();
        let inner = model.valid();
        let mut own = Vec::new();
        for index in collective::share(micro_batches.len(), rank, ranks) {
            let (input, context) = self.inputs(model, batch, index, &micro_batches[index])?;
            let routes = inner.forward(&input, &context).routes;
            own.push(decisions::kept(routes, first_rows[index]));
        }
        let device = self.device.clone().inner();
        let (count, guidance) = (model.heads.len(), (self.guidance)(batch)?);
        let (_, context) = inputs(batch, count, None, guidance, self.device)?;
        Ok(Some(Whole {
            objective,
            others: self
                .objective
                .map(|terms| terms.of_decisions(false))
                .unwrap_or_default(),
            context,
            decisions: decisions::gathered(self.collective, own, &device)?,
            first_rows,
        }))
    }

    /// The tensors of micro-batch number `index`, and the context of its pass.
    fn inputs(
        &self,
        model: &TaskModel,
        batch: &Batch,
        index: usize,
        micro: &Batch,
    ) -> Result<(TextInput, ForwardContext), TrainError> {
        let seed = self.dropout.index(index as u64);
        let guidance = (self.guidance)(micro)?;
        let count = model.heads.len();
        let (input, mut context) = inputs(micro, count, Some(seed), guidance, self.device)?;
        let alpha = self.stage.neftune_alpha;
        context.embedding_noise = (alpha > 0.0).then(|| EmbeddingNoise {
            alpha,
            seed: self.dropout.child("neftune"),
            first_row: index * self.micro_rows(batch),
        });
        context.keeps_codes = self.objective.is_some_and(ObjectiveConfig::reads_codes);
        Ok((input, context))
    }

    /// The gradients of a micro-batch and its number, and what was found in it.
    fn backward(
        &self,
        model: &TaskModel,
        batch: &Batch,
        (index, micro): (usize, &Batch),
        whole: Option<&Whole>,
    ) -> Result<(GradientsParams, MicroBatch), TrainError> {
        let part = MicroBatchShare {
            index,
            examples: batch.num_examples() as f64,
            tokens: micro.num_tokens() as f64 / batch.num_tokens() as f64,
            weights: self.task_weights,
            smoothing: self.stage.label_smoothing,
        };
        let (input, context) = self.inputs(model, batch, index, micro)?;
        let auxiliary = Auxiliary {
            objective: whole.map_or(self.objective, |whole| Some(&whole.others)),
            spec: self.spec,
        };
        let mut accumulator = GradientsAccumulator::new();
        let (tasks, found, routes) =
            if self.stage.gradient_checkpointing && model.num_blocks().is_some() {
                let pass = (&input, &context);
                let auxiliary = (&auxiliary, whole);
                checkpointed::backward(model, micro, pass, auxiliary, part, &mut accumulator)
            } else {
                let output = model.forward(&input, &context);
                let routes = output.routes.clone();
                let tasks = task_losses(model, &input, output, micro, part.smoothing);
                let mut total = sum_of(&tasks, part.examples, part.weights, self.device);
                let mut found = auxiliary.evaluate(model, &routes, &context);
                if let Some(extra) = found.as_ref().and_then(|found| found.total.clone()) {
                    total = total + extra.mul_scalar(part.tokens);
                }
                if let Some(whole) = whole {
                    let about = whole.evaluate(&auxiliary, model, index, &routes);
                    total = about
                        .total
                        .into_iter()
                        .fold(total, |total, extra| total + extra);
                    let terms = found.get_or_insert_default();
                    terms.terms.extend(about.terms);
                }
                let gradients = GradientsParams::from_grads(total.backward(), model);
                accumulator.accumulate(model, gradients);
                (tasks, found, routes)
            };
        let tasks = tasks.into_iter();
        let mut measured: Vec<_> = tasks
            .map(|(task, loss)| (Name::Task(task), 1.0, loss))
            .collect();
        let terms = found.into_iter().flat_map(|found| found.terms);
        measured.extend(terms.map(|(name, value)| (Name::Term(name.into()), part.tokens, value)));
        let found = MicroBatch {
            measured,
            choices: SelectionCounts::of(model, &routes),
            watch: match self.rules.is_empty() {
                true => Watch::default(),
                false => Watch::of(&routes),
            },
        };
        Ok((accumulator.grads(), found))
    }

    /// Brings all measured numbers to the host in one transfer.
    fn read(&self, measured: Vec<Measured>, batch: &Batch) -> StepValues {
        let (names, tensors): (Vec<_>, Vec<_>) = measured
            .into_iter()
            .map(|(name, share, tensor)| ((name, share), plain(tensor)))
            .unzip();
        let numbers = Tensor::cat(tensors, 0).into_data();
        let numbers = numbers.try_into_vec::<f32>().expect("losses are f32");
        let examples = batch.examples_by_task();
        let mut values = StepValues {
            loss: 0.0,
            task_loss: 0.0,
            terms: BTreeMap::new(),
            tasks: BTreeMap::new(),
            gradient_norm: 0.0,
            watched: Vec::new(),
        };
        for ((name, share), number) in names.into_iter().zip(numbers) {
            let number = f64::from(number) * share;
            match name {
                Name::Task(task) => {
                    *values.tasks.entry(task).or_default() += number / examples[&task] as f64;
                    let weight = self.task_weights.get(task).copied().unwrap_or(1.0);
                    values.task_loss += weight * number / batch.num_examples() as f64;
                }
                Name::Term(name) => *values.terms.entry(name).or_default() += number,
                Name::GradientNorm => values.gradient_norm = number,
            }
        }
        let terms = self
            .objective
            .into_iter()
            .flat_map(|objective| &objective.terms);
        let weights = terms.map(|config| (config.term.name(), config.weight));
        let weighted: f64 = weights
            .map(|(name, w)| w * values.terms.get(name).unwrap_or(&0.0))
            .sum();
        values.loss = values.task_loss + weighted;
        values
    }
}
