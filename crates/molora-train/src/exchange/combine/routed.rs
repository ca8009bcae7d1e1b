//! Merges that are routed: runs whose layers have gates.
//!
//! With `h` the input of a layer, every row of a batch has a gate value for each expert, which weighs
//! what the expert adds in all of the layer's modules:
//!
//! ```text
//! g = mean over tokens of W2 relu(W1 h + b1) + b2      [B, experts]
//! y = x W_0 + sum_i g_i s_i x A_i B_i
//! ```
//!
//! which is the layer with the weights `W_0 + sum_i g_i tau_i`, run once (WEMoE, arXiv:2402.00433). The
//! gates alone are learned, by the entropy of predictions on unlabelled records; they begin near
//! task arithmetic, `b2 = 0.3`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Tensor;
use molora_kernels::random::Seed;
use molora_models::{Adaptable, Backbone, TaskModel};
use molora_routing::Scorer;
use molora_routing::scorer::PerceptronScorer;

use super::entropy::Records;
use super::learn::constant_rate;
use super::scores::Asked;
use super::{CombineRequest, Combined, Written, how};
use crate::error::{RunProblem, TrainError};
use crate::exchange::assemble::assemble_by;
use crate::exchange::{AssembleRequest, Given, RouterChoice};
use crate::model::{set_trainable, with_stable_ids};
use crate::run::Loaded;
use crate::train::Event;

/// Adam's rate, as in the authors' code.
const RATE: f64 = 1e-4;

/// Makes a run of the experts and learns its gates.
pub(super) fn combine(
    request: &CombineRequest,
    router: RouterChoice,
    base: &str,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Combined, TrainError> {
    let given = request.experts.iter().map(|folder| {
        Ok(Given {
            name: name_of(folder)?,
            folder: folder.clone(),
            instruction: None,
        })
    });
    let assembled = AssembleRequest {
        base: base.into(),
        experts: given.collect::<Result<_, TrainError>>()?,
        router,
        top_k: None,
        data: request.data.clone(),
        steps: 0,
        out: request.out.clone(),
        force: false,
        seed: request.seed,
        device: request.device,
    };
    let mut entropy = None;
    let adapt = |loaded: &Loaded, mixture: TaskModel| {
        let (mixture, found) = learn(request, loaded, mixture, stop)?;
        entropy = Some(found);
        Ok(mixture)
    };
    let found = assemble_by(&assembled, adapt, stop, on_event)?;
    Ok(Combined {
        written: Written::Run {
            experts: found.experts,
            rank: found.rank,
            sites: found.sites,
        },
        weights: Vec::new(),
        objective: entropy,
        heads: Vec::new(),
        left_out: Vec::new(),
        scores: found.finished.map(|finished| finished.eval),
    })
}

/// The name of an expert, which is that of its task: that of its folder.
fn name_of(folder: &Path) -> Result<String, TrainError> {
    let path = fs_err::canonicalize(folder)?;
    let name = path.file_name().and_then(|name| name.to_str());
    let refusal = || TrainError::run(folder, RunProblem::NoExpertHere);
    Ok(name.ok_or_else(refusal)?.to_owned())
}

/// The gates of all layers, or the one that they share.
#[derive(Module, Debug)]
struct Gates {
    gates: Vec<PerceptronScorer>,
}

impl Gates {
    /// Those of a fresh mixture.
    fn of(mixture: &TaskModel, is_shared: bool) -> Self {
        let routers = mixture.backbone.layer_routers();
        let gate = |(_, layer): (String, &molora_models::LayerRouter)| match &layer.router.scorer {
            Scorer::Perceptron(gate) => Some(gate.clone()),
            _ => None,
        };
        let count = if is_shared { 1 } else { routers.len() };
        Self {
            gates: routers.into_iter().filter_map(gate).take(count).collect(),
        }
    }

    /// The model with these gates; one for all if there is one.
    fn within(&self, backbone: &Backbone) -> Backbone {
        let mut backbone = backbone.clone();
        let gates = self.gates.iter().cycle();
        for ((_, layer), gate) in backbone.layer_routers_mut().into_iter().zip(gates) {
            layer.router.scorer = Scorer::Perceptron(gate.clone());
        }
        backbone
    }
}

/// A mixture with learned gates, and the mean entropy before and after.
fn learn(
    request: &CombineRequest,
    loaded: &Loaded,
    mixture: TaskModel,
    stop: &AtomicBool,
) -> Result<(TaskModel, (f64, f64)), TrainError> {
    let asked = Asked {
        tasks: loaded.tasks.clone(),
        heads: mixture.heads.clone(),
        data: Default::default(),
    };
    let seed = Seed::new(request.seed).child("records");
    let mut records = Records::new(&asked, seed, &loaded.device)?;
    if records.len() == 0 {
        return Err(how::refusal(request, super::NOTHING_TO_LEARN.into()));
    }
    let mut gates = Gates::of(&mixture, request.how == super::How::EWemoe);
    // Nothing but the gates has gradients.
    let frozen = set_trainable(mixture, &[]);
    let total = |gates: &Gates, records: &Records<'_>, batches: &[crate::data::Batch]| {
        let backbone = gates.within(&frozen.backbone);
        let mut total = Tensor::<1>::zeros([1], &loaded.device);
        for (task, batch) in batches.iter().enumerate() {
            total = total + records.entropy(task, &backbone, batch)?;
        }
        Ok::<_, TrainError>(total)
    };
    let mean = |gates: &Gates, records: &Records<'_>| {
        let sum = total(gates, records, &records.first())?;
        Ok::<_, TrainError>(f64::from(sum.into_scalar::<f32>()) / records.len() as f64)
    };
    let before = mean(&gates, &records)?;
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    for _ in 0..request.steps.unwrap_or_else(|| request.how.steps()) {
        if stop.load(Ordering::SeqCst) {
            return Err(TrainError::Stopped);
        }
        let batches: Vec<_> = (0..records.len()).map(|task| records.draw(task)).collect();
        let entropy = total(&gates, &records, &batches)?;
        let gradients = GradientsParams::from_grads(entropy.backward(), &gates);
        gates = optimizer.step(constant_rate(RATE), gates, gradients);
    }
    let after = mean(&gates, &records)?;
    let mixture = with_stable_ids(TaskModel {
        backbone: gates.within(&frozen.backbone),
        heads: frozen.heads.clone(),
    });
    Ok((mixture, (before, after)))
}
