//! The parts of a run that one LoRA equals exactly.

use std::path::Path;

use burn::tensor::{Int, Tensor, TensorData};
use molora_adapters::task_selector;
use molora_models::Adaptable;
use molora_models::peft::{ModuleLora, ResolvedAdapter, expert, mixture_for};
use molora_routing::Granularity;

use crate::error::{RunProblem, TrainError};
use crate::run::{Opened, expert_number};

/// Which LoRA of a run is meant; the mixture itself by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoraSelector {
    /// One expert alone, by its name or number.
    pub expert: Option<String>,
    /// The task that gates and routers by task are fixed to.
    pub task: Option<String>,
}

/// The chosen LoRA of a run.
///
/// # Errors
/// [`TrainError::Run`] for an expert or task that the run has not, or a mixture that depends on the
/// input; it then says why no LoRA computes the same, and what to do.
pub(super) fn as_lora(
    run: &Path,
    opened: &Opened,
    choice: &LoraSelector,
) -> Result<ResolvedAdapter, TrainError> {
    let backbone = &opened.model.backbone;
    if let Some(name) = &choice.expert {
        let known = (&opened.expert_names()[..], num_experts(opened));
        let number = expert_number(run, known, name)?;
        if let Some(why) = no_experts(opened) {
            let problem = RunProblem::NotByLayer { why: why.into() };
            return Err(TrainError::run(run, problem));
        }
        return Ok(without_padding(expert(backbone, number)?));
    }
    let task = choice.task.as_deref();
    let task = task.map(|name| opened.task_number(run, name)).transpose()?;
    if let Some(why) = why_not(opened, task.is_some()) {
        let advice = advice(run, opened);
        return Err(TrainError::run(
            run,
            RunProblem::NoSingleLora { why, advice },
        ));
    }
    let (count, device) = (opened.config.tasks.len(), &opened.loaded.device);
    let selector = |task| task_selector(&[Some(task)], count, device);
    let selector = task.map(selector).transpose()?;
    Ok(without_padding(mixture_for(backbone, selector)?))
}

/// The same LoRA without ranks that are zero on both sides, as experts of smaller ranks have in a
/// bank, and without modules that it does not change.
fn without_padding(adapter: ResolvedAdapter) -> ResolvedAdapter {
    let loras = adapter.loras.iter().filter_map(|lora| {
        let sizes = |sums: Tensor<2>| sums.into_data().iter::<f32>().collect::<Vec<f32>>();
        let a = sizes(lora.a.clone().abs().sum_dim(0));
        let b = sizes(lora.b.clone().abs().sum_dim(1));
        let is_used = |rank: &usize| a[*rank] != 0.0 || b[*rank] != 0.0;
        let used: Vec<i64> = (0..a.len())
            .filter(is_used)
            .map(|rank| rank as i64)
            .collect();
        let count = used.len();
        let used = Tensor::<1, Int>::from_data(TensorData::new(used, [count]), &lora.a.device());
        (count > 0).then(|| ModuleLora {
            a: lora.a.clone().select(1, used.clone()),
            b: lora.b.clone().select(0, used),
            ..lora.clone()
        })
    });
    let loras: Vec<ModuleLora> = loras.collect();
    match loras.is_empty() {
        true => adapter,
        false => ResolvedAdapter { loras, ..adapter },
    }
}

/// The smallest number of experts that a site has.
fn num_experts(opened: &Opened) -> usize {
    let sites = opened.model.backbone.sites();
    let counts = sites.iter().map(|(_, site)| site.bank.choices());
    counts.min().unwrap_or(0)
}

/// Why no single LoRA computes what the mixture does.
fn why_not(opened: &Opened, has_task: bool) -> Option<String> {
    let spec = &opened.loaded.spec;
    let tasks: Vec<&str> = opened.config.tasks.iter().map(|t| &t.name[..]).collect();
    let by_task = |what: &str| {
        let tasks = tasks.join(", ");
        (!has_task).then(|| format!("{what} by task, which --task fixes to one of {tasks}"))
    };
    let router = spec.router.as_ref().filter(|router| !router.is_uniform());
    let anew = |what: &str| {
        format!(
            "no single LoRA computes what this mixture does: its routers weigh the experts anew for \
             each {what}"
        )
    };
    match router.map(|router| router.granularity) {
        Some(Granularity::Token) => Some(anew("token")),
        Some(Granularity::Sequence) => Some(anew("sequence")),
        Some(Granularity::Task) => by_task("its routers weigh the experts"),
        None if spec.gate.is_some() => by_task("its gates scale the adapter"),
        None if spec.bank.core.reads_tasks() => by_task("its experts work"),
        None => None,
    }
}

/// Why no LoRA of a layer does what a run's experts do, whatever weighs them.
pub(super) fn not_by_layer(opened: &Opened) -> Option<&'static str> {
    let sites = opened.model.backbone.sites();
    if sites.is_empty() {
        Some("its layers share their experts, so that no LoRA of a layer is one of them")
    } else if sites.iter().any(|(_, adapter)| adapter.is_beside()) {
        Some("its experts stand beside whole feed-forward parts, where no LoRA of a layer does")
    } else {
        None
    }
}

/// Why no expert of a run is a LoRA by itself.
fn no_experts(opened: &Opened) -> Option<&'static str> {
    let spec = &opened.loaded.spec;
    let router = spec.router.as_ref();
    if let Some(why) = not_by_layer(opened) {
        Some(why)
    } else if router.is_some_and(|router| router.scorer.decides()) {
        Some("its routers choose pairs of vectors, none of which is an expert by itself")
    } else if !spec.bank.is_linear() {
        Some("no LoRA computes what its experts do")
    } else {
        None
    }
}

/// What can be had instead of the mixture.
pub(super) fn advice(run: &Path, opened: &Opened) -> String {
    let (rank, run) = (opened.loaded.spec.bank.rank, run.display());
    let is_fitted = not_by_layer(opened).is_none() && opened.loaded.spec.modules_to_save.is_empty();
    let expert = match opened.expert_names().as_slice() {
        [] => format!("N (0 to {})", num_experts(opened).saturating_sub(1)),
        names => format!("NAME ({})", names.join(", ")),
    };
    let fit = is_fitted.then(|| {
        format!("molora distill {run} --rank {rank} fits the nearest LoRA and measures its error")
    });
    let has_experts = no_experts(opened).is_none();
    let alone =
        has_experts.then(|| format!("molora export {run} --expert {expert} takes one expert"));
    let advice: Vec<String> = fit.into_iter().chain(alone).collect();
    match advice.is_empty() {
        true => "molora generate and molora eval read the run itself".into(),
        false => advice.join(", and "),
    }
}
