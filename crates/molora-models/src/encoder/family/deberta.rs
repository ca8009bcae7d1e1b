//! DeBERTa v2 and v3 (He et al., arXiv:2006.03654 and arXiv:2111.09543): contents and relative
//! positions attend to each other.

use super::bert::{NAMES as BERT, base, small};
use super::{activation, integer, only_encoder};
use crate::ModelError;
use crate::checkpoint::ConfigFile;
use crate::encoder::config::{ConvolutionConfig, EncoderConfig, Names, Projection};
use crate::encoder::relative::Disentangled;
use crate::family::About;
use crate::layers::Activation;

const NAMES: Names = Names {
    prefix: "deberta.",
    projection: "embeddings.embed_proj",
    qkv: [
        "attention.self.query_proj",
        "attention.self.key_proj",
        "attention.self.value_proj",
    ],
    position_key: "attention.self.pos_key_proj",
    position_query: "attention.self.pos_query_proj",
    relative: "encoder.rel_embeddings",
    relative_norm: "encoder.LayerNorm",
    convolution: "encoder.conv.conv",
    convolution_norm: "encoder.conv.LayerNorm",
    unused: &[
        "embeddings.position_ids",
        // Of models that were pretrained with them, or whose configuration switches them off.
        "embeddings.position_embeddings.weight",
        "encoder.rel_embeddings.weight",
        "encoder.LayerNorm.weight",
        "encoder.LayerNorm.bias",
    ],
    ..BERT
};

/// What is said of DeBERTa v2, v3.
pub(super) const DEBERTA: About = About {
    model_type: "deberta-v2",
    models: "DeBERTa v2, v3",
    special: "scores of contents with relative positions, a convolution beside the first layer",
    gguf: None,
    transformers: false,
    small,
};

/// DeBERTa v2 and v3.
pub(super) fn deberta(file: &ConfigFile) -> Result<EncoderConfig, ModelError> {
    only_encoder(file)?;
    let config = base(file, &NAMES)?;
    let head = file.optional_size("attention_head_size")?;
    if head.is_some_and(|head| head * config.num_heads != config.width) {
        let expected = "hidden_size / num_attention_heads";
        return Err(file.unsupported("attention_head_size", expected));
    }
    let is_biased = file.flag("position_biased_input", true)?;
    let embedding_width = file.optional_size("embedding_size")?;
    let epsilon = file.optional_number("layer_norm_eps")?.unwrap_or(1e-7);
    Ok(EncoderConfig {
        embedding_width: embedding_width.unwrap_or(config.width),
        projection: Projection::BeforeNorm,
        epsilon,
        reads_token_types: config.token_types > 0,
        positions: config.positions.filter(|_| is_biased),
        disentangled: disentangled(file, config.max_tokens)?,
        convolution: convolution(file, config.width)?,
        ..config
    })
}

fn disentangled(file: &ConfigFile, max_tokens: usize) -> Result<Option<Disentangled>, ModelError> {
    let [from_content, from_position] = kinds(file)?;
    let longest = integer(file, "max_relative_positions", -1)?;
    let buckets = integer(file, "position_buckets", -1)?;
    let shares_projections = file.flag("share_att_key", false)?;
    let norm = file.text("norm_rel_ebd")?.unwrap_or("none").to_lowercase();
    let mut norms = norm.split('|').map(str::trim);
    let has_norm = norms.clone().any(|norm| norm == "layer_norm");
    if norms.any(|norm| !matches!(norm, "layer_norm" | "none")) {
        return Err(file.unsupported("norm_rel_ebd", "layer_norm or none"));
    }
    let has_positions = file.flag("relative_attention", false)?;
    let max_distance = usize::try_from(longest).ok().filter(|&longest| longest > 0);
    let max_distance = max_distance.unwrap_or(max_tokens);
    let buckets = usize::try_from(buckets).ok().filter(|&buckets| buckets > 0);
    if let Some(buckets) = buckets.filter(|_| has_positions)
        && (buckets < 4 || max_distance <= buckets / 2 + 1)
    {
        let expected = "4 or more, and less than twice max_relative_positions, or -1";
        return Err(file.unsupported("position_buckets", expected));
    }
    let has_none = !from_content && !from_position;
    Ok((!has_none).then_some(Disentangled {
        from_content,
        from_position,
        shares_projections,
        has_norm,
        has_positions,
        buckets,
        max_distance,
    }))
}

/// Whether contents look at positions (`c2p`), and positions at contents (`p2c`).
fn kinds(file: &ConfigFile) -> Result<[bool; 2], ModelError> {
    let expected = "a list of c2p and p2c";
    let refuse = || file.unsupported("pos_att_type", expected);
    let Some(found) = file.get("pos_att_type") else {
        return Ok([false; 2]);
    };
    let names: Vec<String> = match (found.as_str(), found.as_array()) {
        (Some(text), _) => text
            .split('|')
            .map(|name| name.trim().to_lowercase())
            .collect(),
        (_, Some(list)) => {
            let names = list.iter().map(|name| name.as_str().map(str::to_owned));
            names.collect::<Option<_>>().ok_or_else(refuse)?
        }
        _ => return Err(refuse()),
    };
    match names
        .iter()
        .all(|name| ["c2p", "p2c", ""].contains(&&name[..]))
    {
        true => Ok(["c2p", "p2c"].map(|kind| names.iter().any(|name| name == kind))),
        false => Err(refuse()),
    }
}

fn convolution(file: &ConfigFile, width: usize) -> Result<Option<ConvolutionConfig>, ModelError> {
    let kernel = integer(file, "conv_kernel_size", 0)?;
    let groups = file.optional_size("conv_groups")?.unwrap_or(1);
    let activation = match file.text("conv_act")? {
        None => Activation::Tanh,
        Some(_) => activation(file, "conv_act")?,
    };
    let Some(kernel) = usize::try_from(kernel).ok().filter(|&kernel| kernel > 0) else {
        return Ok(None);
    };
    if kernel % 2 == 0 {
        let expected = "0 or an odd number: an even one gives one token less";
        return Err(file.unsupported("conv_kernel_size", expected));
    }
    if !width.is_multiple_of(groups) {
        return Err(file.unsupported("conv_groups", "a divisor of hidden_size"));
    }
    Ok(Some(ConvolutionConfig {
        kernel,
        groups,
        activation,
    }))
}
