//! What is attached to a model, as an adapter of its own: the exact low-rank form of a static mixture.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use molora_adapters::ExpertBank;
use molora_routing::{Granularity, RouteInput, Router};

use super::resolve::{FullTensor, FullValue, ModuleLora, ResolvedAdapter};
use crate::modules::{BaseModel, PartMut};
use crate::{Adaptable, Adapter, ForwardContext, LayerRouter, MoLoraLinear, ModelError, ModelPart};

/// The mixture of the attached experts under fixed weights, as one LoRA for each adapted module: the
/// experts' factors side by side, rank `E R`, or rank R where the experts share `A`. Nothing is
/// approximated. Tables that are trained whole are in it as they are.
///
/// `weights` gives one weight for each expert of a site, by the site's path. An expert of weight 0
/// is left out.
///
/// # Errors
/// [`ModelError::Inconsistent`] if nothing is attached, a site gets another number of weights than it
/// has experts, or magnitudes (DoRA) would be mixed.
pub fn mixture<M: BaseModel>(
    model: &M,
    weights: impl Fn(&str, &Adapter) -> Vec<f64>,
) -> Result<ResolvedAdapter, ModelError> {
    mixture_of(model, weights, None)
}

/// [`mixture`], for a task if one is given.
fn mixture_of<M: BaseModel>(
    model: &M,
    weights: impl Fn(&str, &Adapter) -> Vec<f64>,
    task: Option<&Tensor<2>>,
) -> Result<ResolvedAdapter, ModelError> {
    let mut model = model.clone();
    let mut loras = Vec::new();
    for module in model.modules_mut() {
        let PartMut::Linear(parts, _) = module.part else {
            continue;
        };
        let mut sides = Vec::new();
        for part in &parts {
            let weights = part.adapter.as_ref().map(|a| weights(&module.path, a));
            sides.push(side(&module.path, part, weights, task)?);
        }
        loras.extend(beside(module.path, sides));
    }
    if loras.is_empty() {
        let text = "no adapter is attached, expected at least one";
        return Err(ModelError::Inconsistent(text.into()));
    }
    let full = saved(&mut model);
    Ok(ResolvedAdapter {
        loras,
        unties: !full.is_empty(),
        full,
        dropout: 0.0,
    })
}

/// The tables that are trained whole.
fn saved<M: Adaptable>(model: &mut M) -> Vec<FullTensor> {
    let tables = model.saved_mut().into_iter();
    let full = tables.map(|(path, table)| FullTensor {
        path,
        value: FullValue::Matrix(table.val().detach()),
    });
    full.collect()
}

/// The expert of this number of every site alone, as one LoRA of rank R.
///
/// # Errors
/// As [`mixture`], or [`ModelError::Inconsistent`] if a site has no such expert.
pub fn expert<M: BaseModel>(model: &M, expert: usize) -> Result<ResolvedAdapter, ModelError> {
    let mut copy = model.clone();
    for (path, site) in attached(&mut copy) {
        let count = site.bank.choices();
        if expert >= count {
            return Err(ModelError::Inconsistent(format!(
                "expert {expert} does not exist: {path} has {count} experts"
            )));
        }
    }
    mixture(model, |_, site| {
        let mut weights = vec![0.0; site.bank.choices()];
        weights[expert] = 1.0;
        weights
    })
}

/// The mixture of a model whose experts have weights that do not depend on the input.
///
/// # Errors
/// As [`mixture`], or [`ModelError::Inconsistent`] if a router or a task gate decides: no fixed
/// weights exist then.
pub fn static_mixture<M: BaseModel + Adaptable>(model: &M) -> Result<ResolvedAdapter, ModelError> {
    mixture_for(model, None)
}

/// As [`static_mixture`] for one task, which is fixed: `task` `[1, tasks]` picks it, see
/// [`task_selector`](molora_adapters::task_selector). Gates and routers by task then have fixed
/// weights too.
///
/// # Errors
/// As [`static_mixture`].
pub fn mixture_for<M: BaseModel + Adaptable>(
    model: &M,
    task: Option<Tensor<2>>,
) -> Result<ResolvedAdapter, ModelError> {
    let layers = model.layer_routers();
    let of_feed_forward = |(_, layer): &(_, &LayerRouter)| layer.of_feed_forward().is_some();
    let by_part = model.part().map(ModelPart::what);
    let by_layer = "its experts are mixed in whole feed-forward parts";
    let by_layer = layers.iter().any(of_feed_forward).then_some(by_layer);
    if let Some(what) = by_part.or(by_layer) {
        let text = format!("the mixture is not static: {what}");
        return Err(ModelError::Inconsistent(text));
    }
    let mut weights = BTreeMap::new();
    for (path, site) in model.sites() {
        // The first router behind which the site stands.
        let layer = layers
            .iter()
            .rev()
            .find(|(_, layer)| layer.site() <= site.site());
        let shared = layer.map(|(_, layer)| &layer.router);
        let fixed = fixed_weights(site, shared, task.as_ref());
        let fixed = fixed.map_err(|why| {
            ModelError::Inconsistent(format!("the mixture is not static: {path}: {why}"))
        })?;
        weights.insert(site.site(), fixed);
    }
    mixture_of(
        model,
        |_, site| weights[&site.site()].clone(),
        task.as_ref(),
    )
}

/// The weights of a site's experts, or what they depend on.
fn fixed_weights(
    site: &Adapter,
    shared: Option<&Router>,
    task: Option<&Tensor<2>>,
) -> Result<Vec<f64>, &'static str> {
    let router = site.router.as_ref().or(shared);
    let by_task = router.filter(|router| !router.is_uniform());
    match by_task.map(Router::granularity) {
        Some(Granularity::Token) => {
            return Err("its router weighs the experts anew for each token");
        }
        Some(Granularity::Sequence) => {
            return Err("its router weighs the experts anew for each sequence");
        }
        Some(Granularity::Task) if task.is_none() => {
            return Err("its router weighs the experts by task");
        }
        _ if site.gate.is_some() && task.is_none() => return Err("its gate depends on the task"),
        _ => {}
    }
    let device = site.bank.b.device();
    let mut context = ForwardContext::new(Tensor::ones([1, 1], &device));
    context.tasks = task.cloned();
    let routed = router.map(|router| {
        // Neither a uniform router nor one by task reads features.
        router.route(&RouteInput {
            features: Tensor::zeros([1, 1, 1], &device),
            mask: context.mask.clone(),
            tasks: context.tasks.clone(),
            columns: None,
        })
    });
    match site.decided_weights(routed.as_ref(), &context) {
        None => Ok(vec![1.0; site.bank.choices()]),
        Some(weights) => Ok(weights.into_data().iter::<f64>().collect()),
    }
}

/// Removes all adapters, magnitudes, routers and tables that are trained whole.
pub fn detach<M: BaseModel>(model: &mut M) {
    model.clear_routers();
    for module in model.modules_mut() {
        if let PartMut::Linear(parts, _) = module.part {
            parts.into_iter().for_each(MoLoraLinear::detach);
        }
    }
}

fn attached<M: BaseModel>(model: &mut M) -> Vec<(String, &Adapter)> {
    let mut sites = Vec::new();
    for module in model.modules_mut() {
        if let PartMut::Linear(parts, _) = module.part {
            let path = module.path;
            let own = parts.into_iter().filter_map(|part| part.adapter.as_ref());
            sites.extend(own.map(|adapter| (path.clone(), adapter)));
        }
    }
    sites
}

/// The LoRA of one linear layer, if it has an adapter, and the layer's width.
struct Side {
    lora: Option<ModuleLora>,
    d_output: usize,
}

fn side(
    path: &str,
    linear: &MoLoraLinear,
    weights: Option<Vec<f64>>,
    task: Option<&Tensor<2>>,
) -> Result<Side, ModelError> {
    let d_output = linear.dims().d_output;
    let (Some(adapter), Some(weights)) = (&linear.adapter, weights) else {
        return Ok(Side {
            lora: None,
            d_output,
        });
    };
    let refuse = |text: String| Err(ModelError::Inconsistent(format!("{path}: {text}")));
    let (count, found) = (adapter.bank.choices(), weights.len());
    if count != found && count * adapter.bank.groups() != found {
        return refuse(format!("{found} weights for {count} experts"));
    }
    if adapter.is_beside() {
        return refuse("its experts stand beside the whole feed-forward part".into());
    }
    if adapter.magnitude.is_some() && weights != [1.0] {
        return refuse("magnitudes (DoRA) belong to one expert of weight 1".into());
    }
    if adapter.bank.core.reads_tasks() && task.is_none() {
        return refuse("what its experts do depends on the task, and none is fixed".into());
    }
    if !adapter.bank.is_linear() {
        let name = match adapter.bank.core.is_linear() {
            true => adapter.bank.combine().name(),
            false => adapter.bank.core.name(),
        };
        return refuse(format!("no LoRA computes what {name} makes of its experts"));
    }
    let (a, b) = factors(adapter, &weights, task);
    let magnitude = adapter.magnitude.as_ref().map(|magnitude| magnitude.val());
    let lora = ModuleLora {
        path: path.into(),
        a,
        b,
        scale: adapter.bank.factor(),
        magnitude,
    };
    Ok(Side {
        lora: Some(lora),
        d_output,
    })
}

/// `A` and `B` of the weighted experts, without the bank's factor; behind them what the layer loses
/// where experts started as parts of its weight.
fn factors(adapter: &Adapter, weights: &[f64], task: Option<&Tensor<2>>) -> (Tensor<2>, Tensor<2>) {
    let bank = &adapter.bank;
    let (a, b) = match bank.combine().is_sum() {
        true => summed(bank, weights, task),
        false => {
            let experts = bank.choices();
            let shape = [1, weights.len() / experts, experts];
            let values: Vec<f32> = weights.iter().map(|weight| *weight as f32).collect();
            let weights = Tensor::from_data(TensorData::new(values, shape), &bank.b.device());
            let (a, b) = bank.factors(weights, task);
            (a.detach(), b.detach())
        }
    };
    match bank.lost() {
        Some((lost_a, lost_b)) => (
            Tensor::cat(vec![a, lost_a.detach()], 1),
            Tensor::cat(vec![b, lost_b.detach()], 0),
        ),
        None => (a, b),
    }
}

/// The factors of a weighted sum of experts.
fn summed(bank: &ExpertBank, weights: &[f64], task: Option<&Tensor<2>>) -> (Tensor<2>, Tensor<2>) {
    let a = bank.a_with_core(task).detach();
    let (rank, is_shared) = (bank.rank(), bank.num_a() < weights.len());
    let b = |expert: usize| bank.b.val().detach().narrow(0, expert * rank, rank);
    let weighed = weights
        .iter()
        .enumerate()
        .filter(|(_, weight)| **weight != 0.0);
    let weighed: Vec<(usize, f64)> = weighed.map(|(expert, weight)| (expert, *weight)).collect();
    if is_shared || weighed.is_empty() {
        let zero = Tensor::zeros([rank, bank.b.dims()[1]], &a.device());
        let sum =
            |sum: Tensor<2>, (expert, weight): &(usize, f64)| sum + b(*expert).mul_scalar(*weight);
        let columns = a.narrow(1, 0, rank);
        return (columns, weighed.iter().fold(zero, sum));
    }
    let own = |(expert, weight): &(usize, f64)| {
        let columns = a.clone().narrow(1, expert * rank, rank);
        match *weight == 1.0 {
            true => columns,
            false => columns.mul_scalar(*weight),
        }
    };
    let a_parts = weighed.iter().map(own).collect();
    let b_parts = weighed.iter().map(|(expert, _)| b(*expert)).collect();
    (Tensor::cat(a_parts, 1), Tensor::cat(b_parts, 0))
}

/// The LoRA of a module whose layers stand side by side: one `A` if they have the same, else all of
/// them, each with rows of `B` that reach its own outputs alone.
fn beside(path: String, sides: Vec<Side>) -> Option<ModuleLora> {
    let first = sides.iter().find_map(|side| side.lora.clone())?;
    if sides.len() == 1 {
        return Some(first);
    }
    let same = |lora: &ModuleLora| lora.scale == first.scale && values(&lora.a) == values(&first.a);
    let is_common = sides.iter().all(|side| side.lora.as_ref().is_none_or(same));
    let device = first.a.device();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let width: usize = sides.iter().map(|side| side.d_output).sum();
    let mut start = 0;
    for side in &sides {
        if let Some(lora) = &side.lora {
            let rank = lora.a.dims()[1];
            let scale = lora.scale / first.scale;
            let zeros = |count| Tensor::<2>::zeros([rank, count], &device);
            let row = [
                zeros(start),
                lora.b.clone().mul_scalar(scale),
                zeros(width - start - side.d_output),
            ];
            let row = row.into_iter().filter(|part| part.dims()[1] > 0);
            a.push(lora.a.clone());
            b.push(Tensor::cat(row.collect(), 1));
        }
        start += side.d_output;
    }
    let (a, b) = match is_common {
        true => {
            let zero = b[0].zeros_like();
            (
                first.a.clone(),
                b.into_iter().fold(zero, |sum, row| sum + row),
            )
        }
        false => (Tensor::cat(a, 1), Tensor::cat(b, 0)),
    };
    let magnitudes = sides
        .iter()
        .map(|side| side.lora.as_ref()?.magnitude.clone());
    let magnitude = magnitudes
        .collect::<Option<Vec<_>>>()
        .map(|m| Tensor::cat(m, 0));
    Some(ModuleLora {
        path,
        a,
        b,
        scale: first.scale,
        magnitude,
    })
}

fn values<const D: usize>(tensor: &Tensor<D>) -> TensorData {
    tensor.clone().into_data()
}
