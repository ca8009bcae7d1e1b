//! The methods by their names, and the numbers that each reads.

use burn::tensor::Tensor;
use molora_adapters::merge::{Join, MergeMethod, Rule, Sign, Sparsify};
use molora_models::SitePattern;
use molora_models::peft::ResolvedAdapter;

use super::CombineRequest;
use super::learn::START;
use crate::TrainError;
use crate::exchange::RouterChoice;

/// How experts become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Weighted sums of the factors (PEFT's `linear`).
    Linear,
    /// The factors side by side: exactly the weighted sum (PEFT's `cat`).
    Cat,
    /// The weighted sum, cut to a rank (PEFT's `svd`).
    Svd,
    /// The largest entries that agree with the elected sign (arXiv:2306.01708).
    Ties,
    /// Random entries, rescaled (arXiv:2311.03099).
    Dare,
    /// Random entries, rescaled, that agree with the elected sign.
    DareTies,
    /// The largest entries (PEFT's `magnitude_prune`).
    Magnitude,
    /// The sum of the task vectors by a coefficient (arXiv:2212.04089).
    TaskArithmetic,
    /// The sum of the task vectors by coefficients that make predictions on unlabelled records surer, or
    /// with a density of their largest entries that agree (arXiv:2310.02575).
    Adamerging,
    /// The same under a mask that is learned first (arXiv:2312.06173).
    Concrete,
    /// A run whose layers have gates that weigh the experts (arXiv:2402.00433).
    Wemoe,
    /// A run with one gate for all layers, over the experts' largest changes (arXiv:2410.21804).
    EWemoe,
    /// The sum of the task vectors without embeddings, trained on by a few labelled records
    /// (arXiv:2411.18220).
    RMtllmf,
}

/// What a method computes with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Computes {
    /// Low-rank factors from low-rank factors.
    Factors(MergeMethod),
    /// Whole changes of weights.
    Deltas(Rule),
}

impl How {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cat => "cat",
            Self::Svd => "svd",
            Self::Ties => "ties",
            Self::Dare => "dare",
            Self::DareTies => "dare-ties",
            Self::Magnitude => "magnitude",
            Self::TaskArithmetic => "task-arithmetic",
            Self::Adamerging => "adamerging",
            Self::Concrete => "concrete",
            Self::Wemoe => "wemoe",
            Self::EWemoe => "e-wemoe",
            Self::RMtllmf => "r-mtllmf",
        }
    }

    /// Whether it learns from records.
    pub fn learns(self) -> bool {
        self.learns_weights() || self == Self::RMtllmf
    }

    /// Whether the experts' weights are what it learns.
    fn learns_weights(self) -> bool {
        matches!(self, Self::Adamerging | Self::Concrete) || self.router().is_some()
    }

    /// What weighs the experts of a run, where the result is one.
    pub(super) fn router(self) -> Option<RouterChoice> {
        match self {
            Self::Wemoe => Some(RouterChoice::Wemoe),
            Self::EWemoe => Some(RouterChoice::EWemoe),
            _ => None,
        }
    }

    /// Whether entries are left out by a density.
    fn prunes(self) -> bool {
        matches!(
            self,
            Self::Ties | Self::Dare | Self::DareTies | Self::Magnitude
        )
    }

    /// Learning steps where none are given.
    pub fn steps(self) -> usize {
        match self {
            Self::Concrete => 1000,
            Self::Adamerging => 500,
            Self::RMtllmf => 100,
            _ => 300,
        }
    }

    /// The weight of each of `count` experts where none are given: their mean, TIES' own mean of those
    /// that agree, or the coefficient of task arithmetic's paper.
    fn weight(self, count: usize) -> f64 {
        match self {
            Self::Ties | Self::DareTies => 1.0,
            Self::TaskArithmetic | Self::RMtllmf => START,
            _ => 1.0 / count as f64,
        }
    }

    /// As in the papers: the largest fifth (TIES, section 4), half of the entries (DARE).
    fn density(self) -> f64 {
        match self {
            Self::Ties => 0.2,
            _ => 0.5,
        }
    }

    /// What becomes of entries.
    fn rule(self, density: f64, sign: Sign, seed: u64) -> Rule {
        let largest = Sparsify::Largest { density };
        let random = Sparsify::Random { density, seed };
        let (sparsify, join) = match self {
            Self::Ties => (largest, Join::Mean(sign)),
            Self::Magnitude => (largest, Join::Sum),
            Self::Dare => (random, Join::Sum),
            Self::DareTies => (random, Join::Mean(sign)),
            _ => (Sparsify::Nothing, Join::Sum),
        };
        Rule { sparsify, join }
    }
}

/// The weights of the experts.
///
/// # Errors
/// Another number of them than of experts, or one that is not finite.
pub(super) fn weights(request: &CombineRequest) -> Result<Vec<f64>, TrainError> {
    let count = request.experts.len();
    let Some(weights) = &request.weights else {
        return Ok(vec![request.how.weight(count); count]);
    };
    let found = weights.len();
    if found != count {
        let problem = format!("--weights are {found} for {count} experts, expected one for each");
        return Err(refusal(request, problem));
    }
    match weights.iter().find(|weight| !weight.is_finite()) {
        Some(weight) => {
            let problem = format!("--weights has {weight}, expected finite numbers");
            Err(refusal(request, problem))
        }
        None => Ok(weights.clone()),
    }
}

/// Refuses numbers that are out of range or that the method does not read.
pub(super) fn check(request: &CombineRequest) -> Result<(), TrainError> {
    let how = request.how;
    let refuse = |problem: &str| Err(refusal(request, problem.into()));
    weights(request)?;
    if request.experts.is_empty() {
        return refuse("there is no expert, expected at least one");
    }
    if request.density.is_some() && !how.prunes() && how != How::Adamerging {
        return refuse("reads no --density: ties, dare, dare-ties, magnitude and adamerging do");
    }
    if how.learns_weights() && request.weights.is_some() {
        return refuse("learns its weights, expected no --weights");
    }
    if how.learns() && request.data.is_none() {
        return refuse("learns from records of tasks: give --data");
    }
    if !how.learns() && request.steps.is_some() {
        return refuse("reads no --steps: adamerging, concrete, wemoe, e-wemoe and r-mtllmf do");
    }
    if how != How::RMtllmf && (request.shots.is_some() || !request.exclude.is_empty()) {
        return refuse("reads neither --shots nor --exclude: r-mtllmf does");
    }
    if request.shots == Some(0) {
        return refuse("--shots is 0, expected at least 1");
    }
    if request.whole && how.router().is_some() {
        return refuse("makes a run, which is no whole model: leave out --whole");
    }
    for pattern in &request.exclude {
        SitePattern::new(pattern)?;
    }
    if request.steps == Some(0) {
        return refuse("--steps is 0, expected at least 1");
    }
    if request.sign.is_some() && !matches!(how, How::Ties | How::DareTies) {
        return refuse("elects no --sign: ties and dare-ties do");
    }
    if let Some(rank) = request.rank {
        if rank == 0 {
            return refuse("--rank is 0, expected at least 1");
        }
        if request.whole {
            return refuse("--rank is that of a LoRA, but --whole asks for a whole model");
        }
        if !how.prunes() && how != How::Svd {
            return refuse("reads no --rank: svd, ties, dare, dare-ties and magnitude do");
        }
    }
    match request.density {
        Some(density) if !(density > 0.0 && density <= 1.0) => {
            let problem = format!("--density is {density}, expected a number above 0 and up to 1");
            Err(refusal(request, problem))
        }
        _ => Ok(()),
    }
}

/// What is computed, for these adapters.
///
/// # Errors
/// Adapters of different ranks for a method that sums factors.
pub(super) fn computes(
    request: &CombineRequest,
    adapters: &[(&ResolvedAdapter, f64)],
) -> Result<Computes, TrainError> {
    let how = request.how;
    let density = request.density.unwrap_or_else(|| how.density());
    let rule = how.rule(density, request.sign.unwrap_or_default(), request.seed);
    let ranks = || {
        let loras = adapters.iter().flat_map(|(adapter, _)| &adapter.loras);
        loras.map(|lora| lora.a.dims()[1])
    };
    let largest = ranks().max().unwrap_or(1);
    Ok(match (how, request.rank) {
        _ if request.whole && how != How::Linear && how != How::Svd => Computes::Deltas(rule),
        (How::Cat | How::TaskArithmetic | How::RMtllmf, _) => Computes::Factors(MergeMethod::Cat),
        (How::Svd, rank) => {
            let rank = rank.unwrap_or(largest);
            Computes::Factors(MergeMethod::Svd { rank })
        }
        (_, Some(rank)) => Computes::Factors(MergeMethod::Products { rule, rank }),
        (_, None) => {
            refuse_unequal_ranks(request, adapters)?;
            Computes::Factors(MergeMethod::Factors(rule))
        }
    })
}

fn refuse_unequal_ranks(
    request: &CombineRequest,
    adapters: &[(&ResolvedAdapter, f64)],
) -> Result<(), TrainError> {
    for (index, (adapter, _)) in adapters.iter().enumerate() {
        for lora in &adapter.loras {
            let others = adapters[..index].iter().enumerate();
            let mut others =
                others.filter_map(|(at, (other, _))| Some((at, other.lora(&lora.path)?)));
            let (own, path) = (lora.a.dims()[1], &lora.path);
            let Some((at, other)) = others.find(|(_, other)| other.a.dims()[1] != own) else {
                continue;
            };
            let rank = other.a.dims()[1];
            let [first, second] = [at, index].map(|at| request.experts[at].display());
            let instead = match request.how {
                How::Linear => "--how cat or svd take any",
                _ => "--rank R works on the deltas, which may have any",
            };
            let problem = format!(
                "sums factors, and at {path} {first} has rank {rank} but {second} {own}: {instead}"
            );
            return Err(refusal(request, problem));
        }
    }
    Ok(())
}

/// Refuses a merged adapter with numbers that are beyond the range of f32.
pub(super) fn check_range(
    request: &CombineRequest,
    adapter: &ResolvedAdapter,
) -> Result<(), TrainError> {
    let is_finite = |factor: &Tensor<2>| factor.to_data().iter::<f32>().all(f32::is_finite);
    let mut loras = adapter.loras.iter();
    let Some(lora) = loras.find(|lora| !is_finite(&lora.a) || !is_finite(&lora.b)) else {
        return Ok(());
    };
    let names = request
        .experts
        .iter()
        .map(|expert| expert.display().to_string());
    let names = names.collect::<Vec<_>>().join(" and ");
    let problem = format!(
        "what {names} add to {} is beyond the range of f32 under these weights; make --weights smaller",
        lora.path
    );
    Err(refusal(request, problem))
}

pub(super) fn refusal(request: &CombineRequest, problem: String) -> TrainError {
    let how = request.how.name();
    TrainError::Combine { how, problem }
}
