//! Writing an adapter that PEFT loads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use serde_json::{Map, Value, json};

use super::key::{Key, ModuleTensor};
use super::resolve::{FullValue, ModuleLora, ResolvedAdapter};
use crate::checkpoint::write_tensors;
use crate::modules::{BaseModel, Layout, PartMut};
use crate::{AdapterFiles, ModelError};

/// What a written adapter says about itself.
#[derive(Debug, Clone)]
pub struct PeftAbout {
    /// Its name; PEFT keeps any but `default` in a folder below of that name.
    pub name: String,
    /// The model that it belongs to.
    pub base_model: String,
    /// What it is for in PEFT's words, such as `CAUSAL_LM`.
    pub task_type: Option<String>,
}

/// What the writer has to know of a module.
struct Kind {
    is_linear: bool,
    is_table: bool,
    layout: Layout,
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes an adapter of a model as PEFT's two files, and returns the folder that they are in.
///
/// Ranks and scales that differ between modules become rank and alpha patterns; the numbers that
/// most modules have become `r` and `lora_alpha`.
///
/// # Errors
/// [`ModelError::Io`] if a file cannot be written; [`ModelError::Inconsistent`] for a name that
/// cannot be a folder, an adapter that mixes modules with and without magnitudes, one that holds a
/// table whole that several modules read (T5's), one of some experts of a layer of the base alone, all of
/// which PEFT holds as one, or one of a layer without experts whose name PEFT takes for an expert's.
pub fn write_adapter<M: BaseModel>(
    folder: &Path,
    model: &M,
    adapter: &ResolvedAdapter,
    about: &PeftAbout,
) -> Result<PathBuf, ModelError> {
    let folder = adapter_folder(folder, &about.name)?;
    let mut full = adapter.full.iter();
    if let Some(full) = full.find(|full| model.is_shared_table(&full.path)) {
        let path = &full.path;
        return Err(ModelError::Inconsistent(format!(
            "the adapter holds {path} whole, and PEFT would replace that module alone, not the others that \
             read its table: molora merge writes the whole model"
        )));
    }
    let groups = model.held_as_one();
    for group in &groups {
        check_group(adapter, group)?;
    }
    check_names(adapter, &groups.concat())?;
    let mut model = model.clone();
    model.untie();
    let kinds = kinds(&mut model);
    let config = config(adapter, about, &kinds)?;
    let io = |path: &Path, source| ModelError::Io {
        path: path.into(),
        source,
    };
    std::fs::create_dir_all(&folder).map_err(|e| io(&folder, e))?;
    write_files(&folder, &tensors(adapter, &kinds), &config)?;
    Ok(folder)
}

/// Refuses an adapter that changes some of the layers that PEFT holds as one, or changes them by deltas of
/// several ranks or scales.
fn check_group(adapter: &ResolvedAdapter, group: &[String]) -> Result<(), ModelError> {
    let loras: Vec<_> = group
        .iter()
        .map(|path| (path, adapter.lora(path)))
        .collect();
    let Some(&(first, Some(lora))) = loras.iter().find(|(_, lora)| lora.is_some()) else {
        return Ok(());
    };
    let rank = |lora: &ModuleLora| lora.a.dims()[1];
    let fits = |other: Option<&ModuleLora>| {
        other.is_some_and(|other| rank(other) == rank(lora) && other.scale == lora.scale)
    };
    match loras.iter().find(|(_, other)| !fits(*other)) {
        None => Ok(()),
        Some((other, _)) => Err(ModelError::Inconsistent(format!(
            "the adapter changes {first}, and not {other} by the same rank and scale: PEFT and transformers \
             hold the matrices of all experts of a layer as one, gate and up together; molora merge writes \
             the whole model"
        ))),
    }
}

/// Refuses an adapter of a layer that is no expert and has an expert's name: PEFT looks for that name among the
/// matrices that it holds as one, and would leave the layer out.
fn check_names(adapter: &ResolvedAdapter, experts: &[String]) -> Result<(), ModelError> {
    let name = |path: &str| path.rsplit('.').next().map(str::to_owned);
    let names: BTreeSet<_> = experts.iter().map(|path| name(path)).collect();
    let is_taken = |path: &&String| names.contains(&name(path)) && !experts.contains(path);
    match adapter.loras.iter().map(|lora| &lora.path).find(is_taken) {
        None => Ok(()),
        Some(path) => Err(ModelError::Inconsistent(format!(
            "the adapter changes {path}, which is no expert and has the name of one: PEFT would leave it out; \
             molora merge writes the whole model"
        ))),
    }
}

/// Writes both files of an adapter.
///
/// # Errors
/// [`ModelError::Io`] if one cannot be written.
pub(super) fn write_files(
    folder: &Path,
    tensors: &Tensors,
    config: &Value,
) -> Result<(), ModelError> {
    let files = AdapterFiles::in_folder(folder);
    write_tensors(&files.tensors, tensors)?;
    let text = format!("{config:#}\n");
    std::fs::write(&files.config, text).map_err(|source| ModelError::Io {
        path: files.config,
        source,
    })
}

/// The folder of an adapter of this name: PEFT keeps any but `default` in a folder below of that name.
///
/// # Errors
/// [`ModelError::Inconsistent`] for a name that cannot be a folder.
pub fn adapter_folder(folder: &Path, name: &str) -> Result<PathBuf, ModelError> {
    if name == "default" {
        return Ok(folder.into());
    }
    // PEFT makes a module of this name, which cannot have a dot.
    if name.is_empty() || name.contains(['.', '/', '\\', '\0']) {
        return Err(ModelError::Inconsistent(format!(
            "adapter name `{name}` cannot be used, expected one without dots and slashes"
        )));
    }
    Ok(folder.join(name))
}

fn kinds<M: BaseModel>(model: &mut M) -> BTreeMap<String, Kind> {
    let modules = model.modules_mut().into_iter().map(|module| {
        let kind = Kind {
            is_linear: matches!(module.part, PartMut::Linear(..)),
            is_table: matches!(module.part, PartMut::Table(_)),
            layout: match module.part {
                PartMut::Linear(_, layout) => layout,
                _ => Layout::OutIn,
            },
        };
        (module.path, kind)
    });
    modules.collect()
}

fn tensors(adapter: &ResolvedAdapter, kinds: &BTreeMap<String, Kind>) -> Tensors {
    let mut tensors = Tensors::new();
    let mut put = |module: &str, part: ModuleTensor, (shape, values): (Vec<usize>, Vec<f32>)| {
        let key = Key {
            module: module.into(),
            part,
            adapter: None,
        };
        tensors.insert(key.to_string(), (shape, values));
    };
    for lora in &adapter.loras {
        let [a, b] = match kinds[&lora.path].is_table {
            true => [ModuleTensor::EmbeddingA, ModuleTensor::EmbeddingB],
            false => [ModuleTensor::A, ModuleTensor::B],
        };
        put(&lora.path, a, host(lora.a.clone().transpose()));
        put(&lora.path, b, host(lora.b.clone().transpose()));
        if let Some(magnitude) = &lora.magnitude {
            put(&lora.path, ModuleTensor::Magnitude, host(magnitude.clone()));
        }
    }
    for full in &adapter.full {
        let kind = &kinds[&full.path];
        let (field, value) = match full.value.clone() {
            FullValue::Matrix(m) if kind.is_linear && kind.layout == Layout::OutIn => {
                ("weight", host(m.transpose()))
            }
            FullValue::Matrix(matrix) => ("weight", host(matrix)),
            FullValue::Scale(vector) => ("weight", host(vector)),
            FullValue::Bias(vector) => ("bias", host(vector)),
        };
        let part = match adapter.lora(&full.path) {
            Some(_) => ModuleTensor::Base(field.into()),
            None => ModuleTensor::Full(field.into()),
        };
        put(&full.path, part, value);
    }
    tensors
}

fn host<const D: usize>(tensor: Tensor<D>) -> (Vec<usize>, Vec<f32>) {
    let shape = tensor.dims().to_vec();
    let values = tensor.into_data().try_into_vec();
    (shape, values.expect("parameters are f32"))
}

/// Only fields that PEFT has had for long, and only where they say something: an older PEFT refuses
/// fields that it does not know.
fn config(
    adapter: &ResolvedAdapter,
    about: &PeftAbout,
    kinds: &BTreeMap<String, Kind>,
) -> Result<Value, ModelError> {
    let loras = &adapter.loras;
    let with_magnitude = loras.iter().filter(|l| l.magnitude.is_some()).count();
    if with_magnitude != 0 && with_magnitude != loras.len() {
        return Err(ModelError::Inconsistent(
            "some modules have magnitudes (DoRA) and some have none: PEFT has one choice for all"
                .into(),
        ));
    }
    let rank_of = |lora: &ModuleLora| lora.a.dims()[1];
    let ranks = common(loras, rank_of, |rank| (*rank).into());
    let alphas = common(
        loras,
        |lora| whole_if_whole(lora.scale * rank_of(lora) as f64).to_string(),
        |alpha| serde_json::from_str(alpha).expect("a number that was just written"),
    );
    let in_out = |lora: &ModuleLora| kinds[&lora.path].layout == Layout::InOut;
    let mut config = json!({
        "peft_type": "LORA",
        "base_model_name_or_path": about.base_model,
        "r": ranks.0,
        "lora_alpha": alphas.0,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "target_modules": targets(loras, kinds),
        "fan_in_fan_out": loras.iter().any(in_out),
        "inference_mode": true,
    });
    let mut set = |field: &str, value: Value| config[field] = value;
    if let Some(task) = &about.task_type {
        set("task_type", task.as_str().into());
    }
    if with_magnitude > 0 {
        set("use_dora", true.into());
    }
    for (field, pattern) in [("rank_pattern", ranks.1), ("alpha_pattern", alphas.1)] {
        if !pattern.is_empty() {
            set(field, pattern.into());
        }
    }
    let whole = whole_modules(adapter);
    if !whole.is_empty() {
        set("modules_to_save", whole.into());
    }
    if adapter
        .full
        .iter()
        .any(|f| matches!(f.value, FullValue::Bias(_)))
    {
        set("bias", "all".into());
    }
    Ok(config)
}

/// Modules that are saved whole: a weight alone says so, since biases are saved beside adapters.
fn whole_modules(adapter: &ResolvedAdapter) -> Vec<String> {
    let is_whole = |value: &FullValue| !matches!(value, FullValue::Bias(_));
    let full = adapter.full.iter();
    let full = full.filter(|full| is_whole(&full.value) && adapter.lora(&full.path).is_none());
    let paths: BTreeSet<String> = full.map(|full| full.path.clone()).collect();
    paths.into_iter().collect()
}

/// The value that most modules have, and the others by path.
fn common<V: Ord + Clone>(
    loras: &[ModuleLora],
    value: impl Fn(&ModuleLora) -> V,
    json: impl Fn(&V) -> Value,
) -> (Value, Map<String, Value>) {
    let mut counts: BTreeMap<V, usize> = BTreeMap::new();
    for lora in loras {
        *counts.entry(value(lora)).or_default() += 1;
    }
    let Some((most, _)) = counts.iter().max_by_key(|(_, count)| **count) else {
        return (8.into(), Map::new());
    };
    let others = loras.iter().filter(|lora| value(lora) != *most);
    let others = others.map(|lora| (lora.path.clone(), json(&value(lora))));
    (json(most), others.collect())
}

/// The ends of the paths where all modules with that end are adapted, else the paths.
fn targets(loras: &[ModuleLora], kinds: &BTreeMap<String, Kind>) -> Vec<String> {
    let adapted: BTreeSet<&str> = loras.iter().map(|lora| lora.path.as_str()).collect();
    let name = |path: &&str| {
        let mut same = kinds.keys().filter(|other| end(path) == end(other));
        match same.all(|other| adapted.contains(other.as_str())) {
            true => end(path).to_owned(),
            false => (*path).to_owned(),
        }
    };
    let names: BTreeSet<String> = adapted.iter().map(name).collect();
    names.into_iter().collect()
}

fn end(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// PEFT declares alpha as an integer and reads fractions too.
fn whole_if_whole(alpha: f64) -> Value {
    let whole = alpha.round();
    match (alpha - whole).abs() < 1e-12 * whole.abs() && whole.abs() < 1e9 {
        true => (whole as i64).into(),
        false => alpha.into(),
    }
}
