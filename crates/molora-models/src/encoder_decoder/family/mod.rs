//! Families: from `config.json` to an encoder-decoder's configuration, and names of tensors.

mod bart;
mod t5;

use super::config::EncoderDecoderConfig;
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::family::About;

/// Reads the configuration of a family.
type Read = fn(&ConfigFile) -> Result<EncoderDecoderConfig, ModelError>;

/// Every family.
pub(crate) const FAMILIES: [(&About, Read); 4] = [
    (&t5::T5, t5::t5),
    (&t5::MT5, t5::mt5),
    (&t5::UMT5, t5::umt5),
    (&bart::BART, bart::bart),
];

/// The token that every written text starts with; `default` if the file has none.
fn start_token(file: &ConfigFile, vocab_size: usize, default: u64) -> Result<usize, ModelError> {
    let field = "decoder_start_token_id";
    let token = file
        .get(field)
        .map_or(Some(default), |token| token.as_u64());
    let token = token.map(|token| token as usize);
    token
        .filter(|token| *token < vocab_size)
        .ok_or_else(|| file.unsupported(field, &format!("a token below {vocab_size}")))
}
