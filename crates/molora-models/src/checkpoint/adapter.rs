//! Adapter files.
//!
//! `adapter_model.safetensors` holds matrices in mathematical layout: `A` is `[R, D]`, `B` is
//! `[O, R]`, banks are stacked in front. A plain LoRA has PEFT's names
//! (`base_model.model.<path>.lora_A.weight`); what PEFT cannot express keeps the prefix and has
//! names of its own (`<path>.experts.lora_A`, `.router.keys`, `.gate.weight`, ...).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use molora_parts::{ParameterKind, PartTensor};

use super::tensors::{refuse_unknown, write_tensors};
use crate::{Adaptable, AdapterSpec, ModelError, SitePattern, Weights};

const PREFIX: &str = "base_model.model.";

/// Where the two files of an adapter are.
#[derive(Debug, Clone)]
pub struct AdapterFiles {
    /// `adapter_config.json`.
    pub config: PathBuf,
    /// `adapter_model.safetensors`.
    pub tensors: PathBuf,
}

impl AdapterFiles {
    /// The files in a folder, by PEFT's names.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            config: folder.join("adapter_config.json"),
            tensors: folder.join("adapter_model.safetensors"),
        }
    }
}

/// Writes the adapters of a model as PEFT's two files into an existing folder.
///
/// `base_model` is named in the configuration so that readers know what the adapter belongs to.
///
/// # Errors
/// [`ModelError::Io`] if a file cannot be written.
pub fn save_adapter<M: Adaptable>(
    folder: &Path,
    model: &M,
    spec: &AdapterSpec,
    base_model: &str,
) -> Result<(), ModelError> {
    let files = AdapterFiles::in_folder(folder);
    write_parts(&files.tensors, model, spec, |_| true)?;
    let config = adapter_config(model, spec, base_model);
    std::fs::write(&files.config, format!("{config:#}\n")).map_err(|source| ModelError::Io {
        path: files.config,
        source,
    })
}

/// Reads the adapters that [`save_adapter`] wrote into a model to which the same specification has
/// been attached.
///
/// # Errors
/// A missing or broken file, a missing tensor, one of another shape, or one that the adapter does
/// not have.
pub fn load_adapter<M: Adaptable>(
    folder: &Path,
    model: &mut M,
    spec: &AdapterSpec,
) -> Result<(), ModelError> {
    let files = AdapterFiles::in_folder(folder);
    if !files.config.is_file() {
        tracing::warn!(
            "{}: is missing; the adapter is read as the run describes it, and PEFT cannot read it",
            files.config.display()
        );
    }
    read_parts(&files.tensors, model, spec, |_| true)
}

/// Writes the parameters of all routers, by the names that [`save_adapter`] gives them.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be written.
pub fn save_routers<M: Adaptable>(
    path: &Path,
    model: &M,
    spec: &AdapterSpec,
) -> Result<(), ModelError> {
    write_parts(path, model, spec, |kind| kind == ParameterKind::Routers)
}

/// Reads the parameters of all routers that [`save_routers`] wrote.
///
/// # Errors
/// As [`load_adapter`].
pub fn load_routers<M: Adaptable>(
    path: &Path,
    model: &mut M,
    spec: &AdapterSpec,
) -> Result<(), ModelError> {
    read_parts(path, model, spec, |kind| kind == ParameterKind::Routers)
}

fn write_parts<M: Adaptable>(
    path: &Path,
    model: &M,
    spec: &AdapterSpec,
    takes: impl Fn(ParameterKind) -> bool,
) -> Result<(), ModelError> {
    let mut model = model.clone();
    let mut tensors = BTreeMap::new();
    model.visit_tensors(|path, tensor| {
        if takes(tensor.kind()) {
            let (name, shape) = named(path, &tensor, spec);
            tensors.insert(name, (shape, tensor.values()));
        }
        Ok::<_, ModelError>(())
    })?;
    write_tensors(path, &tensors)
}

fn read_parts<M: Adaptable>(
    path: &Path,
    model: &mut M,
    spec: &AdapterSpec,
    takes: impl Fn(ParameterKind) -> bool,
) -> Result<(), ModelError> {
    let weights = Weights::open(path)?;
    let mut read = Vec::new();
    model.visit_tensors(|path, mut tensor| {
        if takes(tensor.kind()) {
            let (name, shape) = named(path, &tensor, spec);
            tensor.set(&weights.values(&name, &shape)?);
            read.push(name);
        }
        Ok::<_, ModelError>(())
    })?;
    refuse_unknown(&weights, &read)
}

/// Name and shape of a tensor in the file. The matrices of a plain LoRA have PEFT's names and no
/// dimension that counts the only expert.
fn named(path: &str, tensor: &PartTensor<'_>, spec: &AdapterSpec) -> (String, Vec<usize>) {
    let (name, mut shape) = (tensor.name(), tensor.shape());
    let name = match (spec.is_plain_lora(), name.strip_prefix("experts.")) {
        (true, Some(matrix)) => {
            shape.remove(0);
            format!("{matrix}.weight")
        }
        _ => name.to_owned(),
    };
    (format!("{PREFIX}{path}.{name}"), shape)
}

/// `adapter_config.json`: PEFT's own for a plain LoRA, and one that PEFT refuses by its type for
/// what it cannot express.
fn adapter_config<M: Adaptable>(
    model: &M,
    spec: &AdapterSpec,
    base_model: &str,
) -> serde_json::Value {
    let is_plain =
        |target: &String| SitePattern::new(target).is_ok_and(|pattern| pattern.is_plain_name());
    let paths = model.site_paths();
    // PEFT reads plain names as we do.
    let targets = match spec.targets.iter().all(is_plain) {
        true => spec.targets.clone(),
        false => shortest_names(&paths, &all_paths(model)),
    };
    let mut copy = model.clone();
    let tables = copy.saved_mut().into_iter();
    let tables: Vec<String> = tables.map(|(path, _)| path).collect();
    // PEFT replaces one of the modules that read a table.
    let is_shared = |path: &String| model.is_shared_table(path);
    let is_plain = spec.is_plain_lora()
        && !paths.iter().any(|path| model.is_part(path))
        && !tables.iter().any(is_shared);
    let alpha = spec.bank.scaling.alpha(spec.bank.rank);
    let Some(alpha) = alpha.filter(|_| is_plain) else {
        return serde_json::json!({
            "peft_type": "MOLORA",
            "molora_version": env!("CARGO_PKG_VERSION"),
            "base_model_name_or_path": base_model,
            "target_modules": targets,
            "sites": paths,
            "adapter": spec,
        });
    };
    let use_rslora = matches!(
        spec.bank.scaling,
        molora_adapters::Scaling::RankStabilized(_)
    );
    let mut config = serde_json::json!({
        "peft_type": "LORA",
        "task_type": model.task_type(),
        "base_model_name_or_path": base_model,
        "r": spec.bank.rank,
        "lora_alpha": whole_if_whole(alpha),
        "lora_dropout": spec.bank.dropout,
        "use_rslora": use_rslora,
        "use_dora": spec.dora,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    });
    if !tables.is_empty() {
        config["modules_to_save"] = tables.into();
    }
    config
}

fn all_paths<M: Adaptable>(model: &M) -> Vec<String> {
    model.linears().into_iter().map(|(path, _)| path).collect()
}

/// The shortest ends of `paths`, at dots, that no other of `all` has, each once: names that
/// [`AdapterSpec::targets`] and PEFT understand as exactly these paths.
pub fn shortest_names(paths: &[String], all: &[String]) -> Vec<String> {
    let others: Vec<&String> = all.iter().filter(|path| !paths.contains(path)).collect();
    let is_other = |end: &str| {
        let end_of = |path: &&String| {
            let front = path.strip_suffix(end);
            front.is_some_and(|front| front.is_empty() || front.ends_with('.'))
        };
        others.iter().any(end_of)
    };
    let mut names = Vec::new();
    for path in paths {
        let mut starts: Vec<usize> = path.match_indices('.').map(|(dot, _)| dot + 1).collect();
        starts.insert(0, 0);
        let ends = starts.iter().rev().map(|&start| &path[start..]);
        let name = ends.clone().find(|end| !is_other(end)).unwrap_or(path);
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// PEFT declares alpha as an integer and reads fractions too: whole numbers are written as such.
fn whole_if_whole(alpha: f64) -> serde_json::Value {
    if alpha.fract() == 0.0 && alpha.abs() < 1e9 {
        (alpha as i64).into()
    } else {
        alpha.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_short_as_they_can_be() {
        let all: Vec<String> = ["attention.output.dense", "output.dense", "key"]
            .iter()
            .flat_map(|part| (0..2).map(move |layer| format!("layer.{layer}.{part}")))
            .collect();
        let names = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|&path| path.into()).collect();
            shortest_names(&paths, &all)
        };
        let both = [
            "layer.0.attention.output.dense",
            "layer.1.attention.output.dense",
        ];
        assert_eq!(names(&both), ["attention.output.dense"]);
        assert_eq!(names(&["layer.0.key", "layer.1.key"]), ["key"]);
        assert_eq!(names(&["layer.1.key"]), ["1.key"]);
    }
}
