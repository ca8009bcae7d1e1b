//! Experts that were trained alone: one folder each, which PEFT reads as a LoRA.
//!
//! | in a run folder | content |
//! |---|---|
//! | `experts/<task>/adapter_config.json`, `adapter_model.safetensors` | the expert |
//! | `experts/<task>/head.safetensors` | the task's head as it was trained beside it |
//! | `experts/<task>/gate.safetensors` | its gate, where a method trains one |
//! | `general/` | the general expert, where a method has one |

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use molora_adapters::ExpertBank;
use molora_models::{
    Adaptable, AdapterSpec, Backbone, TaskHead, TaskModel, load_adapter, load_routers,
    save_adapter, save_heads, save_routers,
};
use serde_json::Value;

use crate::base::place::NewFolder;
use crate::error::{RunProblem, TrainError};

/// Folder of the experts in a run folder.
pub(crate) const EXPERTS: &str = "experts";

/// Folder of the general expert in a run folder.
pub(super) const GENERAL: &str = "general";
/// File of a head beside the expert.
pub(crate) const HEAD: &str = "head.safetensors";
/// File of a gate beside the expert.
pub(crate) const GATE: &str = "gate.safetensors";

/// Folder of a task's expert.
pub(crate) fn expert_folder(run: &Path, task: &str) -> PathBuf {
    run.join(EXPERTS).join(task)
}

/// Folder of the general expert.
pub(crate) fn general_folder(run: &Path) -> PathBuf {
    run.join(GENERAL)
}

/// Writes an expert with its gate, if it stands behind one, and a task's own with its head, in place
/// of an older one, whose gate stays.
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::Model`] if a file cannot be written.
pub(crate) fn save(
    folder: &Path,
    backbone: &Backbone,
    spec: &AdapterSpec,
    base_model: &str,
    head: Option<(&String, &Option<TaskHead>)>,
) -> Result<(), TrainError> {
    let made = NewFolder::for_place(folder)?;
    save_adapter(
        made.path(),
        &without_routers(backbone),
        &plain(spec),
        base_model,
    )?;
    let old_gate = folder.join(GATE);
    if spec.router.is_some() {
        save_routers(&made.path().join(GATE), backbone, spec)?;
    } else if old_gate.is_file() {
        fs_err::copy(&old_gate, made.path().join(GATE))?;
    }
    if let Some((task, head)) = head {
        let (task, head) = (std::slice::from_ref(task), std::slice::from_ref(head));
        save_heads(&made.path().join(HEAD), task, head)?;
    }
    made.put()
}

/// Reads an expert into a model to which `spec`, that of one expert, has been attached; an expert
/// behind a gate keeps the gate that it has.
///
/// # Errors
/// [`TrainError::Run`] if it was trained for another base model, with other sites, or has another rank
/// or scaling; [`TrainError::Model`] for a missing, broken or foreign file.
pub(crate) fn load(
    folder: &Path,
    backbone: &mut Backbone,
    spec: &AdapterSpec,
    base_model: &str,
) -> Result<(), TrainError> {
    check_base(folder, base_model)?;
    load_lora(folder, backbone, spec)
}

/// As [`load`], whatever base model the configuration names.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_lora(
    folder: &Path,
    backbone: &mut Backbone,
    spec: &AdapterSpec,
) -> Result<(), TrainError> {
    check_config(folder, backbone, spec)?;
    let mut read = without_routers(backbone);
    load_adapter(folder, &mut read, &plain(spec))?;
    for ((_, site), (_, read)) in backbone.sites_mut().into_iter().zip(read.sites()) {
        site.bank = read.bank.clone();
    }
    let tables = backbone.saved_mut().into_iter();
    for ((_, table), (_, read)) in tables.zip(read.saved_mut()) {
        *table = read.clone();
    }
    Ok(())
}

/// The specification of the expert without its gate.
fn plain(spec: &AdapterSpec) -> AdapterSpec {
    AdapterSpec {
        router: None,
        ..spec.clone()
    }
}

fn without_routers(backbone: &Backbone) -> Backbone {
    let mut backbone = backbone.clone();
    for (_, site) in backbone.sites_mut() {
        site.router = None;
    }
    backbone
}

/// The configuration of an adapter with its path.
fn config_of(folder: &Path) -> Result<(PathBuf, Value), TrainError> {
    let path = folder.join("adapter_config.json");
    let text = fs_err::read_to_string(&path)?;
    let config = serde_json::from_str(&text).map_err(TrainError::json(&path))?;
    Ok((path, config))
}

/// Refuses an expert that was trained for another base model, if it says one.
fn check_base(folder: &Path, base_model: &str) -> Result<(), TrainError> {
    let (path, config) = config_of(folder)?;
    match config["base_model_name_or_path"].as_str() {
        Some(found) if found != base_model => {
            let problem = RunProblem::OtherBase {
                found: found.into(),
                expected: base_model.into(),
            };
            Err(TrainError::run(&path, problem))
        }
        _ => Ok(()),
    }
}

/// Refuses an expert with other sites or of another rank or scaling than `spec` and `backbone` say; what its
/// configuration does not mention is not compared.
fn check_config(folder: &Path, backbone: &Backbone, spec: &AdapterSpec) -> Result<(), TrainError> {
    let (path, config) = config_of(folder)?;
    let refuse = |problem: RunProblem| Err(TrainError::run(&path, problem));
    let rank = spec.bank.rank;
    let alpha = spec
        .bank
        .scaling
        .alpha(rank)
        .map(|alpha| ("lora_alpha", alpha));
    for (key, expected) in [("r", rank as f64)].into_iter().chain(alpha) {
        if let Some(found) = config[key].as_f64().filter(|&found| found != expected) {
            return refuse(RunProblem::OtherNumber {
                key,
                found,
                expected,
            });
        }
    }
    let expected = backbone.sites().into_iter().map(|(path, _)| path).collect();
    match sites_by(&config, backbone) {
        Some(found) if found != expected => refuse(RunProblem::OtherSites {
            found: listed(&found),
            expected: listed(&expected),
        }),
        _ => Ok(()),
    }
}

/// The linear layers that a configuration's `target_modules` mean in the expert's model.
fn sites_by(config: &Value, backbone: &Backbone) -> Option<BTreeSet<String>> {
    let targets = config["target_modules"].as_array()?;
    let targets: Vec<&str> = targets.iter().filter_map(Value::as_str).collect();
    let is_meant = |path: &String| {
        let of_name = |name: &&str| path == name || path.ends_with(&format!(".{name}"));
        targets.iter().any(of_name)
    };
    let paths = backbone.linears().into_iter().map(|(path, _)| path);
    Some(paths.filter(is_meant).collect())
}

/// How many sites, and the first of them.
fn listed(sites: &BTreeSet<String>) -> String {
    match sites.first() {
        Some(first) => format!("{first} and {} more", sites.len() - 1),
        None => "none".into(),
    }
}

/// Reads the gate of an expert into a model to which an expert behind a gate has been attached.
///
/// # Errors
/// [`TrainError::Model`] for a missing, broken or foreign file.
pub(crate) fn load_gate(
    folder: &Path,
    backbone: &mut Backbone,
    spec: &AdapterSpec,
) -> Result<(), TrainError> {
    Ok(load_routers(&folder.join(GATE), backbone, spec)?)
}

/// Puts the experts of several encoders, in their order, into the banks of a mixture.
///
/// # Errors
/// [`TrainError::Recipe`] names the expert and the site where one differs from the others.
pub(crate) fn assemble(
    mixture: &mut TaskModel,
    experts: &[(String, Backbone)],
    recipe: &str,
) -> Result<(), TrainError> {
    for (number, (path, site)) in mixture.backbone.sites_mut().into_iter().enumerate() {
        let banks: Vec<ExpertBank> = experts
            .iter()
            .map(|(_, expert)| expert.sites()[number].1.bank.clone())
            .collect();
        site.bank = ExpertBank::assemble(&banks.iter().collect::<Vec<_>>()).map_err(|error| {
            let names: Vec<&str> = experts.iter().map(|(name, _)| &name[..]).collect();
            TrainError::Recipe {
                name: recipe.into(),
                problems: vec![format!("experts {} at {path}: {error}", names.join(", "))],
            }
        })?;
    }
    Ok(())
}

/// Makes the trained gates of experts, in their order, the prototypes of a mixture's routers.
///
/// # Panics
/// If a site has no router, or an expert no gate.
pub(crate) fn collect_prototypes(mixture: &mut TaskModel, gated: &[Backbone]) {
    for (number, (_, site)) in mixture.backbone.sites_mut().into_iter().enumerate() {
        let rows = gated.iter().map(|expert| {
            let gate = expert.sites()[number].1.router.as_ref();
            let row = gate.and_then(|gate| gate.rows());
            row.expect("an expert behind a gate has a router of one row")
        });
        let rows = Tensor::cat(rows.collect(), 0).detach();
        let router = site.router.as_mut();
        let router = router.expect("the order of stages was checked: sites have routers");
        router.set_rows(rows);
    }
}
