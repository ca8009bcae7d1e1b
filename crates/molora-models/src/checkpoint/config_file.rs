//! Reading `config.json` field by field, so that every refusal names its field.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ModelError;

/// Fields that say nothing about what is computed in a forward pass without dropout.
const NEUTRAL: &[&str] = &[
    "_name_or_path",
    "_attn_implementation_autoset",
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "cache_implementation",
    "dropout",
    "dropout_rate",
    "classifier_dropout",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "hidden_dropout",
    "id2label",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "layerdrop",
    "max_length",
    "model_type",
    "n_ctx",
    "n_positions",
    "output_past",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "use_cache",
];

/// Fields of other architectures: a value that is not null, false, 0 or empty changes what is
/// computed, in a way that is not built here.
const FOREIGN: &[&str] = &[
    "add_cross_attention",
    "alibi",
    "attention_bias",
    "attention_chunk_size",
    "attn_temperature_tuning",
    "attn_logit_softcapping",
    "decoder_sparse_step",
    "dual_chunk_attention_config",
    "final_logit_softcapping",
    "is_encoder_decoder",
    "kv_lora_rank",
    "layer_types",
    "logit_scale",
    "mlp_bias",
    "moe_intermediate_size",
    "multi_query",
    "n_routed_experts",
    "no_rope_layers",
    "num_experts",
    "num_experts_per_tok",
    "num_local_experts",
    "num_sparse_encoder_layers",
    "parallel_attention",
    "parallel_attn",
    "q_lora_rank",
    "quantization_config",
    "query_pre_attn_scalar",
    "rope_interleaved",
    "rope_parameters",
    "rope_scaling",
    "sliding_window",
    "use_bidirectional_attention",
    "use_mrope",
    "use_parallel_residual",
    "use_qk_norm",
    "use_sliding_window",
];

/// Factors of other architectures, which only 1 leaves without effect.
const FACTORS: &[&str] = &[
    "attention_multiplier",
    "embedding_multiplier",
    "logits_scaling",
    "partial_rotary_factor",
    "residual_multiplier",
    "rotary_pct",
];

/// A parsed `config.json`, or an object in it, that remembers which fields were read.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    /// Name of the object in front of its fields, with a dot; empty for the whole file.
    prefix: String,
    fields: Map<String, Value>,
    /// Fields that were read, and whether they have an effect.
    read: RefCell<BTreeMap<String, bool>>,
}

impl ConfigFile {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let text = std::fs::read_to_string(path).map_err(|source| ModelError::Io {
            path: path.into(),
            source,
        })?;
        let fields =
            serde_json::from_str(&text).map_err(|e| ModelError::file(path, e.to_string()))?;
        Ok(Self::new(path, "", fields))
    }

    pub(crate) fn new(path: &Path, prefix: &str, fields: Map<String, Value>) -> Self {
        Self {
            path: path.into(),
            prefix: prefix.into(),
            fields,
            read: RefCell::default(),
        }
    }

    /// The value of a field; null counts as absent.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(field.into(), true);
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// Counts fields as known that have no effect.
    pub(crate) fn pass_over(&self, fields: &[&str]) {
        let mut read = self.read.borrow_mut();
        for field in fields {
            read.entry((*field).into()).or_insert(false);
        }
    }

    /// Fields with an effect that were looked for so far, given or not, in the order of their names.
    pub(crate) fn looked_for(&self) -> Vec<String> {
        let read = self.read.borrow();
        let names = read.iter().filter(|(_, has_effect)| **has_effect);
        names.map(|(name, _)| name.clone()).collect()
    }

    /// Fields of other architectures that were not looked for: they have to be off.
    pub(crate) fn foreign(&self) -> Vec<&'static str> {
        let read = self.read.borrow();
        let all = FOREIGN.iter().chain(FACTORS).copied();
        all.filter(|name| !read.contains_key(*name)).collect()
    }

    /// An error about a field.
    pub(crate) fn problem(&self, field: &str, text: &str) -> ModelError {
        ModelError::file(&self.path, format!("{}{field} {text}", self.prefix))
    }

    /// An error about a field that has another value than is supported.
    pub(crate) fn unsupported(&self, field: &str, expected: &str) -> ModelError {
        let found = self.fields.get(field).unwrap_or(&Value::Null);
        self.problem(field, &format!("is {found}, expected {expected}"))
    }

    /// Says something about a field that is no reason to stop.
    pub(crate) fn warn(&self, field: &str, text: &str) {
        tracing::warn!("{}: {}{field} {text}", self.path.display(), self.prefix);
    }

    /// A size, at least 1.
    pub(crate) fn size(&self, field: &str) -> Result<usize, ModelError> {
        self.optional_size(field)?
            .ok_or_else(|| self.problem(field, "is missing"))
    }

    /// A size, at least 1, that may be absent.
    pub(crate) fn optional_size(&self, field: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        match size {
            Some(size) if size > 0 => Ok(Some(size)),
            _ => Err(self.unsupported(field, "a whole number of at least 1")),
        }
    }

    /// A positive number.
    pub(crate) fn number(&self, field: &str) -> Result<f64, ModelError> {
        self.optional_number(field)?
            .ok_or_else(|| self.problem(field, "is missing"))
    }

    /// A positive number that may be absent.
    pub(crate) fn optional_number(&self, field: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number > 0.0 && number.is_finite() => Ok(Some(number)),
            _ => Err(self.unsupported(field, "a number above 0")),
        }
    }

    /// So many positive numbers.
    pub(crate) fn numbers(&self, field: &str, count: usize) -> Result<Vec<f64>, ModelError> {
        let Some(value) = self.get(field) else {
            return Err(self.problem(field, "is missing"));
        };
        let positive = |value: &Value| value.as_f64().filter(|n| *n > 0.0 && n.is_finite());
        let numbers = value
            .as_array()
            .map(|list| list.iter().map(positive).collect());
        match numbers {
            Some(Some(numbers)) if Vec::len(&numbers) == count => Ok(numbers),
            Some(Some(numbers)) => {
                let text = format!("has {} numbers, expected {count}", numbers.len());
                Err(self.problem(field, &text))
            }
            _ => Err(self.unsupported(field, "a list of numbers above 0")),
        }
    }

    /// Whether the file has a field, if only to say null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.read.borrow_mut().insert(field.into(), true);
        self.fields.contains_key(field)
    }

    /// True or false, `default` if absent.
    pub(crate) fn flag(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.unsupported(field, "true or false")),
        }
    }

    /// A text that may be absent.
    pub(crate) fn text(&self, field: &str) -> Result<Option<&str>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => Ok(Some(text)),
                None => Err(self.unsupported(field, "a text")),
            },
        }
    }

    /// An object that may be absent.
    pub(crate) fn object(&self, field: &str) -> Result<Option<Self>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => {
                let prefix = format!("{}{field}.", self.prefix);
                Ok(Some(Self::new(&self.path, &prefix, fields.clone())))
            }
            Some(_) => Err(self.unsupported(field, "an object")),
        }
    }

    /// Refuses fields of other architectures, and warns of fields that were not read. To be called when
    /// everything was read.
    pub(crate) fn finish(&self) -> Result<(), ModelError> {
        for field in self.unread() {
            let value = &self.fields[field];
            if FOREIGN.contains(&field) && !is_off(value) {
                return Err(self.unsupported(field, "null: this is not supported"));
            }
            if FACTORS.contains(&field) && value.as_f64() != Some(1.0) && !value.is_null() {
                return Err(self.unsupported(field, "1: this is not supported"));
            }
            let known = [NEUTRAL, FOREIGN, FACTORS];
            if !known.iter().any(|fields| fields.contains(&field)) {
                let path = self.path.display();
                tracing::warn!("{path}: field {field} is not known and has no effect");
            }
        }
        Ok(())
    }

    /// Refuses any field that was not read, unless its value is as if it were absent.
    pub(crate) fn finish_by(&self, is_absent: impl Fn(&Value) -> bool) -> Result<(), ModelError> {
        let unread = self.unread();
        match unread
            .iter()
            .find(|field| !is_absent(&self.fields[**field]))
        {
            None => Ok(()),
            Some(field) => Err(self.problem(field, "is not supported")),
        }
    }

    /// Fields that have not been read so far; null counts as absent.
    pub(crate) fn unread(&self) -> Vec<&str> {
        let read = self.read.borrow();
        let given = self.fields.iter().filter(|(_, value)| !value.is_null());
        let names = given.map(|(name, _)| name.as_str());
        names.filter(|name| !read.contains_key(*name)).collect()
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}
