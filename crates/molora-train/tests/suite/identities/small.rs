//! A small BERT with an adapter of a recipe, in which everything is random.

use molora_routing::scorer::GroupedConfig;
use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Device, Int, Tensor, TensorData};
use molora_adapters::{Combine, DownConfig, ExpertBank, task_selector};
use molora_kernels::random::{Seed, uniform};
use molora_models::{
    Adaptable, AdapterSpec, Bert, EncoderInput, ExpertCount, ForwardContext, ParameterKind,
    RouteTrace,
};
use molora_parts::{Axis, Origins, PartTensor, fill};
use molora_routing::{Guidance, Router, ScorerConfig, Selection};
use molora_train::recipe;
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

const WIDTH: usize = 8;
const INNER: usize = 12;
const VOCABULARY: usize = 13;
const LAYERS: usize = 3;
/// Names of the run's tasks, of which there are as many as experts.
const TASKS: [&str; 4] = ["a", "b", "c", "d"];

/// Some recipe's name.
pub(crate) fn recipes() -> impl Strategy<Value = &'static str> {
    prop::sample::select(recipe::names().collect::<Vec<_>>())
}

/// Shapes and numbers that a property is tried with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) seed: u64,
    pub(crate) rank: usize,
    pub(crate) experts: usize,
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
}

pub(crate) fn shapes() -> impl Strategy<Value = Shape> {
    (any::<u64>(), 1_usize..4, 2_usize..5, 1_usize..4, 2_usize..7).prop_map(
        |(seed, rank, experts, batch, tokens)| Shape {
            seed,
            rank,
            experts,
            batch,
            tokens,
        },
    )
}

/// The specification of a recipe for `shape.experts` tasks. Groups, where there are any, are the
/// tasks with even and with odd numbers.
pub(crate) fn spec(name: &str, shape: Shape) -> AdapterSpec {
    let mut spec = recipe::find(name).expect("listed").adapter;
    spec.bank.rank = shape.rank;
    if spec.router.is_some() && spec.experts == ExpertCount::Same {
        set_experts(&mut spec, shape.experts);
    }
    fit(&mut spec);
    if let ExpertCount::ByLayer(list) = &mut spec.experts {
        list.truncate(LAYERS);
    }
    let tasks: Vec<String> = TASKS[..shape.experts].iter().map(|&t| t.into()).collect();
    let router = spec.router.as_ref();
    if router.is_some_and(|router| matches!(router.scorer, ScorerConfig::Grouped(_))) {
        for (number, task) in tasks.iter().enumerate() {
            let group = ["even", "odd"][number % 2];
            spec.task_groups_mut()
                .expect("it has groups")
                .entry(group.into())
                .or_default()
                .push(task.clone());
        }
    }
    spec.for_tasks(&tasks).expect("valid for these tasks")
}

/// Gives every site so many experts, of which no more are selected.
pub(crate) fn set_experts(spec: &mut AdapterSpec, experts: usize) {
    if spec.bank.costs().is_some() {
        return; // experts of different ranks are parts of one
    }
    spec.bank.num_experts = experts;
    let router = spec.router.as_mut();
    if let Some(Selection::TopK(k)) = router.map(|router| &mut router.selection) {
        *k = (*k).min(experts);
    }
}

/// Makes what does not fit layers of this width smaller.
pub(crate) fn fit(spec: &mut AdapterSpec) {
    let bank = &mut spec.bank;
    if let Combine::Sizes(sizes) = &bank.combine {
        bank.num_experts = 1;
        bank.rank = bank.rank.max(sizes.shares.len());
    }
    if let DownConfig::Factored(factored) = &mut bank.down {
        factored.subspace = factored.subspace.min(WIDTH / 2);
    }
    let (rank, experts) = (bank.rank, bank.num_experts);
    let scorer = spec.router.as_mut().map(|router| &mut router.scorer);
    if let Some(ScorerConfig::Conditional(conditional)) = scorer {
        conditional.selected = conditional.selected.min(rank).min(experts);
    }
    let bank = &mut spec.bank;
    if bank.start.reads_weight() {
        bank.rank = bank.rank.min(WIDTH / bank.num_experts);
    }
}

/// Whether a method has more than one expert of equal size.
pub(crate) fn is_mixture(name: &str) -> bool {
    let spec = recipe::find(name).expect("listed").adapter;
    has_equal_experts(name) && (spec.router.is_some() || spec.bank.num_experts > 1)
}

/// Whether a method's experts can change places: those of different rank are parts of one.
pub(crate) fn has_equal_experts(name: &str) -> bool {
    let spec = recipe::find(name).expect("listed").adapter;
    spec.bank.costs().is_none()
}

/// Whether a method starts as parts of the frozen weight, so that a fresh one is not without effect and
/// no expert joins later.
pub(crate) fn starts_from_weight(name: &str) -> bool {
    let spec = recipe::find(name).expect("listed").adapter;
    spec.bank.start.reads_weight()
}

/// The base model, without adapters.
pub(crate) fn base(seed: u64) -> Bert {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_model(folder.path(), Seed::new(seed).child("base"));
    Bert::from_folder(folder.path(), &device()).expect("a whole model")
}

pub(crate) fn device() -> Device {
    molora_testkit::device()
}

/// A model with fresh adapters, whose routers and gates are random: all B are zero.
pub(crate) fn fresh(spec: &AdapterSpec, seed: u64) -> Bert {
    with_random(spec, seed, |kind| {
        matches!(kind, ParameterKind::Routers | ParameterKind::Gates)
    })
}

/// A model with random adapters, routers and gates.
pub(crate) fn random(spec: &AdapterSpec, seed: u64) -> Bert {
    with_random(spec, seed, |_| true)
}

fn with_random(spec: &AdapterSpec, seed: u64, draws: fn(ParameterKind) -> bool) -> Bert {
    let mut model = base(seed);
    let attached = model.attach(spec, TASKS.len(), Seed::new(seed), &device());
    attached.expect("a valid specification");
    let mut kinds = BTreeMap::new();
    let visited = model.visit_tensors(|_, tensor| {
        kinds.insert(tensor.id(), tensor.kind());
        Ok::<_, std::convert::Infallible>(())
    });
    let Ok(()) = visited;
    let mut draw = Draw {
        kinds,
        path: Vec::new(),
        seed: Seed::new(seed).child("adapters"),
        draws,
    };
    model.map(&mut draw)
}

/// Replaces the values of some kinds of parameters, each by its path.
struct Draw {
    kinds: BTreeMap<ParamId, ParameterKind>,
    path: Vec<String>,
    seed: Seed,
    draws: fn(ParameterKind) -> bool,
}

impl ModuleMapper for Draw {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let Some(&kind) = self
            .kinds
            .get(&param.id)
            .filter(|&&kind| (self.draws)(kind))
        else {
            return param;
        };
        // Small enough for attention not to be all or nothing, where rounding would grow.
        let bound = match kind {
            ParameterKind::Adapters | ParameterKind::Frozen => 0.3,
            _ => 1.0,
        };
        let seed = self.seed.child(&path);
        Param::from_tensor(uniform(param.dims(), bound, seed, &device()))
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
}

/// The rows `order` of a tensor along `dim`.
pub(crate) fn take<const D: usize>(tensor: Tensor<D>, dim: usize, order: &[usize]) -> Tensor<D> {
    let order: Vec<i64> = order.iter().map(|&index| index as i64).collect();
    let order = Tensor::<1, Int>::from_data(order.as_slice(), &tensor.device());
    tensor.select(dim, order)
}

/// Makes expert i of every site and router of `to` that with the number `order(experts)[i]` in
/// `from`, where `experts` counts those of the site in `from`; the only one of a site stays. Gates are
/// copied as they are; a router that `to` does not have is left out.
pub(crate) fn copy_experts(from: &Bert, to: &mut Bert, order: impl Fn(usize) -> Vec<usize>) {
    let order = |experts| match experts {
        1 => vec![0],
        several => order(several),
    };
    let origins = |experts: usize| {
        let places = order(experts).into_iter().map(Some).collect();
        Origins::default().with(Axis::Expert, places)
    };
    let sites = from.sites();
    for ((_, to), (_, from)) in to.sites_mut().into_iter().zip(&sites) {
        let experts = from.bank.num_experts();
        let numbers = order(experts);
        to.bank = match (
            numbers.as_slice(),
            from.bank.shares() || from.bank.residual.is_some(),
        ) {
            // What an expert has in common with others it keeps alone.
            ([one], _) => from.bank.expert(*one),
            (_, true) => {
                let mut bank = to.bank.clone();
                fill(
                    bank.tensors(),
                    &from.bank.clone().tensors(),
                    &origins(experts),
                );
                bank
            }
            (several, false) => {
                let parts = several.iter().map(|&index| from.bank.expert(index));
                let parts: Vec<_> = parts.collect();
                ExpertBank::assemble(&parts.iter().collect::<Vec<_>>()).expect("alike")
            }
        };
        to.gate.clone_from(&from.gate);
        if let (Some(to), Some(from)) = (&mut to.router, &from.router) {
            copy_router(from, to, &origins);
        }
    }
    let routers = from.layer_routers();
    for ((_, to), (_, from)) in to.layer_routers_mut().into_iter().zip(&routers) {
        copy_router(&from.router, &mut to.router, &origins);
    }
    if let (Some(to), Some(from)) = (to.part_mut(), from.part()) {
        let mut from = from.clone();
        for ((_, to), (_, from)) in to.tensors().into_iter().zip(from.tensors()) {
            fill(to, &from, &origins_of(&from, &origins));
        }
    }
    let mut from = from.clone();
    for ((_, to), (_, from)) in to.pooled_mut().into_iter().zip(from.pooled_mut()) {
        if let (Some(to), Some(from)) = (&mut to.router, &from.router) {
            copy_router(from, to, &origins);
        }
    }
}

fn copy_router(from: &Router, to: &mut Router, origins: &impl Fn(usize) -> Origins) {
    let mut from = from.clone();
    let from = from.tensors();
    fill(to.tensors(), &from, &origins_of(&from, origins));
}

/// Where the experts of tensors come from; without anything for each expert there is no order to keep.
fn origins_of(tensors: &[PartTensor<'_>], origins: &impl Fn(usize) -> Origins) -> Origins {
    let counts = tensors.iter().flat_map(|tensor| tensor.counts().to_vec());
    let experts = counts.into_iter().find(|count| count.axis == Axis::Expert);
    experts.map_or_else(Origins::default, |experts| origins(experts.size))
}

/// The specification after its experts were put into another order.
pub(crate) fn reordered(spec: &AdapterSpec, order: &[usize]) -> AdapterSpec {
    let mut spec = spec.clone();
    let scorer = spec.router.as_mut().map(|router| &mut router.scorer);
    if let Some(ScorerConfig::Grouped(GroupedConfig { groups, .. })) = scorer {
        let now = |old: &usize| order.iter().position(|o| o == old).expect("an order");
        for group in groups {
            *group = group.iter().map(now).collect();
        }
    }
    spec
}

/// Sequences of random tokens with their tasks; the first one is whole.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    ids: Vec<Vec<i64>>,
    tasks: Vec<Option<usize>>,
    pub(crate) guidance: Guidance,
}

impl Rows {
    pub(crate) fn new(shape: Shape) -> Self {
        let seed = Seed::new(shape.seed).child("rows");
        let draw: Tensor<2> = uniform([shape.batch, shape.tokens], 1.0, seed, &device());
        let values = draw.into_data().try_to_vec::<f32>().expect("f32");
        let id = |value: &f32| ((value + 1.0) * VOCABULARY as f32 / 2.0) as i64 % VOCABULARY as i64;
        let rows = values.chunks(shape.tokens).enumerate();
        let ids = rows.map(|(row, values)| {
            let length = shape.tokens - row.min(shape.tokens - 1);
            values[..length].iter().map(id).collect()
        });
        // The last of three rows belongs to no task.
        let tasks = (0..shape.batch).map(|row| (row < 2).then_some(row));
        Self {
            ids: ids.collect(),
            tasks: tasks.collect(),
            guidance: Guidance::default(),
        }
    }

    /// Row `index` alone, without padding.
    pub(crate) fn row(&self, index: usize) -> Self {
        let narrow = |tensor: &Option<Tensor<2>>| tensor.clone().map(|t| t.narrow(0, index, 1));
        Self {
            ids: vec![self.ids[index].clone()],
            tasks: vec![self.tasks[index]],
            guidance: Guidance {
                bias: narrow(&self.guidance.bias),
                labels: narrow(&self.guidance.labels),
                ..Guidance::default()
            },
        }
    }

    pub(crate) fn batch(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn length(&self, row: usize) -> usize {
        self.ids[row].len()
    }

    /// What a model makes of the rows: hidden states, and the routers' decisions.
    pub(crate) fn forward(&self, model: &Bert) -> (Tensor<3>, Vec<RouteTrace>) {
        self.forward_padded(model, 0)
    }

    /// The same with `more` columns of padding, which hold tokens of their own.
    pub(crate) fn forward_padded(&self, model: &Bert, more: usize) -> (Tensor<3>, Vec<RouteTrace>) {
        let tokens = self.ids.iter().map(Vec::len).max().expect("rows") + more;
        let shape = [self.ids.len(), tokens];
        let junk = |column: usize| ((column * 5 + more) % VOCABULARY) as i64;
        let ids = self.ids.iter().flat_map(|row| {
            let padding = (row.len()..tokens).map(junk);
            row.iter().copied().chain(padding).collect::<Vec<_>>()
        });
        let mask = self.ids.iter().flat_map(|row| {
            let is_real = |column| f32::from(u8::from(column < row.len()));
            (0..tokens).map(is_real).collect::<Vec<_>>()
        });
        let ids = TensorData::new(ids.collect::<Vec<i64>>(), shape);
        let mask = TensorData::new(mask.collect::<Vec<f32>>(), shape);
        let mask = Tensor::<2>::from_data(mask, &device());
        let input = EncoderInput {
            ids: Tensor::from_data(ids, &device()),
            type_ids: Tensor::zeros(shape, &device()),
            mask: mask.clone().greater_elem(0.5),
        };
        let tasks = task_selector(&self.tasks, TASKS.len(), &device()).expect("in range");
        let context = ForwardContext {
            tasks: Some(tasks),
            guidance: self.guidance.clone(),
            ..ForwardContext::new(mask)
        };
        let output = model.forward(&input, &context);
        (output.hidden, output.routes)
    }

    /// The hidden states of real tokens, row by row, one below the other.
    pub(crate) fn real(&self, hidden: &Tensor<3>) -> Tensor<2> {
        let width = hidden.dims()[2];
        let row = |index: usize| {
            let length = self.length(index);
            let row = hidden.clone().narrow(0, index, 1).narrow(1, 0, length);
            row.reshape([length, width])
        };
        Tensor::cat((0..self.batch()).map(row).collect(), 0)
    }
}

fn write_model(folder: &Path, seed: Seed) {
    let config = serde_json::json!({
        "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": INNER,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 16,
        "type_vocab_size": 1,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("writable");
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (table, rows) in [("word", VOCABULARY), ("position", 16), ("token_type", 1)] {
        let name = format!("embeddings.{table}_embeddings.weight");
        shapes.insert(name, vec![rows, WIDTH]);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..LAYERS {
        let at = |part: &str| format!("encoder.layer.{layer}.{part}");
        for (part, input, output) in [
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", WIDTH, INNER),
            ("output.dense", INNER, WIDTH),
        ] {
            shapes.insert(format!("{}.weight", at(part)), vec![output, input]);
            shapes.insert(format!("{}.bias", at(part)), vec![output]);
        }
        norms.extend([at("attention.output.LayerNorm"), at("output.LayerNorm")]);
    }
    for norm in norms {
        shapes.insert(format!("{norm}.weight"), vec![WIDTH]);
        shapes.insert(format!("{norm}.bias"), vec![WIDTH]);
    }
    let bytes = |(name, shape): (&String, &Vec<usize>)| {
        let count = shape.iter().product::<usize>();
        let draw: Tensor<1> = uniform([count], 0.6, seed.child(name), &device());
        let one = f32::from(u8::from(name.ends_with("LayerNorm.weight")));
        let values = draw.into_data().try_to_vec::<f32>().expect("f32");
        let values = values.iter().flat_map(|value| (value + one).to_le_bytes());
        (name.clone(), shape.clone(), values.collect::<Vec<u8>>())
    };
    let tensors: Vec<_> = shapes.iter().map(bytes).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (name, view.expect("as long as its shape"))
    });
    serialize_to_file(views, None, &folder.join("model.safetensors")).expect("writable");
}
