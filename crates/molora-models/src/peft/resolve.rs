//! Finding the modules of a model that an adapter's tensors belong to.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};

use super::PeftAdapter;
use super::key::{Key, ModuleTensor};
use super::pattern::{Targets, ends_with};
use super::read::Reader;
use crate::ModelError;
use crate::error::similar;
use crate::modules::{BaseModel, Layout, PartMut};

/// A LoRA of one module of a model's files: `W += scale * a b` for a weight `[D, O]`.
///
/// The weight of an embedding is its table, `[V, D]`, and that of a head the table's transpose.
#[derive(Debug, Clone)]
pub struct ModuleLora {
    /// The module's path in the model.
    pub path: String,
    /// Down-projection, `[D, R]`.
    pub a: Tensor<2>,
    /// Up-projection, `[R, O]`.
    pub b: Tensor<2>,
    /// Factor on the delta.
    pub scale: f64,
    /// Norm of the new weight of each output, `[O]` (DoRA).
    pub magnitude: Option<Tensor<1>>,
}

/// A parameter that replaces one of the base.
#[derive(Debug, Clone)]
pub struct FullTensor {
    /// The module's path in the model.
    pub path: String,
    /// What is replaced.
    pub value: FullValue,
}

impl FullTensor {
    /// How many numbers it has.
    pub fn num_values(&self) -> usize {
        match &self.value {
            FullValue::Matrix(matrix) => matrix.shape().num_elements(),
            FullValue::Scale(vector) | FullValue::Bias(vector) => vector.dims()[0],
        }
    }
}

/// A parameter of a module.
#[derive(Debug, Clone)]
pub enum FullValue {
    /// A weight `[D, O]` of a linear layer, or a table `[V, D]`.
    Matrix(Tensor<2>),
    /// The scale of a normalisation.
    Scale(Tensor<1>),
    /// A bias, or the shift of a normalisation.
    Bias(Tensor<1>),
}

/// An adapter whose tensors have been read for a model.
#[derive(Debug, Clone)]
pub struct ResolvedAdapter {
    /// What is added to weights.
    pub loras: Vec<ModuleLora>,
    /// What replaces parameters, before anything is added.
    pub full: Vec<FullTensor>,
    /// Whether a head that is the table of embeddings needs a table of its own.
    pub unties: bool,
    /// Probability of dropping an input activation in training.
    pub dropout: f64,
}

/// What a module is to an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Linear(Layout),
    Table,
    Head,
    Norm,
}

/// A module of the model.
pub(super) struct Module {
    pub(super) path: String,
    pub(super) kind: Kind,
    /// Input and output width; rows and width of a table; width twice of a normalisation.
    pub(super) dims: [usize; 2],
    pub(super) has_bias: bool,
}

/// A module with the keys that belong to it.
type Found = BTreeMap<usize, Vec<(String, Key)>>;

impl PeftAdapter {
    /// Reads the adapter for a model.
    ///
    /// Paths are compared from their ends, so that an adapter of a model without its head, or of one
    /// with another head, is understood.
    ///
    /// # Errors
    /// An adapter whose keys match nothing, a key that matches nothing or several modules, a missing
    /// tensor (a factor, a DoRA magnitude, or all of a module that `target_modules` names), one of
    /// another shape; each names file and tensor.
    pub fn resolve<M: BaseModel>(&self, model: &M) -> Result<ResolvedAdapter, ModelError> {
        let mut model = model.clone();
        model.untie();
        let leaves_out = |path: &str| model.leaves_out(path);
        let (modules, device) = modules_of(&mut model.clone());
        let found = self.find(&modules, leaves_out)?;
        self.refuse_no_target(&modules, &found)?;
        self.refuse_absent(&modules, &found)?;
        let mut resolved = ResolvedAdapter {
            loras: Vec::new(),
            full: Vec::new(),
            unties: false,
            dropout: self.config().dropout,
        };
        for (&index, keys) in &found {
            let module = Reader {
                adapter: self,
                module: &modules[index],
                keys,
                device: &device,
            };
            resolved.loras.extend(module.lora()?);
            resolved.full.extend(module.full()?);
            resolved.unties |= module.unties();
        }
        Ok(resolved)
    }

    /// The keys of each module.
    fn find(
        &self,
        modules: &[Module],
        leaves_out: impl Fn(&str) -> bool,
    ) -> Result<Found, ModelError> {
        let (mut found, mut unknown) = (Found::new(), Vec::new());
        for (name, key) in &self.keys {
            let mut matching = modules.iter().enumerate().filter(|(_, module)| {
                let [ours, theirs] = [&module.path, &key.module];
                ends_with(ours, theirs) || ends_with(theirs, ours)
            });
            let exact = modules.iter().position(|module| module.path == key.module);
            let first = exact.or_else(|| matching.next().map(|(index, _)| index));
            match first {
                Some(_) if exact.is_none() && matching.next().is_some() => {
                    let problem = format!("tensor `{name}` matches several modules of the model");
                    return Err(ModelError::file(self.weights.path(), problem));
                }
                Some(index) => found
                    .entry(index)
                    .or_default()
                    .push((name.clone(), key.clone())),
                None if leaves_out(&key.module) => {
                    let path = self.weights.path().display();
                    tracing::warn!("{path}: tensor `{name}` is not used");
                }
                None => unknown.push(name.clone()),
            }
        }
        match (found.is_empty(), unknown.is_empty()) {
            (_, true) => Ok(found),
            (true, false) => Err(self.matches_nothing(modules, &unknown)),
            (false, false) => Err(ModelError::UnknownTensors {
                path: self.weights.path().into(),
                names: unknown,
            }),
        }
    }

    fn matches_nothing(&self, modules: &[Module], unknown: &[String]) -> ModelError {
        let (count, first) = (unknown.len(), &unknown[0]);
        let module = Key::parse(first).map(|key| key.module).unwrap_or_default();
        let near = similar(&module, modules.iter().map(|module| module.path.as_str()));
        let near = match near.as_slice() {
            [] => modules.iter().take(3).map(|m| m.path.clone()).collect(),
            near => near.to_vec(),
        };
        let problem = format!(
            "none of the {count} tensors belongs to this model: `{first}` is the first, and the \
             model has {}",
            near.join(", ")
        );
        ModelError::file(self.weights.path(), problem)
    }

    /// Targets that are no module of the model: PEFT refuses them too, if it finds none of them. A name
    /// of several that matches nothing is warned of.
    fn refuse_no_target(&self, modules: &[Module], found: &Found) -> Result<(), ModelError> {
        let config = self.config();
        let mut paths = Vec::with_capacity(modules.len());
        for module in modules {
            let is_linear = matches!(module.kind, Kind::Linear(_));
            let path = self.their_path(module, modules, found);
            config.refuse_exhausted(&path)?;
            paths.push((path, is_linear));
        }
        let Some(targets) = &config.targets else {
            return Ok(());
        };
        if matches!(targets, Targets::Names(names) if names.is_empty()) {
            return Ok(());
        }
        let is_target = |(path, is_linear): &(String, bool)| targets.matches(path, *is_linear);
        if !paths.iter().any(is_target) {
            let some: Vec<&str> = paths.iter().take(3).map(|(path, _)| &path[..]).collect();
            let problem = format!(
                "target_modules matches no module of the model, which has {}",
                some.join(", ")
            );
            return Err(ModelError::file(&config.path, problem));
        }
        if let Targets::Names(names) = targets {
            let is_there = |name: &&String| paths.iter().any(|(path, _)| ends_with(path, name));
            let absent: Vec<&str> = names
                .iter()
                .filter(|n| !is_there(n))
                .map(|n| &n[..])
                .collect();
            if !absent.is_empty() {
                let (path, names) = (config.path.display(), absent.join(", "));
                tracing::warn!("{path}: target_modules names no module of the model: {names}");
            }
        }
        Ok(())
    }

    /// A module that the configuration names needs tensors: PEFT would train it from scratch.
    fn refuse_absent(&self, modules: &[Module], found: &Found) -> Result<(), ModelError> {
        let config = self.config();
        for (index, module) in modules.iter().enumerate() {
            let path = self.their_path(module, modules, found);
            let keys = found.get(&index).map(Vec::as_slice).unwrap_or_default();
            let is_linear = matches!(module.kind, Kind::Linear(_));
            let has_lora = keys.iter().any(|(_, key)| is_lora(&key.part));
            let has_full = keys
                .iter()
                .any(|(_, key)| matches!(key.part, ModuleTensor::Full(_)));
            let needed = match module.kind {
                Kind::Norm => None,
                Kind::Table if config.adapts(&path, false) => {
                    (!has_lora).then_some(ModuleTensor::EmbeddingA)
                }
                _ if config.adapts(&path, is_linear) => (!has_lora).then_some(ModuleTensor::A),
                _ => None,
            };
            let saved = config.saves(&path) && !has_full;
            let needed = needed.or(saved.then(|| ModuleTensor::Full("weight".into())));
            if let Some(part) = needed {
                return Err(self.missing(&Key {
                    module: path,
                    part,
                    adapter: None,
                }));
            }
        }
        Ok(())
    }

    /// A module's path as the adapter writes it: that of its keys, or one that differs from ours as
    /// that of the first module with keys does.
    fn their_path(&self, module: &Module, modules: &[Module], found: &Found) -> String {
        let Some((&index, keys)) = found.iter().next() else {
            return module.path.clone();
        };
        let (ours, theirs) = (&modules[index].path, &keys[0].1.module);
        if let Some(front) = ours.strip_suffix(theirs.as_str()) {
            let path = module.path.strip_prefix(front).unwrap_or(&module.path);
            return path.to_owned();
        }
        let front = theirs.strip_suffix(ours.as_str()).unwrap_or_default();
        format!("{front}{}", module.path)
    }

    pub(super) fn missing(&self, key: &Key) -> ModelError {
        let name = key.to_string();
        ModelError::MissingTensor {
            path: self.weights.path().into(),
            similar: similar(&name, self.keys.iter().map(|(name, _)| name.as_str())),
            name,
        }
    }
}

pub(super) fn is_lora(part: &ModuleTensor) -> bool {
    !matches!(part, ModuleTensor::Base(_) | ModuleTensor::Full(_))
}

fn modules_of<M: BaseModel>(model: &mut M) -> (Vec<Module>, Device) {
    // Asking for the default device opens a GPU, where one is compiled in.
    let mut device = None;
    let modules = model.modules_mut().into_iter().map(|module| {
        let (kind, dims, has_bias) = match &module.part {
            PartMut::Linear(parts, layout) => {
                device = Some(parts[0].weight.device());
                let outputs = parts.iter().map(|part| part.dims().d_output).sum();
                let has_bias = parts.iter().all(|part| part.bias.is_some());
                let dims = [parts[0].dims().d_input, outputs];
                (Kind::Linear(*layout), dims, has_bias)
            }
            PartMut::Table(table) => (Kind::Table, table.dims(), false),
            PartMut::Head(table) => (Kind::Head, table.dims(), false),
            PartMut::Norm(scale, shift) => {
                let [width] = scale.dims();
                (Kind::Norm, [width; 2], shift.is_some())
            }
        };
        Module {
            path: module.path,
            kind,
            dims,
            has_bias,
        }
    });
    (modules.collect(), device.unwrap_or_default())
}

/// Paths and widths of the linear modules, and where the model is.
pub(super) fn linears_of<M: BaseModel>(model: &mut M) -> (Vec<(String, [usize; 2])>, Device) {
    let (modules, device) = modules_of(model);
    let linears = modules
        .into_iter()
        .filter(|module| matches!(module.kind, Kind::Linear(_)));
    (
        linears.map(|module| (module.path, module.dims)).collect(),
        device,
    )
}
