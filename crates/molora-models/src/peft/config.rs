//! `adapter_config.json` of a LoRA.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::pattern::{Pattern, Targets, ends_with};
use crate::ModelError;
use crate::checkpoint::{ConfigFile, Pairs};

/// Fields that say nothing about what a loaded adapter computes.
const NEUTRAL: &[&str] = &[
    "auto_mapping",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "save_embedding_layers",
];

/// Initialisations that leave the base as it is. Others (PiSSA, OLoRA, ...) move a part of the base
/// into the adapter, which then belongs to another base.
const HARMLESS_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What PEFT's `adapter_config.json` says about a LoRA.
#[derive(Debug, Clone)]
pub struct PeftConfig {
    /// The file.
    pub path: PathBuf,
    /// Rank R where no pattern says otherwise.
    pub rank: usize,
    /// Alpha where no pattern says otherwise.
    pub alpha: f64,
    /// Whether the delta is scaled by `alpha / sqrt(R)` rather than `alpha / R`.
    pub is_rank_stabilized: bool,
    /// Whether the norm of each output's weights is learned apart (DoRA).
    pub has_magnitudes: bool,
    /// Ranks by module, in the order in which they are tried.
    pub rank_pattern: Vec<(Pattern, usize)>,
    /// Alphas by module, in the order in which they are tried.
    pub alpha_pattern: Vec<(Pattern, f64)>,
    /// Which modules are adapted; absent where the file does not say.
    pub targets: Option<Targets>,
    /// Which of them are not.
    pub excluded: Option<Targets>,
    /// Numbers of the layers that are adapted; empty for all.
    pub layers: Vec<usize>,
    /// Where a path holds the number of its layer.
    pub(super) layer_patterns: Vec<Pattern>,
    /// Modules that are saved whole.
    pub modules_to_save: Vec<String>,
    /// Whether a head that is the table of embeddings follows an adapter of the table.
    pub keeps_tied: bool,
    /// Probability of dropping an input activation in training.
    pub dropout: f64,
    /// What the adapter is for, in PEFT's words.
    pub task_type: Option<String>,
    /// What it was trained on.
    pub base_model: Option<String>,
}

/// The fields whose order counts.
#[derive(Deserialize)]
struct Ordered {
    rank_pattern: Option<Pairs<usize>>,
    alpha_pattern: Option<Pairs<f64>>,
}

impl PeftConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::File`], naming the field that cannot be used: one of a
    /// wrong type, and one in use that is not supported.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let file = ConfigFile::open(path)?;
        match file.text("peft_type")? {
            Some("LORA") => {}
            _ => return Err(file.unsupported("peft_type", "\"LORA\"")),
        }
        check_bias(&file)?;
        check_init(&file)?;
        for field in NEUTRAL {
            file.get(field);
        }
        // PEFT stores the factors of a transposed layer as those of any other.
        file.flag("fan_in_fan_out", false)?;
        let (rank_pattern, alpha_pattern) = patterns(path)?;
        let config = Self {
            path: path.into(),
            rank: file.optional_size("r")?.unwrap_or(8),
            alpha: file.optional_number("lora_alpha")?.unwrap_or(8.0),
            is_rank_stabilized: file.flag("use_rslora", false)?,
            has_magnitudes: file.flag("use_dora", false)?,
            rank_pattern,
            alpha_pattern,
            targets: targets(&file, path, "target_modules")?,
            excluded: targets(&file, path, "exclude_modules")?,
            layers: layers(&file)?,
            layer_patterns: layer_patterns(&file, path)?,
            modules_to_save: names(&file, "modules_to_save")?.unwrap_or_default(),
            keeps_tied: file.flag("ensure_weight_tying", false)?,
            dropout: dropout(&file)?,
            task_type: file.text("task_type")?.map(str::to_owned),
            base_model: file.text("base_model_name_or_path")?.map(str::to_owned),
        };
        file.get("rank_pattern");
        file.get("alpha_pattern");
        file.finish_by(is_default)?;
        Ok(config)
    }

    /// Whether a module is to have a LoRA; `is_linear` is false for embeddings and the head.
    pub fn adapts(&self, path: &str, is_linear: bool) -> bool {
        let Some(targets) = &self.targets else {
            return false;
        };
        let is_excluded = |excluded: &Targets| excluded.matches(path, is_linear);
        if self.excluded.as_ref().is_some_and(is_excluded) || self.saves(path) {
            return false;
        }
        // A full path is meant whatever its layer.
        let is_exact = match targets {
            Targets::Names(names) => names.iter().any(|name| name == path),
            _ => true,
        };
        targets.matches(path, is_linear) && (is_exact || self.has_layer(path))
    }

    /// Refuses an expression that takes too many steps on a module's path: whether it matches is not
    /// known.
    pub(super) fn refuse_exhausted(&self, path: &str) -> Result<(), ModelError> {
        let of = |targets: &Option<Targets>| targets.as_ref().and_then(Targets::pattern).cloned();
        let fields = [
            ("target_modules", of(&self.targets).into_iter().collect()),
            ("exclude_modules", of(&self.excluded).into_iter().collect()),
            ("layers_pattern", self.layer_patterns.clone()),
            ("rank_pattern", texts(&self.rank_pattern)),
            ("alpha_pattern", texts(&self.alpha_pattern)),
        ];
        for (field, patterns) in fields {
            if let Some(pattern) = patterns.iter().find(|pattern| pattern.gives_up(path)) {
                let problem = format!(
                    "{field} has the regular expression `{}`, which takes too many steps on {path}",
                    pattern.text()
                );
                return Err(ModelError::file(&self.path, problem));
            }
        }
        Ok(())
    }

    /// Whether a module, or one that it is in, is saved whole.
    pub fn saves(&self, path: &str) -> bool {
        let mut fronts = path.match_indices('.').map(|(dot, _)| &path[..dot]);
        let is_saved = |front: &str| {
            let mut names = self.modules_to_save.iter();
            names.any(|name| ends_with(front, name))
        };
        is_saved(path) || fronts.any(is_saved)
    }

    fn has_layer(&self, path: &str) -> bool {
        if self.layers.is_empty() {
            return true;
        }
        let number = self.layer_patterns.iter().find_map(|p| p.number(path));
        number.is_some_and(|number| self.layers.contains(&number))
    }

    /// Rank of a module.
    pub fn rank_of(&self, path: &str) -> usize {
        first(&self.rank_pattern, path).unwrap_or(self.rank)
    }

    /// Factor on the delta of a module: `alpha / R`, or `alpha / sqrt(R)`.
    pub fn scale_of(&self, path: &str) -> f64 {
        let alpha = first(&self.alpha_pattern, path).unwrap_or(self.alpha);
        let rank = self.rank_of(path) as f64;
        match self.is_rank_stabilized {
            true => alpha / rank.sqrt(),
            false => alpha / rank,
        }
    }
}

fn texts<V>(patterns: &[(Pattern, V)]) -> Vec<Pattern> {
    patterns
        .iter()
        .map(|(pattern, _)| pattern.clone())
        .collect()
}

fn first<V: Copy>(patterns: &[(Pattern, V)], path: &str) -> Option<V> {
    let mut matching = patterns.iter().filter(|(pattern, _)| pattern.matches(path));
    matching.next().map(|(_, value)| *value)
}

/// A bias trained beside the adapter is a tensor of its own in the file, whatever this field says.
fn check_bias(file: &ConfigFile) -> Result<(), ModelError> {
    match file.text("bias")? {
        None | Some("none" | "all" | "lora_only") => Ok(()),
        Some(_) => Err(file.unsupported("bias", "\"none\", \"all\" or \"lora_only\"")),
    }
}

fn check_init(file: &ConfigFile) -> Result<(), ModelError> {
    let is_harmless = match file.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => true,
        Some(Value::String(name)) => HARMLESS_INITS.contains(&name.as_str()),
        Some(_) => false,
    };
    match is_harmless {
        true => Ok(()),
        false => Err(file.unsupported(
            "init_lora_weights",
            "true, false, \"gaussian\", \"eva\" or \"orthogonal\": others change the base; let PEFT \
             convert the adapter (path_initial_model_for_weight_conversion)",
        )),
    }
}

type Patterns = (Vec<(Pattern, usize)>, Vec<(Pattern, f64)>);

fn patterns(path: &Path) -> Result<Patterns, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::Io {
        path: path.into(),
        source,
    })?;
    let refuse = |problem: String| ModelError::file(path, problem);
    let ordered: Ordered = serde_json::from_str(&text)
        .map_err(|e| refuse(format!("rank_pattern or alpha_pattern: {e}")))?;
    let ranks = read_patterns(path, "rank_pattern", ordered.rank_pattern)?;
    let alphas = read_patterns(path, "alpha_pattern", ordered.alpha_pattern)?;
    if let Some((pattern, _)) = ranks.iter().find(|(_, rank)| *rank == 0) {
        let text = pattern.text();
        return Err(refuse(format!(
            "rank_pattern.{text} is 0, expected at least 1"
        )));
    }
    Ok((ranks, alphas))
}

/// A pattern matches an end of the path that starts at a dot, as PEFT's do.
fn read_patterns<V>(
    path: &Path,
    field: &str,
    pairs: Option<Pairs<V>>,
) -> Result<Vec<(Pattern, V)>, ModelError> {
    let pairs = pairs.map(|Pairs(pairs)| pairs).unwrap_or_default();
    let read = |(text, value): (String, V)| {
        let wrap = |text: &str| format!(r"^(?:.*\.)?(?:{text})$");
        Ok((Pattern::new(&text, wrap, (path, field))?, value))
    };
    pairs.into_iter().map(read).collect()
}

fn targets(file: &ConfigFile, path: &Path, field: &str) -> Result<Option<Targets>, ModelError> {
    Ok(match file.get(field) {
        None => None,
        Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => {
            Some(Targets::AllLinear)
        }
        Some(Value::String(text)) => {
            let pattern = Pattern::whole(text, (path, field))?;
            Some(Targets::Pattern(Box::new(pattern)))
        }
        Some(_) => names(file, field)?.map(Targets::Names),
    })
}

/// A list of texts, or one text, that may be absent.
fn names(file: &ConfigFile, field: &str) -> Result<Option<Vec<String>>, ModelError> {
    let refuse = || file.unsupported(field, "a list of texts");
    match file.get(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(vec![text.clone()])),
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|value| value.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().map(Some).ok_or_else(refuse)
        }
        Some(_) => Err(refuse()),
    }
}

fn layers(file: &ConfigFile) -> Result<Vec<usize>, ModelError> {
    let refuse = || file.unsupported("layers_to_transform", "a number or a list of numbers");
    let number = |value: &Value| value.as_u64().map(|number| number as usize);
    match file.get("layers_to_transform") {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => {
            let numbers = list.iter().map(number);
            numbers.collect::<Option<_>>().ok_or_else(refuse)
        }
        Some(value) => Ok(vec![number(value).ok_or_else(refuse)?]),
    }
}

fn layer_patterns(file: &ConfigFile, path: &Path) -> Result<Vec<Pattern>, ModelError> {
    let place = (path, "layers_pattern");
    let mut texts = names(file, "layers_pattern")?.unwrap_or_default();
    texts.retain(|text| !text.is_empty());
    if texts.is_empty() {
        // The first segment that is a number and has two segments in front of it.
        let first = |text: &str| text.to_owned();
        return Ok(vec![Pattern::new(r"^.*?\.[^.]*\.(\d+)\.", first, place)?]);
    }
    let read = |text: &String| {
        Pattern::new(
            text,
            |text| format!(r"^(?:.*?\.)?(?:{text})\.(\d+)\."),
            place,
        )
    };
    texts.iter().map(read).collect()
}

fn dropout(file: &ConfigFile) -> Result<f64, ModelError> {
    match file.get("lora_dropout") {
        None => Ok(0.0),
        Some(value) => match value.as_f64() {
            Some(dropout) if (0.0..1.0).contains(&dropout) => Ok(dropout),
            _ => Err(file.unsupported("lora_dropout", "a number from 0, less than 1")),
        },
    }
}

/// Whether a field that this version does not know is as if it were not there.
fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(fields: Value) -> Result<PeftConfig, ModelError> {
        let text = fields.to_string();
        read_text(&text)
    }

    fn read_text(text: &str) -> Result<PeftConfig, ModelError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("adapter_config.json");
        std::fs::write(&path, text).expect("writable");
        PeftConfig::from_file(&path)
    }

    fn refused(field: &str, value: Value) {
        let mut fields = json!({"peft_type": "LORA"});
        fields[field] = value;
        let text = read(fields).expect_err(field).to_string();
        let start = format!("adapter_config.json: {field}");
        assert!(text.contains(&start) && !text.contains('\n'), "{text}");
    }

    #[test]
    fn ranks_and_scales_follow_the_first_pattern() {
        let config = read_text(
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": true,
                "target_modules": ["q_proj"],
                "rank_pattern": {"layers\\.1\\..*q_proj": 16, "q_proj": 2, "1.a.q_proj": 3},
                "alpha_pattern": {"v_proj": 32}}"#,
        )
        .expect("valid");
        let second = "model.layers.1.self_attn.q_proj";
        assert_eq!(config.rank_of(second), 16);
        assert_eq!(config.rank_of("model.layers.1.a.q_proj"), 16);
        assert_eq!(config.rank_of("model.layers.0.self_attn.q_proj"), 2);
        assert_eq!(config.rank_of("model.layers.0.self_attn.my_q_proj"), 4);
        assert_eq!(config.scale_of(second), 8.0 / 4.0);
        assert_eq!(config.scale_of("a.v_proj"), 32.0 / 2.0);
    }

    #[test]
    fn exclusions_saved_modules_and_layers_win() {
        let config = read(json!({
            "peft_type": "LORA", "target_modules": ["q_proj", "lm_head", "model.layers.0.v_proj"],
            "exclude_modules": "model\\.layers\\.2\\..*", "modules_to_save": ["lm_head"],
            "layers_to_transform": [1, 2], "layers_pattern": "layers",
        }))
        .expect("valid");
        assert!(config.adapts("model.layers.1.q_proj", true));
        assert!(!config.adapts("model.layers.2.q_proj", true), "excluded");
        assert!(!config.adapts("model.layers.0.q_proj", true), "a layer");
        assert!(config.adapts("model.layers.0.v_proj", true), "a full path");
        assert!(!config.adapts("lm_head", false), "saved whole");
    }

    #[test]
    fn fields_in_use_that_are_not_supported_are_named() {
        refused("peft_type", "IA3".into());
        refused("r", 0.into());
        refused("use_qalora", true.into());
        refused("lora_bias", true.into());
        refused("alora_invocation_tokens", json!([1]));
        refused("layer_replication", json!([[0, 1]]));
        refused("trainable_token_indices", json!([3]));
        refused("target_parameters", json!(["experts.w"]));
        refused("init_lora_weights", "pissa".into());
        refused("target_modules", json!([1]));
        refused("layers_to_transform", "1".into());
        refused("lora_dropout", 1.0.into());
        refused("rank_pattern", json!({"(": 2}));
        refused("rank_pattern", json!({"a": 0}));
        refused("bias", "some".into());
        refused("something_new", json!({"a": 1}));
    }

    #[test]
    fn fields_that_are_as_if_absent_pass() {
        let config = read(json!({
            "peft_type": "LORA", "lora_bias": false, "layer_replication": null,
            "target_parameters": [], "something_new": {}, "loftq_config": {"bits": 4},
            "megatron_core": "megatron.core", "init_lora_weights": "gaussian",
        }))
        .expect("valid");
        assert_eq!((config.rank, config.alpha), (8, 8.0));
        assert!(!config.adapts("q_proj", true), "nothing is named");
    }
}
