//! Merges whose coefficients are learned from unlabelled records.
//!
//! Every module l and expert i have a coefficient `lambda_i^l`, which scales what the expert adds to
//! the module's weight; learning makes predictions on records without labels surer:
//!
//! ```text
//! W^l = W_0^l + m^l * sum_i lambda_i^l tau_i^l,    min sum_t mean_x H(softmax f_t(x))
//! ```
//!
//! AdaMerging (arXiv:2310.02575, eq. 3 and 4) has no mask `m`. Concrete (arXiv:2312.06173) learns one
//! that all experts share: first the mask, each step under coefficients that have taken one step of
//! their own from where they began, then the coefficients under the mask.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::{Module, Param};
use burn::optim::lr_scheduler::LrSchedulerConfig;
use burn::optim::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrSchedulerConfig};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use molora_adapters::merge::{
    Sign, TaskVector, agreeing, concrete_mask, keep_largest, with_coefficients,
};
use molora_kernels::random::{Seed, uniform};
use molora_models::Backbone;
use molora_models::peft::{ModuleLora, ResolvedAdapter, WeightDeltas, add_deltas};

use super::entropy::Records;
use crate::TrainError;

/// Where coefficients begin, as task arithmetic has them.
pub(super) const START: f64 = 0.3;

/// Adam's rate, of coefficients and masks, as in the codes of both papers.
const RATE: f64 = 1e-3;

/// The rate of the single step by which coefficients answer a mask. The released configuration has
/// Adam with a rate of 1, whose first step moves each coefficient by 1.
const INNER_RATE: f64 = 0.1;

/// Temperature of the Concrete mask.
const TEMPERATURE: f64 = 0.5;

/// What each expert adds to the weight of a module.
enum Change {
    /// As factors.
    Factors(Box<Factors>),
    /// `[D, O]` for each expert.
    Dense(Vec<Tensor<2>>),
}

/// The factors of all experts side by side.
struct Factors {
    /// `[D, R]`, with the scalings.
    a: Tensor<2>,
    /// `[R, O]`.
    b: Tensor<2>,
    /// 1 where a rank is an expert's, `[experts, R]`.
    owner: Tensor<2>,
}

impl Factors {
    /// `a` with coefficients `[experts]`.
    fn weighed(&self, coefficients: Tensor<1>) -> Tensor<2> {
        let by_rank = coefficients.unsqueeze::<2>().matmul(self.owner.clone());
        self.a.clone() * by_rank
    }
}

struct Site {
    path: String,
    change: Change,
}

/// What is learned.
#[derive(Module, Debug)]
struct Parameters {
    /// `[experts, modules]`.
    coefficients: Param<Tensor<2>>,
    /// Logits of the masks, `[D, O]` for each module; none without masks.
    logits: Vec<Param<Tensor<2>>>,
}

/// The noise of the masks.
#[derive(Clone, Copy)]
enum Noise {
    /// A draw.
    Drawn(Seed),
    /// None: a mask's value where the draw is 1/2.
    Middle,
}

/// A merge under learning.
pub(super) struct Learning<'a> {
    base: &'a Backbone,
    sites: Vec<Site>,
    unties: bool,
    experts: usize,
    seed: Seed,
    device: &'a Device,
}

/// A learned merge.
pub(super) struct Learned {
    pub(super) deltas: WeightDeltas,
    /// The same as a LoRA, where one holds it.
    pub(super) adapter: Option<ResolvedAdapter>,
    /// Mean coefficient of each expert.
    pub(super) weights: Vec<f64>,
    /// Mean entropy of the tasks' predictions before and after, on the same records.
    pub(super) entropy: (f64, f64),
}

impl<'a> Learning<'a> {
    /// Learning over plain adapters; with a density each one's changes are first cut to the largest
    /// entries that have the elected sign (AdaMerging++).
    pub(super) fn new(
        base: &'a Backbone,
        adapters: &[&ResolvedAdapter],
        density: Option<f64>,
        seed: Seed,
        device: &'a Device,
    ) -> Self {
        let all = adapters.iter().flat_map(|adapter| &adapter.loras);
        let paths: BTreeSet<&str> = all.map(|lora| &lora.path[..]).collect();
        let site = |path: &str| {
            let own: Vec<Option<&ModuleLora>> = adapters.iter().map(|a| a.lora(path)).collect();
            let change = match density {
                None => factors(&own, device),
                Some(density) => Change::Dense(filtered(&own, density)),
            };
            let path = path.to_owned();
            Site { path, change }
        };
        Self {
            base,
            sites: paths.into_iter().map(site).collect(),
            unties: adapters.iter().any(|adapter| adapter.unties),
            experts: adapters.len(),
            seed,
            device,
        }
    }

    /// Learns for so many steps.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] if `stop` was set.
    pub(super) fn learn(
        &self,
        records: &mut Records<'_>,
        steps: usize,
        is_masked: bool,
        stop: &AtomicBool,
    ) -> Result<Learned, TrainError> {
        let mut parameters = self.start(is_masked);
        let before = self.mean_entropy(records, &parameters)?;
        let mask_steps = if is_masked { steps / 2 } else { 0 };
        let mut optimizer = adam();
        for step in 0..steps {
            if stop.load(Ordering::SeqCst) {
                return Err(TrainError::Stopped);
            }
            if step == mask_steps {
                // The mask stays from now on, and the moments of what was before say nothing.
                optimizer = adam();
                let start = self.start(false).coefficients;
                parameters.coefficients = start;
            }
            let is_mask = step < mask_steps;
            let noise = match is_mask {
                true => Noise::Drawn(self.seed.child("noise").index(step as u64)),
                false => Noise::Middle,
            };
            parameters = self.step(records, parameters, is_mask, noise, &mut optimizer)?;
        }
        let after = self.mean_entropy(records, &parameters)?;
        Ok(self.learned(&parameters, (before, after)))
    }

    fn start(&self, is_masked: bool) -> Parameters {
        let shape = [self.experts, self.sites.len()];
        let logits = |site: &Site| Param::from_tensor(Tensor::zeros(site.dims(), self.device));
        let logits = self.sites.iter().filter(|_| is_masked).map(logits);
        Parameters {
            coefficients: Param::from_tensor(Tensor::full(shape, START, self.device)),
            logits: logits.collect(),
        }
    }

    /// One step over a batch of every task.
    fn step(
        &self,
        records: &mut Records<'_>,
        parameters: Parameters,
        is_mask: bool,
        noise: Noise,
        optimizer: &mut ModuleOptimizer,
    ) -> Result<Parameters, TrainError> {
        let batches: Vec<_> = (0..records.len()).map(|task| records.draw(task)).collect();
        let entropy = |coefficients: Tensor<2>, logits: &[Tensor<2>]| {
            let mut model = self.base.clone();
            add_deltas(&mut model, &self.deltas(coefficients, logits, noise));
            let mut total = Tensor::<1>::zeros([1], self.device);
            for (task, batch) in batches.iter().enumerate() {
                total = total + records.entropy(task, &model, batch)?;
            }
            Ok::<_, TrainError>(total)
        };
        let own: Vec<Tensor<2>> = parameters
            .logits
            .iter()
            .map(|logits| logits.val())
            .collect();
        let total = match is_mask {
            false => {
                let fixed: Vec<Tensor<2>> = own.into_iter().map(Tensor::detach).collect();
                entropy(parameters.coefficients.val(), &fixed)?
            }
            true => {
                let fixed: Vec<Tensor<2>> = own.iter().cloned().map(Tensor::detach).collect();
                let coefficients = parameters.coefficients.val().detach().require_grad();
                let gradients = entropy(coefficients.clone(), &fixed)?.backward();
                let gradient = coefficients.grad(&gradients);
                let moved = gradient.map_or(coefficients.clone().inner(), |gradient| {
                    coefficients.inner() - gradient.mul_scalar(INNER_RATE)
                });
                entropy(Tensor::from_inner(moved), &own)?
            }
        };
        let gradients = GradientsParams::from_grads(total.backward(), &parameters);
        Ok(optimizer.step(constant_rate(RATE), parameters, gradients))
    }

    /// The change of every weight.
    fn deltas(&self, coefficients: Tensor<2>, logits: &[Tensor<2>], noise: Noise) -> WeightDeltas {
        let change = |(number, site): (usize, &Site)| {
            let own = coefficients.clone().narrow(1, number, 1).squeeze_dim(1);
            let delta = site.delta(own);
            let delta = match logits.get(number) {
                None => delta,
                Some(logits) => {
                    let noise = noise.of(&site.path, logits);
                    delta * concrete_mask(logits.clone(), noise, TEMPERATURE)
                }
            };
            (site.path.clone(), delta)
        };
        let changes = self.sites.iter().enumerate().map(change).collect();
        WeightDeltas {
            changes: TaskVector::new(changes),
            unties: self.unties,
        }
    }

    /// The mean entropy over the tasks, on the same records each time.
    fn mean_entropy(
        &self,
        records: &Records<'_>,
        parameters: &Parameters,
    ) -> Result<f64, TrainError> {
        let mut model = self.base.clone();
        let logits: Vec<_> = parameters.logits.iter().map(|l| l.val().detach()).collect();
        let coefficients = parameters.coefficients.val().detach();
        add_deltas(
            &mut model,
            &self.deltas(coefficients, &logits, Noise::Middle),
        );
        let mut total = 0.0;
        for (task, batch) in records.first().iter().enumerate() {
            let entropy = records.entropy(task, &model, batch)?;
            total += f64::from(entropy.into_scalar::<f32>());
        }
        Ok(total / records.len().max(1) as f64)
    }

    fn learned(&self, parameters: &Parameters, entropy: (f64, f64)) -> Learned {
        let coefficients = parameters.coefficients.val().inner();
        let logits: Vec<_> = parameters.logits.iter().map(|l| l.val().inner()).collect();
        let plain = |tensor: Tensor<2>| Tensor::<2>::from_inner(tensor);
        let logits: Vec<_> = logits.into_iter().map(plain).collect();
        let own = plain(coefficients.clone());
        let means = coefficients.mean_dim(1).into_data();
        let lora = |(number, site): (usize, &Site)| {
            let own = own.clone().narrow(1, number, 1).squeeze_dim(1);
            site.lora(own)
        };
        let loras = self.sites.iter().enumerate().map(lora);
        let loras: Option<Vec<ModuleLora>> = loras.collect();
        Learned {
            deltas: self.deltas(own.clone(), &logits, Noise::Middle),
            adapter: loras
                .filter(|_| logits.is_empty())
                .map(|loras| ResolvedAdapter {
                    loras,
                    full: Vec::new(),
                    unties: self.unties,
                    dropout: 0.0,
                }),
            weights: means.iter::<f64>().collect(),
            entropy,
        }
    }
}

impl Noise {
    /// Uniform numbers between 0 and 1 for a module's mask, away from both ends.
    fn of(self, path: &str, logits: &Tensor<2>) -> Tensor<2> {
        let (dims, device) = (logits.dims(), logits.device());
        match self {
            Self::Middle => Tensor::full(dims, 0.5, &device),
            Self::Drawn(seed) => {
                let draw: Tensor<2> = uniform(dims, 0.5, seed.child(path), &device);
                draw.add_scalar(0.5).clamp(1e-6, 1.0 - 1e-6)
            }
        }
    }
}

impl Site {
    fn dims(&self) -> [usize; 2] {
        match &self.change {
            Change::Factors(own) => [own.a.dims()[0], own.b.dims()[1]],
            Change::Dense(deltas) => deltas[0].dims(),
        }
    }

    /// `sum_i lambda_i tau_i` for coefficients `[experts]`.
    fn delta(&self, coefficients: Tensor<1>) -> Tensor<2> {
        match &self.change {
            Change::Factors(own) => own.weighed(coefficients).matmul(own.b.clone()),
            Change::Dense(deltas) => {
                let zero = deltas[0].zeros_like();
                with_coefficients(zero, deltas, coefficients)
            }
        }
    }

    /// The factors with coefficients `[experts]`, where they are there.
    fn lora(&self, coefficients: Tensor<1>) -> Option<ModuleLora> {
        let Change::Factors(own) = &self.change else {
            return None;
        };
        Some(ModuleLora {
            path: self.path.clone(),
            a: own.weighed(coefficients),
            b: own.b.clone(),
            scale: 1.0,
            magnitude: None,
        })
    }
}

/// The factors of all experts that change a module.
fn factors(loras: &[Option<&ModuleLora>], device: &Device) -> Change {
    let (mut a, mut b, mut owner) = (Vec::new(), Vec::new(), Vec::new());
    for (expert, lora) in loras.iter().enumerate() {
        let Some(lora) = lora else { continue };
        let rank = lora.a.dims()[1];
        a.push(lora.a.clone().mul_scalar(lora.scale));
        b.push(lora.b.clone());
        let column = Tensor::<2>::zeros([loras.len(), rank], device);
        let ones = Tensor::<2>::ones([1, rank], device);
        owner.push(column.slice_assign([expert..expert + 1, 0..rank], ones));
    }
    Change::Factors(Box::new(Factors {
        a: Tensor::cat(a, 1).detach(),
        b: Tensor::cat(b, 0).detach(),
        owner: Tensor::cat(owner, 1),
    }))
}

/// The largest entries of each expert's change that have the elected sign; zeros for one that does
/// not change the module.
fn filtered(loras: &[Option<&ModuleLora>], density: f64) -> Vec<Tensor<2>> {
    let deltas = loras.iter().map(|lora| lora.map(ModuleLora::delta));
    let deltas: Vec<Option<Tensor<2>>> = deltas.collect();
    let first = deltas.iter().flatten().next();
    let zero = first.expect("an expert changes the module").zeros_like();
    let trimmed = deltas.into_iter().map(|delta| match delta {
        Some(delta) => keep_largest(&delta, density),
        None => zero.clone(),
    });
    agreeing(&trimmed.collect::<Vec<_>>(), Sign::Total)
}

/// The same rate for every parameter.
pub(super) fn constant_rate(rate: f64) -> ModuleLearningRate {
    let rates = ModuleLrSchedulerConfig::new(LrSchedulerConfig::Constant(rate));
    rates.init().expect("a constant rate needs no check").step()
}

fn adam() -> ModuleOptimizer {
    AdamWConfig::new().with_weight_decay(0.0).init()
}
