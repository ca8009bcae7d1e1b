//! Families: from `config.json` to an encoder's configuration, and names of tensors.

mod bert;
mod deberta;
mod distilbert;
mod modernbert;
mod mpnet;

use super::config::EncoderConfig;
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::family::About;
use crate::layers::Activation;

/// Reads the configuration of a family.
type Read = fn(&ConfigFile) -> Result<EncoderConfig, ModelError>;

/// Every family.
pub(crate) const FAMILIES: [(&About, Read); 8] = [
    (&bert::BERT, bert::bert),
    (&bert::ROBERTA, bert::roberta),
    (&bert::XLM_ROBERTA, bert::roberta),
    (&bert::ELECTRA, bert::electra),
    (&distilbert::DISTILBERT, distilbert::distilbert),
    (&mpnet::MPNET, mpnet::mpnet),
    (&modernbert::MODERNBERT, modernbert::modernbert),
    (&deberta::DEBERTA, deberta::deberta),
];

/// Fields that change nothing without dropout, or that only heads of other uses read.
const NEUTRAL: [&str; 43] = [
    "attention_probs_dropout_prob",
    "classif_dropout_prob",
    "classifier_activation",
    "classifier_bias",
    "classifier_pooling",
    "cls_token_id",
    "decoder_bias",
    "deterministic_flash_attn",
    "directionality",
    "dropout",
    "embedding_dropout",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "initializer_cutoff_factor",
    "layer_norm_eps",
    "legacy",
    "mask_token_id",
    "mlp_dropout",
    "output_attentions",
    "output_hidden_states",
    "padding_idx",
    "pooler_dropout",
    "pooler_fc_size",
    "pooler_hidden_act",
    "pooler_hidden_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "qa_dropout",
    "reference_compile",
    "repad_logits_with_grad",
    "sep_token_id",
    "seq_classif_dropout",
    "sinusoidal_pos_embds",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "summary_last_dropout",
    "tie_weights_",
    "tie_word_embeddings",
    "vocab_list",
    "embeddings_dropout",
];

/// Counts fields as known that have no effect here.
pub(super) fn pass_over(file: &ConfigFile) {
    file.pass_over(&NEUTRAL);
}

/// What a family calls the width of hidden states and the number of heads.
pub(super) fn width_fields(file: &ConfigFile) -> [&'static str; 2] {
    match file.get("dim") {
        Some(_) => ["dim", "n_heads"],
        None => ["hidden_size", "num_attention_heads"],
    }
}

/// Refuses what makes another model of an encoder.
fn only_encoder(file: &ConfigFile) -> Result<(), ModelError> {
    for field in ["is_decoder", "add_cross_attention"] {
        if file.flag(field, false)? {
            return Err(file.unsupported(field, "false: this is an encoder"));
        }
    }
    match file.text("position_embedding_type")? {
        None | Some("absolute") => Ok(()),
        Some(_) => Err(file.unsupported("position_embedding_type", "absolute")),
    }
}

const ACTIVATIONS: [(&str, Activation); 8] = [
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
];

/// The non-linearity that a field names.
pub(crate) fn activation(file: &ConfigFile, field: &str) -> Result<Activation, ModelError> {
    let Some(found) = file.text(field)? else {
        return Err(file.problem(field, "is missing"));
    };
    let known = ACTIVATIONS.iter().find(|(name, _)| *name == found);
    known.map(|(_, activation)| *activation).ok_or_else(|| {
        let names = ACTIVATIONS.map(|(name, _)| name);
        file.unsupported(field, &names.join(", "))
    })
}

/// A whole number, which may be negative; `default` if absent.
fn integer(file: &ConfigFile, field: &str, default: i64) -> Result<i64, ModelError> {
    match file.get(field) {
        None => Ok(default),
        Some(value) => value
            .as_i64()
            .ok_or_else(|| file.unsupported(field, "a whole number")),
    }
}

/// A size that may be 0; `default` if absent.
fn count(file: &ConfigFile, field: &str, default: usize) -> Result<usize, ModelError> {
    let found = integer(file, field, default as i64)?;
    usize::try_from(found).map_err(|_| file.unsupported(field, "0 or more"))
}
