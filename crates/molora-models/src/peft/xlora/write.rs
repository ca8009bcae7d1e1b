//! Writing an X-LoRA that PEFT loads.

use std::collections::BTreeMap;
use std::path::Path;

use molora_adapters::Scaling;
use molora_routing::{Granularity, RouteFrom, RouterConfig, ScorerConfig, Selection};
use serde::{Serialize, Serializer};

use super::{CLASSIFIER, Switches, layer_numbers};
use crate::checkpoint::write_tensors;
use crate::modules::BaseModel;
use crate::peft::{PeftAbout, expert, write_adapter};
use crate::{Adaptable, AdapterFiles, AdapterSpec, FirstPassConfig, ModelError};

/// The fields of `adapter_config.json` that say something.
#[derive(Serialize)]
struct Config<'a> {
    peft_type: &'static str,
    task_type: Option<&'a str>,
    base_model_name_or_path: &'a str,
    hidden_size: Option<usize>,
    #[serde(serialize_with = "in_order")]
    adapters: Vec<(String, String)>,
    enable_softmax: bool,
    enable_softmax_topk: bool,
    softmax_temperature: f64,
    layerwise_scalings: bool,
    top_k_lora: Option<usize>,
    xlora_depth: usize,
    xlora_size: usize,
    xlora_dropout_p: f64,
    use_trainable_adapters: bool,
    scaling_pass_value: f64,
    global_scaling_weight: f64,
    inference_mode: bool,
}

/// A map whose entries stay in their order, which is that of the classifier's outputs.
fn in_order<S: Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, path)| (name, path)))
}

/// How to load it, for people.
const README: &str = "# An X-LoRA for PEFT

`adapter_config.json` names the folders of the LoRAs, which PEFT reads from there: after the folder was
moved, change the paths in `adapters`. PEFT wants the base model without its cache.

```python
base = AutoModelForCausalLM.from_pretrained(BASE)
base.config.use_cache = False
model = PeftModel.from_pretrained(base, THIS_FOLDER)
```

PEFT 0.21 cannot save it again: `save_pretrained` loses layers of the classifier and of the LoRAs.
";

/// Why PEFT's X-LoRA does not compute what a specification says; `None` if it does.
pub fn why_no_xlora(spec: &AdapterSpec) -> Option<String> {
    settings(spec).err()
}

/// The numbers of the first pass, the classifier's router and PEFT's switches.
fn settings(spec: &AdapterSpec) -> Result<(FirstPassConfig, &RouterConfig, Switches), String> {
    let first = spec.router_scope.first_pass();
    let (Some(first), Some(router)) = (first, &spec.router) else {
        return Err("no first pass decides how its experts are weighed".into());
    };
    let is_linear = matches!(&router.scorer, ScorerConfig::Linear(scorer) if scorer.bias);
    if !is_linear || router.granularity != Granularity::Token {
        return Err("its classifier is not linear with a bias, for each token".into());
    }
    let is_plain = spec.bank.is_plain() && !matches!(spec.bank.scaling, Scaling::Aligned(_));
    let has_more = spec.gate.is_some() || spec.general.is_some() || spec.dora;
    if !is_plain || has_more || router.route_from != RouteFrom::Hidden {
        return Err("its experts are more than LoRAs, or something beside them acts".into());
    }
    if !matches!(router.selection, Selection::Dense | Selection::TopK(_)) {
        return Err("PEFT selects experts by top-k alone".into());
    }
    let Some(switches) = Switches::of(&router.normaliser, router.selection) else {
        let name = router.normaliser.name();
        return Err(format!("PEFT has no normaliser {name}"));
    };
    let selects = router.selection != Selection::Dense || switches.again;
    if first.scaling_pass_value != 0.0 && selects {
        return Err(
            "its first pass has experts (scaling_pass_value), of which PEFT would select \
                    some as in the second one"
                .into(),
        );
    }
    if first.scaling_pass_value != 0.0 && first.global_weight == 0.0 {
        return Err(
            "its first pass has experts (scaling_pass_value), which PEFT would multiply by \
                    global_weight 0"
                .into(),
        );
    }
    Ok((*first, router, switches))
}

/// Writes the experts of a model as LoRAs in folders `0`, `1`, .., and its classifier beside them. `place`
/// is where the folder will be: the configuration names the LoRAs by it.
///
/// # Errors
/// [`ModelError::Inconsistent`] if PEFT computes something else ([`why_no_xlora`]), or cannot load the
/// LoRAs of such a model; [`ModelError::Io`] if a file cannot be written.
pub fn write_xlora<M: BaseModel + Adaptable>(
    folder: &Path,
    place: &Path,
    model: &M,
    spec: &AdapterSpec,
    about: &PeftAbout,
) -> Result<(), ModelError> {
    let (first, router, switches) = settings(spec).map_err(ModelError::Inconsistent)?;
    let paths = model.site_paths();
    let is_known = |path: &&String| path.starts_with("model.") && !model.is_part(path);
    if let Some(path) = paths.iter().find(|path| !is_known(path)) {
        return Err(ModelError::Inconsistent(format!(
            "{path}: PEFT loads LoRAs of an X-LoRA only for models whose layers are named model.layers"
        )));
    }
    let classifier = Classifier::of(model);
    let factor = match switches.softmax {
        true => 1.0,
        // PEFT reads the temperature for its first softmax alone.
        false => 1.0 / router.temperature,
    };
    let (hidden, last) = layer_numbers(first.depth, first.dropout > 0.0);
    let tensors = classifier.tensors(&hidden, last, factor);
    let names: Vec<String> = (0..spec.bank.num_experts).map(|e| e.to_string()).collect();
    let path = |name: &String| (name.clone(), place.join(name).display().to_string());
    let first_layer = tensors.get(&format!("{CLASSIFIER}0.weight"));
    let hidden_size = first_layer.and_then(|(shape, _)| shape.get(1)).copied();
    let config = Config {
        peft_type: "XLORA",
        task_type: about.task_type.as_deref(),
        base_model_name_or_path: &about.base_model,
        hidden_size,
        adapters: names.iter().map(path).collect(),
        enable_softmax: switches.softmax,
        enable_softmax_topk: switches.again,
        softmax_temperature: match switches.softmax {
            true => router.temperature,
            false => 1.0,
        },
        layerwise_scalings: first.layerwise,
        top_k_lora: match router.selection {
            Selection::TopK(k) => Some(k),
            _ => None,
        },
        xlora_depth: first.depth,
        xlora_size: first.width,
        xlora_dropout_p: first.dropout,
        use_trainable_adapters: false,
        // PEFT scales the first pass too.
        scaling_pass_value: match first.scaling_pass_value {
            0.0 => 0.0,
            value => value / first.global_weight,
        },
        global_scaling_weight: first.global_weight,
        inference_mode: true,
    };
    for (number, name) in names.iter().enumerate() {
        let about = PeftAbout {
            name: "default".into(),
            ..about.clone()
        };
        write_adapter(&folder.join(name), model, &expert(model, number)?, &about)?;
    }
    let files = AdapterFiles::in_folder(folder);
    write_tensors(&files.tensors, &tensors)?;
    let text = serde_json::to_string_pretty(&config)
        .map_err(|error| ModelError::file(&files.config, error.to_string()))?;
    for (path, text) in [
        (files.config, format!("{text}\n")),
        (folder.join("README.md"), README.to_owned()),
    ] {
        std::fs::write(&path, text).map_err(|source| ModelError::Io { path, source })?;
    }
    Ok(())
}

/// A tensor's shape and values.
type Stored = (Vec<usize>, Vec<f32>);

/// The classifier's tensors by name, with those of all routers in their order.
struct Classifier(BTreeMap<&'static str, Vec<Stored>>);

impl Classifier {
    fn of<M: Adaptable>(model: &M) -> Self {
        let mut all: BTreeMap<&'static str, Vec<Stored>> = BTreeMap::new();
        let visited = model.clone().visit_tensors(|_, tensor| {
            let name = tensor.name();
            if name.starts_with("router.") || name.starts_with("classifier.") {
                let stored = (tensor.shape(), tensor.values());
                all.entry(name).or_default().push(stored);
            }
            Ok::<(), std::convert::Infallible>(())
        });
        visited.unwrap_or_else(|never| match never {});
        Self(all)
    }

    /// In PEFT's layout: layers have these numbers, and the last one is scaled by a factor.
    fn tensors(mut self, hidden: &[usize], last: usize, factor: f64) -> BTreeMap<String, Stored> {
        let mut tensors = BTreeMap::new();
        for part in ["weight", "bias"] {
            let mut put = |layer: usize, stored: Stored| {
                tensors.insert(format!("{CLASSIFIER}{layer}.{part}"), stored);
            };
            let mut take = |name: &str| self.0.remove(name).unwrap_or_default();
            let (first, more, router) = match part {
                "weight" => (
                    "classifier.weight",
                    "classifier.more.weight",
                    "router.weight",
                ),
                _ => ("classifier.bias", "classifier.more.bias", "router.bias"),
            };
            for (&layer, stored) in hidden.iter().zip(take(first)) {
                put(layer, stored);
            }
            for (shape, values) in take(more) {
                let each = shape[1..].iter().product();
                for (&layer, values) in hidden.iter().skip(1).zip(values.chunks(each)) {
                    put(layer, (shape[1..].to_vec(), values.to_vec()));
                }
            }
            // One for all layers, or one for each, whose rows lie one after another.
            let (mut shape, mut all) = (Vec::new(), Vec::new());
            for (own, values) in take(router) {
                match shape.first_mut() {
                    Some(rows) => *rows += own[0],
                    None => shape = own,
                }
                all.extend(
                    values
                        .iter()
                        .map(|&value| (f64::from(value) * factor) as f32),
                );
            }
            put(last, (shape, all));
        }
        tensors
    }
}
