//! One adapter, or one model, from several experts.
//!
//! Experts are plain LoRAs: of a run's `experts/`, a whole run that one LoRA equals, or a folder that
//! PEFT wrote. Ranks, scalings and targets may differ where the method allows it; a module that only
//! some of them change is merged from those.

mod entropy;
mod given;
mod how;
mod learn;
mod realign;
mod routed;
mod scores;
mod write;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use molora_adapters::merge::{MergeMethod, Sign};
use molora_kernels::random::Seed;
use molora_models::Backbone;
use molora_models::peft::{
    self, MergedDtype, ResolvedAdapter, WeightDeltas, add_deltas, merge_into, merged_deltas,
};

pub use how::How;

use self::entropy::Records;
use self::given::{Expert, Origin};
use self::how::Computes;
use self::learn::Learning;
use self::realign::Realign;
use self::scores::Asked;
use self::write::Beside;
use super::{Exported, check_new, refuse_twice};
use crate::TrainError;
use crate::base::DeviceSpec;
use crate::report::EvalReport;
use crate::train::Event;

/// Why a method that learns by entropy cannot.
const NOTHING_TO_LEARN: &str = "no task in --data has classes or texts, of which it learns";

/// What is merged, and where to.
#[derive(Debug, Clone)]
pub struct CombineRequest {
    /// Folders of the experts.
    pub experts: Vec<PathBuf>,
    /// The method.
    pub how: How,
    /// A weight for each expert; the method's own if `None`.
    pub weights: Option<Vec<f64>>,
    /// Share of the entries that stay; the method's own if `None`.
    pub density: Option<f64>,
    /// How the sign of an entry is elected; by the sum if `None`.
    pub sign: Option<Sign>,
    /// Rank of the LoRA.
    pub rank: Option<usize>,
    /// Whether a whole model is written although one LoRA might hold the result.
    pub whole: bool,
    /// Type of the numbers of a whole model.
    pub dtype: MergedDtype,
    /// The base model; that of the experts if `None`.
    pub base: Option<String>,
    /// Folder of tasks on which the result is scored.
    pub data: Option<String>,
    /// Number of steps of a method that learns; its own if `None`.
    pub steps: Option<usize>,
    /// Modules that `r-mtllmf` leaves out, besides tables of embeddings: names, globs or `regex:...`.
    pub exclude: Vec<String>,
    /// Labelled records of each task that `r-mtllmf` trains on; 16 if `None`.
    pub shots: Option<usize>,
    /// Seed of every random draw.
    pub seed: u64,
    /// Folder to write.
    pub out: PathBuf,
    /// The device.
    pub device: DeviceSpec,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// PEFT's files of a LoRA.
    Lora(Exported),
    /// A whole model.
    Whole {
        /// Number of modules whose weights changed.
        modules: usize,
    },
    /// A run whose routers weigh the experts.
    Run {
        /// Number of experts.
        experts: usize,
        /// Rank of the experts.
        rank: usize,
        /// Number of adapted layers.
        sites: usize,
    },
}

/// What was merged.
#[derive(Debug)]
pub struct Combined {
    /// The files.
    pub written: Written,
    /// Weights of the experts: of a method that learns, each one's mean over the modules.
    pub weights: Vec<f64>,
    /// What a method that learns made smaller, before and after: the mean entropy of predictions on
    /// unlabelled records, or the mean loss of `r-mtllmf`'s labelled ones.
    pub objective: Option<(f64, f64)>,
    /// Tasks whose heads were written beside.
    pub heads: Vec<String>,
    /// Tasks for which several experts brought a head, so that none was written.
    pub left_out: Vec<String>,
    /// Scores on the test split, if there are tasks.
    pub scores: Option<EvalReport>,
}

/// Merges experts and writes the result. What can be checked without a model is checked first.
///
/// # Errors
/// [`TrainError::Combine`] for numbers that are out of range or do not go together; an expert that is
/// not there, is no LoRA, or belongs to another base model; any problem with model, data or folder;
/// [`TrainError::Stopped`] if `stop` was set while it learned.
pub fn combine(
    request: &CombineRequest,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Combined, TrainError> {
    how::check(request)?;
    check_new(&request.out)?;
    request.device.check()?;
    refuse_twice(&request.experts)?;
    let origins = request.experts.iter().map(|folder| Origin::of(folder));
    let origins: Vec<Origin> = origins.collect::<Result<_, _>>()?;
    let model = given::base(request, &origins, stop, on_event)?;
    if let Some(router) = request.how.router() {
        return routed::combine(request, router, &model.name, stop, on_event);
    }
    on_event(Event::Phase("loading model and experts"));
    let base_name = given::base_name(&origins, &model);
    let device = request.device.open()?;
    let device = match request.how.learns() {
        true => device.autodiff(),
        false => device,
    };
    let base = Backbone::from_folder(&model.folder, &device)?;
    let experts = origins
        .iter()
        .map(|origin| origin.read(&base, request, &device));
    let experts: Vec<Expert> = experts.collect::<Result<_, _>>()?;
    let (heads, left_out) = scores::heads(&experts);
    let asked = request.data.as_deref();
    let asked = asked.map(|data| Asked::read(data, &model.folder, &base, &origins, &heads));
    let asked = asked.transpose()?;
    let merging = Merging {
        request,
        base: &base,
        experts: &experts,
        device: &device,
    };
    let merged = match &asked {
        Some(asked) if request.how == How::RMtllmf => {
            on_event(Event::Phase("realigning with labelled records"));
            merging.realigned(asked, stop)?
        }
        Some(asked) if request.how.learns() => {
            on_event(Event::Phase("learning from unlabelled records"));
            merging.learned(asked, stop)?
        }
        _ => {
            on_event(Event::Phase("merging"));
            merging.merged()?
        }
    };
    if let Some(adapter) = &merged.adapter {
        how::check_range(request, adapter)?;
    }
    let beside = Beside {
        origins: &origins,
        source: &model.folder,
        heads: &heads,
        out: &request.out,
        certified: crate::verify::Origin::of(&model, request.device)?,
        dtype: request.dtype,
    };
    let written = match &merged.adapter {
        Some(adapter) if !request.whole => beside.lora(&base, adapter, base_name)?,
        _ => beside.whole(&merged.model, merged.modules)?,
    };
    if asked.is_some() {
        on_event(Event::Phase("evaluating on the test split"));
    }
    let scores = asked.map(|asked| asked.scores(merged.model, &device));
    Ok(Combined {
        written,
        weights: merged.weights,
        objective: merged.objective,
        heads: heads.into_iter().map(|(task, _)| task).collect(),
        left_out,
        scores: scores.transpose()?,
    })
}

/// The merged model, and the LoRA that it is of, if there is one.
struct Merged {
    model: Backbone,
    adapter: Option<ResolvedAdapter>,
    modules: usize,
    weights: Vec<f64>,
    objective: Option<(f64, f64)>,
}

/// Experts that have been read, about to be merged.
struct Merging<'a> {
    request: &'a CombineRequest,
    base: &'a Backbone,
    experts: &'a [Expert],
    device: &'a Device,
}

impl Merging<'_> {
    /// By numbers that are known.
    fn merged(&self) -> Result<Merged, TrainError> {
        let weights = how::weights(self.request)?;
        let adapters = self.experts.iter().map(|expert| &expert.adapter);
        let adapters: Vec<_> = adapters.zip(weights.iter().copied()).collect();
        Ok(match how::computes(self.request, &adapters)? {
            Computes::Factors(method) => self.of_lora(peft::combine(&adapters, method)?, weights),
            Computes::Deltas(rule) => self.of_deltas(&merged_deltas(&adapters, rule)?, weights),
        })
    }

    /// By coefficients that are learned.
    fn learned(&self, asked: &Asked, stop: &AtomicBool) -> Result<Merged, TrainError> {
        let request = self.request;
        let seed = Seed::new(request.seed);
        let mut records = Records::new(asked, seed.child("records"), self.device)?;
        if records.len() == 0 {
            return Err(how::refusal(request, NOTHING_TO_LEARN.into()));
        }
        let adapters: Vec<_> = self.experts.iter().map(|expert| &expert.adapter).collect();
        let learning = Learning::new(self.base, &adapters, request.density, seed, self.device);
        let steps = request.steps.unwrap_or_else(|| request.how.steps());
        let is_masked = request.how == How::Concrete;
        let learned = learning.learn(&mut records, steps, is_masked, stop)?;
        let merged = match learned.adapter {
            Some(adapter) => self.of_lora(adapter, learned.weights),
            None => self.of_deltas(&learned.deltas, learned.weights),
        };
        Ok(Merged {
            objective: Some(learned.entropy),
            ..merged
        })
    }

    /// By a sum without the modules that are left out, which then trains on a few labelled records.
    fn realigned(&self, asked: &Asked, stop: &AtomicBool) -> Result<Merged, TrainError> {
        let request = self.request;
        let weights = how::weights(request)?;
        let experts = self.experts.iter().map(|expert| &expert.adapter);
        let kept = realign::kept(self.base, experts, &request.exclude)?;
        let adapters: Vec<_> = kept.iter().zip(weights.iter().copied()).collect();
        let fused = peft::combine(&adapters, MergeMethod::Cat)?;
        if fused.loras.is_empty() {
            let problem = "no module is left that an expert changes";
            return Err(how::refusal(request, problem.into()));
        }
        let realign = Realign {
            base: self.base,
            asked,
            shots: request.shots.unwrap_or(realign::SHOTS),
            steps: request.steps.unwrap_or_else(|| request.how.steps()),
            seed: Seed::new(request.seed),
            device: self.device,
        };
        let (adapter, loss) = realign.run(&fused, stop)?;
        Ok(Merged {
            objective: Some(loss),
            ..self.of_lora(adapter, weights)
        })
    }

    fn of_lora(&self, adapter: ResolvedAdapter, weights: Vec<f64>) -> Merged {
        let mut model = self.base.clone();
        merge_into(&mut model, &adapter);
        Merged {
            model,
            modules: adapter.loras.len(),
            adapter: Some(adapter),
            weights,
            objective: None,
        }
    }

    fn of_deltas(&self, deltas: &WeightDeltas, weights: Vec<f64>) -> Merged {
        let mut model = self.base.clone();
        add_deltas(&mut model, deltas);
        Merged {
            model,
            modules: deltas.changes.iter().count(),
            adapter: None,
            weights,
            objective: None,
        }
    }
}
