//! Lily's files: experts that layers share.
//!
//! Zhong et al., arXiv:2407.09946. PEFT writes the shared matrices once for every layer:
//!
//! ```text
//! lily_A.weight         [R, D]        the same for `stride_A` neighbouring layers
//! lily_B.weight         [E * R, O]    the same for all layers of a name and shape
//! lily_router.weight    [E, R]
//! ```
//!
//! and mixes the experts of a layer by the mean of the router's softmax over **all tokens of the batch**,
//! padding too: [`PoolWeights::Released`], which leaves padding out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use molora_adapters::{BankConfig, Scaling, Slices};
use molora_parts::PartTensor;
use molora_routing::scorer::LinearConfig;
use molora_routing::{
    Granularity, NormaliserConfig, RouteFrom, RouterConfig, ScorerConfig, Selection,
};

use super::PeftAbout;
use super::key::PREFIX;
use super::write::write_files;
use crate::checkpoint::{ConfigFile, ModelWeights};
use crate::{
    Adaptable, AdapterFiles, AdapterSpec, Composition, ModelError, ModelPart, PoolConfig,
    PoolWeights, shortest_names,
};

/// Fields that say nothing about what a loaded adapter computes, or repeat what its tensors say.
const NEUTRAL: [&str; 11] = [
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
];

/// Tensors of a module.
const PARTS: [&str; 3] = ["lily_A.weight", "lily_B.weight", "lily_router.weight"];

/// A Lily in PEFT's files.
#[derive(Debug)]
pub struct Lily {
    rank: usize,
    stride: usize,
    experts: usize,
    scaling: f64,
    config: PathBuf,
    weights: ModelWeights,
}

impl Lily {
    /// Opens a folder that PEFT or [`write_lily`] wrote.
    ///
    /// # Errors
    /// A missing or broken file, or a configuration of another kind; each names the field.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let config = AdapterFiles::in_folder(folder).config;
        let file = ConfigFile::open(&config)?;
        if file.text("peft_type")? != Some("LILY") {
            return Err(file.unsupported("peft_type", "\"LILY\""));
        }
        let lily = Self {
            rank: file.optional_size("r")?.unwrap_or(32),
            stride: file.optional_size("stride_A")?.unwrap_or(1),
            experts: file.optional_size("num_B")?.unwrap_or(2),
            scaling: file.optional_number("scaling")?.unwrap_or(1.0),
            weights: ModelWeights::open_stem(folder, "adapter_model")?,
            config,
        };
        for field in NEUTRAL {
            file.get(field);
        }
        file.finish_by(|value| value.is_null() || *value == false)?;
        Ok(lily)
    }

    /// The specification under which a model computes what PEFT does; [`fill`](Self::fill) has the
    /// values.
    ///
    /// # Errors
    /// [`ModelError::File`] if no layer of the model has tensors in the file.
    pub fn spec<M: Adaptable>(&self, model: &M) -> Result<AdapterSpec, ModelError> {
        let all: Vec<String> = model.linears().into_iter().map(|(path, _)| path).collect();
        let has_router = |path: &&String| self.weights.has(&name(path, PARTS[2]));
        let paths: Vec<String> = all.iter().filter(has_router).cloned().collect();
        if paths.is_empty() {
            let problem = "has no lily_router of a layer of this model";
            return Err(ModelError::file(self.weights.path(), problem));
        }
        Ok(AdapterSpec {
            targets: shortest_names(&paths, &all),
            composition: Composition::Pool(PoolConfig {
                stride: self.stride,
                weights: PoolWeights::Released,
            }),
            bank: BankConfig {
                slices: Slices::Shared,
                num_experts: self.experts,
                rank: self.rank,
                scaling: Scaling::AlphaOverRank(self.scaling * self.rank as f64),
                ..BankConfig::default()
            },
            router: Some(RouterConfig {
                scorer: LinearConfig { bias: false }.into(),
                route_from: RouteFrom::LowRank,
                granularity: Granularity::Token,
                selection: Selection::Dense,
                ..RouterConfig::default()
            }),
            ..AdapterSpec::default()
        })
    }

    /// Puts experts and routers into a model to which [`spec`](Self::spec) was attached.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or without a layer; layers that share experts here and
    /// have different ones in the file.
    pub fn fill<M: Adaptable>(&self, model: &mut M) -> Result<(), ModelError> {
        let mut found: BTreeMap<Tensor, (String, Vec<f32>)> = BTreeMap::new();
        let mut read = Vec::new();
        for layer in layers(model)? {
            for (part, shape, tensor) in layer.tensors() {
                let name = name(&layer.path, part);
                let values = self.weights.values(&name, &shape)?;
                let values = match tensor {
                    Tensor::B(_) => by_output(&values, layer.experts, layer.rank),
                    _ => values,
                };
                read.push(name.clone());
                match found.get(&tensor) {
                    Some((first, known)) if *known != values => {
                        let problem = format!(
                            "`{name}` and `{first}` differ: the layers that share it are others in PEFT \
                             (target_modules) than those of the same name and widths"
                        );
                        return Err(ModelError::file(&self.config, problem));
                    }
                    _ => found.insert(tensor, (name, values)),
                };
            }
        }
        let names = self.weights.names().iter();
        let names: Vec<String> = names.filter(|name| !read.contains(name)).cloned().collect();
        if !names.is_empty() {
            let path = self.weights.path().into();
            return Err(ModelError::UnknownTensors { path, names });
        }
        let mut take = |tensor| found.remove(&tensor).map(|(_, values)| values);
        for (path, pooled) in model.pooled_mut() {
            let values = take(Tensor::Router(path));
            let router = pooled.router.iter_mut().flat_map(|router| router.tensors());
            for (mut own, values) in router.zip(values) {
                own.set(&values);
            }
        }
        for (key, mut own) in shared(model) {
            if let Some(values) = take(key) {
                own.set(&values);
            }
        }
        Ok(())
    }
}

/// Why PEFT's Lily does not compute what a specification says; `None` if it does.
pub fn why_no_lily(spec: &AdapterSpec) -> Option<&'static str> {
    let Composition::Pool(pool) = &spec.composition else {
        return Some("its layers do not share experts");
    };
    match pool.weights {
        PoolWeights::Released => {}
        PoolWeights::PerToken => {
            return Some(
                "PEFT mixes Lily's experts by the mean over all tokens of the batch, and this run for each \
                 token (adapter.composition.pool.weights is per_token, expected released)",
            );
        }
        PoolWeights::SummedLogits => {
            return Some(
                "PEFT mixes Lily's experts by the mean over all tokens of the batch, and this run for each \
                 text (adapter.composition.pool.weights is summed_logits, expected released)",
            );
        }
    }
    let Some(router) = &spec.router else {
        return Some("it has no router");
    };
    let is_linear = matches!(&router.scorer, ScorerConfig::Linear(scorer) if !scorer.bias);
    let is_plain = is_linear
        && router.route_from == RouteFrom::LowRank
        && router.granularity == Granularity::Token
        && router.selection == Selection::Dense
        && matches!(router.normaliser, NormaliserConfig::Softmax(_));
    if !is_plain {
        return Some("PEFT's routers are a softmax of a linear map of the low-rank code");
    }
    if !spec.bank.is_plain() || matches!(spec.bank.scaling, Scaling::Aligned(_)) {
        return Some(
            "something is between its A and B, or their scaling differs from layer to layer",
        );
    }
    if spec.bank.num_experts < 2 {
        return Some("PEFT's Lily has at least two experts");
    }
    None
}

/// Writes a model's pool and its routers as PEFT's Lily.
///
/// # Errors
/// [`ModelError::Inconsistent`] if PEFT computes something else ([`why_no_lily`]), or would share experts
/// between other layers; [`ModelError::Io`] if a file cannot be written.
pub fn write_lily<M: Adaptable>(
    folder: &Path,
    model: &M,
    spec: &AdapterSpec,
    about: &PeftAbout,
) -> Result<(), ModelError> {
    let inconsistent = |text: String| Err(ModelError::Inconsistent(text));
    if let Some(why) = why_no_lily(spec) {
        return inconsistent(why.into());
    }
    let mut model = model.clone();
    let layers = layers(&mut model)?;
    let names = names(&model, &layers)?;
    let temperature = spec
        .router
        .as_ref()
        .map_or(1.0, |router| router.temperature);
    let (mut tensors, mut values) = (BTreeMap::new(), BTreeMap::new());
    for (path, pooled) in model.pooled_mut() {
        let router = pooled.router.iter_mut().flat_map(|router| router.tensors());
        for own in router {
            let scaled = own.values().into_iter();
            let scaled = scaled.map(|value| (f64::from(value) / temperature) as f32);
            values.insert(Tensor::Router(path.clone()), scaled.collect());
        }
    }
    values.extend(
        shared(&mut model)
            .into_iter()
            .map(|(key, own)| (key, own.values())),
    );
    for layer in &layers {
        for (part, shape, tensor) in layer.tensors() {
            let own = values[&tensor].clone();
            let own = match tensor {
                Tensor::B(_) => by_output(&own, layer.experts, layer.dims[1]),
                _ => own,
            };
            tensors.insert(name(&layer.path, part), (shape, own));
        }
    }
    let bank = &spec.bank;
    let stride = spec.composition.pool().map_or(1, |pool| pool.stride);
    let config = serde_json::json!({
        "peft_type": "LILY",
        "task_type": about.task_type,
        "base_model_name_or_path": about.base_model,
        "r": bank.rank,
        "stride_A": stride,
        "num_B": bank.num_experts,
        "scaling": bank.scaling.factor(bank.rank, 1),
        "target_modules": names,
        "inference_mode": true,
    });
    write_files(folder, &tensors, &config)
}

/// A name for each kind of layers, by which PEFT knows which layers share experts.
fn names<M: Adaptable>(model: &M, layers: &[Layer]) -> Result<Vec<String>, ModelError> {
    let all: Vec<String> = model.linears().into_iter().map(|(path, _)| path).collect();
    let mut names = Vec::new();
    for kind in 0..=layers.iter().map(|layer| layer.kind).max().unwrap_or(0) {
        let is_own = |layer: &&Layer| layer.kind == kind;
        let paths = layers.iter().filter(is_own).map(|layer| layer.path.clone());
        let paths: Vec<String> = paths.collect();
        let found = shortest_names(&paths, &all);
        let [name] = found.as_slice() else {
            return Err(ModelError::Inconsistent(format!(
                "{} and the layers that share its experts have no end of their names by which PEFT could \
                 tell them from others",
                paths[0]
            )));
        };
        names.push(name.clone());
    }
    for layer in layers {
        // PEFT looks for a name at the end of a path, whatever stands before it.
        let other = |(kind, name): &(usize, &String)| {
            *kind != layer.kind && layer.path.ends_with(name.as_str())
        };
        let problem = if model.is_part(&layer.path) {
            "is a part of a layer that PEFT has as a whole".into()
        } else if let Some((_, name)) = names.iter().enumerate().find(other) {
            format!("would share the experts of the layers called {name} in PEFT")
        } else {
            continue;
        };
        return Err(ModelError::Inconsistent(format!(
            "{}: it {problem}",
            layer.path
        )));
    }
    Ok(names)
}

/// The tensors that layers share.
fn shared<M: Adaptable>(model: &mut M) -> Vec<(Tensor, PartTensor<'_>)> {
    let Some(ModelPart::Pool(pool)) = model.part_mut() else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (kind, bank) in pool.kinds.iter_mut().enumerate() {
        let tensors = bank.tensors(kind).into_iter();
        let mut group = 0;
        for own in tensors.flat_map(|(_, tensors)| tensors) {
            if own.name() == "experts.lora_B" {
                all.push((Tensor::B(kind), own));
            } else {
                all.push((Tensor::A(kind, group), own));
                group += 1;
            }
        }
    }
    all
}

/// A tensor of the model: one that layers share, or a layer's router.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Tensor {
    /// Of a kind of layers and a group of neighbours.
    A(usize, usize),
    /// Of a kind of layers.
    B(usize),
    /// Of a path.
    Router(String),
}

/// A layer whose experts are in the pool.
struct Layer {
    path: String,
    kind: usize,
    group: usize,
    /// Inputs and outputs.
    dims: [usize; 2],
    rank: usize,
    experts: usize,
}

impl Layer {
    /// Its tensors with their shapes in the file.
    fn tensors(&self) -> [(&'static str, Vec<usize>, Tensor); 3] {
        let [inputs, outputs] = self.dims;
        let (rank, experts) = (self.rank, self.experts);
        [
            (
                PARTS[0],
                vec![rank, inputs],
                Tensor::A(self.kind, self.group),
            ),
            (
                PARTS[1],
                vec![experts * rank, outputs],
                Tensor::B(self.kind),
            ),
            (
                PARTS[2],
                vec![experts, rank],
                Tensor::Router(self.path.clone()),
            ),
        ]
    }
}

/// The layers of a model whose experts are in the pool.
fn layers<M: Adaptable>(model: &mut M) -> Result<Vec<Layer>, ModelError> {
    let Some(ModelPart::Pool(pool)) = model.part() else {
        let text = "the model's layers do not share experts";
        return Err(ModelError::Inconsistent(text.into()));
    };
    let sizes: Vec<_> = pool
        .kinds
        .iter()
        .map(|kind| (kind.bank.rank(), kind.bank.num_experts()))
        .collect();
    let mut layers = Vec::new();
    for (path, linear) in model.linears() {
        let Some(pooled) = &linear.pooled else {
            continue;
        };
        let (kind, group) = pooled.place();
        let (rank, experts) = sizes[kind];
        layers.push(Layer {
            path,
            kind,
            group,
            dims: [linear.dims().d_input, linear.dims().d_output],
            rank,
            experts,
        });
    }
    Ok(layers)
}

/// The blocks of experts, each with so many rows, with rows and columns exchanged: banks list `B` as
/// `[E, O, R]`.
fn by_output(values: &[f32], experts: usize, rows: usize) -> Vec<f32> {
    let block = values.len() / experts;
    let columns = block / rows;
    let place = |index: usize| {
        let (expert, within) = (index / block, index % block);
        expert * block + (within % rows) * columns + within / rows
    };
    (0..values.len())
        .map(|index| values[place(index)])
        .collect()
}

fn name(path: &str, part: &str) -> String {
    format!("{PREFIX}{path}.{part}")
}
