//! Arrow's folders: one LoRA for each expert, and a router without parameters.
//!
//! Ostapenko et al., arXiv:2405.11157. PEFT's `create_arrow_model` reads the LoRAs' folders, finds the
//! direction of every expert by fifteen power iterations, and takes top-k and temperature as arguments.
//! What it saves has the folders `task_0`, `task_1`, .. and `arrow_router` with both numbers.

use std::path::{Path, PathBuf};

use molora_adapters::Scaling;
use molora_routing::{Granularity, NormaliserConfig, RouteFrom, ScorerConfig, Selection};

use super::{PeftAbout, expert, write_adapter};
use crate::checkpoint::ConfigFile;
use crate::modules::BaseModel;
use crate::{Adaptable, AdapterFiles, AdapterSpec, ModelError, RouterScope};

/// The folder of what PEFT saves of the router.
const ROUTER: &str = "arrow_router";

/// Fields of `arrow_config` that say nothing about what a loaded router computes.
const NEUTRAL: [&str; 2] = ["gks_adapter_names", "rng_seed"];

/// Experts that PEFT's Arrow has saved.
#[derive(Debug, Clone, PartialEq)]
pub struct ArrowFolder {
    /// Names and folders of the experts, in the order of the router.
    pub experts: Vec<(String, PathBuf)>,
    /// Experts for each token.
    pub top_k: usize,
    /// Scores are divided by this before the softmax.
    pub temperature: f64,
}

impl ArrowFolder {
    /// Whether a folder has the router of PEFT's Arrow.
    pub fn is_in(folder: &Path) -> bool {
        AdapterFiles::in_folder(&folder.join(ROUTER))
            .config
            .is_file()
    }

    /// Reads a folder that PEFT's `save_pretrained` wrote of an Arrow model.
    ///
    /// # Errors
    /// A missing or broken file, an expert without a folder, or `use_gks`: whether general knowledge
    /// was subtracted from what is saved, the files do not say.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let path = AdapterFiles::in_folder(&folder.join(ROUTER)).config;
        let file = ConfigFile::open(&path)?;
        let Some(arrow) = file.object("arrow_config")? else {
            return Err(file.problem("arrow_config", "is missing"));
        };
        if arrow.flag("use_gks", false)? {
            let expected = "false: whether the general LoRAs were subtracted from the saved experts \
                            already, the files do not say";
            return Err(arrow.unsupported("use_gks", expected));
        }
        let names = arrow.get("task_adapter_names").and_then(|names| {
            let names = names.as_array()?.iter();
            names.map(|name| name.as_str().map(str::to_owned)).collect()
        });
        let names: Vec<String> = names
            .filter(|names: &Vec<String>| !names.is_empty())
            .ok_or_else(|| arrow.unsupported("task_adapter_names", "names of LoRAs"))?;
        let is_folder = |name: &&String| {
            let is_name = !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.');
            is_name && AdapterFiles::in_folder(&folder.join(name)).config.is_file()
        };
        if let Some(name) = names.iter().find(|name| !is_folder(name)) {
            let problem = format!("names the LoRA {name}, which has no folder beside it");
            return Err(arrow.problem("task_adapter_names", &problem));
        }
        let found = Self {
            top_k: arrow.optional_size("top_k")?.unwrap_or(3),
            temperature: arrow.optional_number("router_temperature")?.unwrap_or(1.0),
            experts: names
                .into_iter()
                .map(|name| (name.clone(), folder.join(name)))
                .collect(),
        };
        for field in NEUTRAL {
            arrow.get(field);
        }
        arrow.finish_by(|value| value.is_null() || *value == false)?;
        Ok(found)
    }
}

/// Why PEFT's Arrow does not compute what a specification says; `None` if it does.
pub fn why_no_arrow(spec: &AdapterSpec) -> Option<&'static str> {
    let Some(router) = &spec.router else {
        return Some("it has no router");
    };
    let is_arrow = matches!(router.scorer, ScorerConfig::Arrow(_));
    let by_token =
        router.granularity == Granularity::Token && router.route_from == RouteFrom::Hidden;
    let is_site = spec.composition.is_site() && spec.router_scope == RouterScope::Site;
    if !is_arrow || !by_token || !is_site {
        return Some("its routers do not go by the directions of experts at each layer");
    }
    if spec.general.is_some() {
        return Some(
            "it adds a general expert (adapter.general), and PEFT subtracts general LoRAs from the others \
             (GenKnowSub)",
        );
    }
    let is_plain = spec.bank.is_plain() && !matches!(spec.bank.scaling, Scaling::Aligned(_));
    if !is_plain || spec.gate.is_some() || spec.dora {
        return Some("its experts are more than LoRAs, or something beside them acts");
    }
    let selects = matches!(router.selection, Selection::Dense | Selection::TopK(_));
    if !selects || !matches!(router.normaliser, NormaliserConfig::Softmax(_)) {
        return Some("PEFT's Arrow weighs by a softmax of the top-k alone");
    }
    None
}

/// Writes the experts of a model as LoRAs in folders of these names, and how PEFT routes them.
///
/// # Errors
/// [`ModelError::Inconsistent`] if PEFT computes something else ([`why_no_arrow`]), or a layer has experts
/// where another of its name has none: PEFT routes all of a name; [`ModelError::Io`] if a file cannot be
/// written.
pub fn write_arrow<M: BaseModel + Adaptable>(
    folder: &Path,
    model: &M,
    spec: &AdapterSpec,
    names: &[String],
    about: &PeftAbout,
) -> Result<(), ModelError> {
    if let Some(why) = why_no_arrow(spec) {
        return Err(ModelError::Inconsistent(why.into()));
    }
    refuse_some_of_a_name(model)?;
    for (number, name) in names.iter().enumerate() {
        let about = PeftAbout {
            name: "default".into(),
            ..about.clone()
        };
        write_adapter(&folder.join(name), model, &expert(model, number)?, &about)?;
    }
    let path = folder.join("README.md");
    std::fs::write(&path, readme(spec, names)).map_err(|source| ModelError::Io { path, source })
}

/// Refuses experts on a part of the layers of a name, or on a part of a fused layer.
fn refuse_some_of_a_name<M: Adaptable>(model: &M) -> Result<(), ModelError> {
    let sites = model.site_paths();
    let end = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let ends: Vec<String> = sites.iter().map(|path| end(path)).collect();
    for (path, _) in model.linears() {
        let is_site = sites.contains(&path);
        let problem = if is_site && model.is_part(&path) {
            "is a part of a layer that PEFT has as a whole"
        } else if !is_site && ends.contains(&end(&path)) {
            "has no experts, and PEFT takes all layers of that name"
        } else {
            continue;
        };
        return Err(ModelError::Inconsistent(format!("{path}: it {problem}")));
    }
    Ok(())
}

fn readme(spec: &AdapterSpec, names: &[String]) -> String {
    let router = spec.router.as_ref().expect("checked before");
    let top_k = match router.selection {
        Selection::TopK(k) => k.min(names.len()),
        _ => names.len(),
    };
    let temperature = router.temperature;
    let paths: Vec<String> = names
        .iter()
        .map(|name| format!("    \"THIS_FOLDER/{name}\",\n"))
        .collect();
    let paths = paths.concat();
    format!(
        "# Experts for PEFT's Arrow

Each folder is a LoRA. A token's experts at a layer are those {top_k} whose direction is nearest to the
layer's input, weighed by a softmax of the scores divided by {temperature}.

```python
from peft import ArrowConfig
from peft.tuners.lora.arrow import create_arrow_model

experts = [
{paths}]
config = ArrowConfig(top_k={top_k}, router_temperature={temperature})
model = create_arrow_model(base, experts, config)
```

PEFT finds the directions by fifteen power iterations from a random start, so that its routing differs a
little where an expert has several directions of nearly the same strength.
"
    )
}
