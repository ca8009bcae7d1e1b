//! What a run's experts do: how alike they are, and which tokens of a few records each of them gets.

use burn::module::Module;
use burn::tensor::Tensor;
use molora_models::{Adaptable, Adapter, RouteTrace, TaskModel};

use super::Loaded;
use super::examples::shuffled;
use crate::TrainError;
use crate::data::{Batch, Example, Split, TextTokenizer};
use crate::eval::layer_of;
use crate::guide::Guide;
use crate::model::inputs_for;
use crate::report::{
    ExpertReport, ExpertSimilarity, SCHEMA_VERSION, SentenceRouting, TokenWeights,
};

/// Tasks of which a record's tokens are shown.
const SENTENCES: usize = 4;
/// Longer records are not shown whole.
const TOKENS: usize = 40;

/// How alike the experts of a model are and, with `shows_texts`, how its routers weigh the tokens of one
/// record of each of the first tasks; `None` for a model of one expert a site.
///
/// # Errors
/// A tokenizer that cannot be read.
pub(super) fn experts(
    model: &TaskModel,
    loaded: &Loaded,
    split: Split,
    guide: Option<&Guide>,
    shows_texts: bool,
) -> Result<Option<ExpertReport>, TrainError> {
    let model = model.valid();
    let similarity = similarity(&model);
    let sites = model.backbone.sites();
    let has_choice = |(_, adapter): &(String, &Adapter)| adapter.bank.choices() > 1;
    if similarity.is_empty() && !sites.iter().any(has_choice) {
        return Ok(None);
    }
    let sentences = match shows_texts && !model.backbone.route_names().is_empty() {
        true => sentences(&model, loaded, split, guide)?,
        false => Vec::new(),
    };
    Ok(Some(ExpertReport {
        version: SCHEMA_VERSION,
        similarity,
        sentences,
    }))
}

fn similarity(model: &TaskModel) -> Vec<ExpertSimilarity> {
    let sites = model.backbone.sites();
    let several = sites
        .iter()
        .filter(|(_, adapter)| adapter.bank.num_experts() > 1);
    several
        .map(|(site, adapter)| {
            let cosine = adapter.bank.cosines();
            ExpertSimilarity {
                site: site.clone(),
                layer: layer_of(site),
                cosine: cosine
                    .into_iter()
                    .map(|row| row.into_iter().map(rounded).collect())
                    .collect(),
            }
        })
        .collect()
}

/// Enough digits for a picture.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn sentences(
    model: &TaskModel,
    loaded: &Loaded,
    split: Split,
    guide: Option<&Guide>,
) -> Result<Vec<SentenceRouting>, TrainError> {
    let tokenizer = TextTokenizer::from_folder(&loaded.folder)?;
    let sites = model.backbone.sites();
    let groups = sites.iter().map(|(_, site)| site.bank.groups());
    let names: Vec<_> = model
        .backbone
        .route_names()
        .into_iter()
        .zip(groups)
        .collect();
    let mut found = Vec::new();
    for (number, task) in loaded.tasks.iter().enumerate().take(SENTENCES) {
        let order = shuffled(&task.name, task.split(split).len());
        // One that is shown whole, if there is any.
        let short = |row: &&usize| task.split(split)[**row].ids.len() <= TOKENS;
        let Some(&row) = order.iter().find(short).or(order.first()) else {
            continue;
        };
        let example = &task.split(split)[row];
        let batch = Batch::from_examples(&[example]);
        let device = &loaded.device;
        let guidance = guide.map(|guide| guide.of(&batch.task_ids, &[row], split, device));
        let guidance = guidance.unwrap_or_default();
        let count = loaded.tasks.len();
        let (input, context) = inputs_for(&batch, &[Some(number)], count, None, guidance, device)?;
        let routes = model.forward(&input, &context).routes;
        found.push(sentence(
            &task.name, row, example, &routes, &names, &tokenizer,
        )?);
    }
    Ok(found)
}

fn sentence(
    task: &str,
    row: usize,
    example: &Example,
    routes: &[RouteTrace],
    names: &[(String, usize)],
    tokenizer: &TextTokenizer,
) -> Result<SentenceRouting, TrainError> {
    let shown = example.ids.len().min(TOKENS);
    let tokens = example.ids[..shown].iter().map(|&id| tokenizer.token(id));
    let weights = |route: &RouteTrace| {
        // An expert of the base decides for its own tokens alone.
        if route.rows.is_some() {
            return None;
        }
        let (site, groups) = names[route.site].clone();
        let weights = over_groups(route.routed.weights.clone(), groups);
        let [_, tokens, _] = weights.dims();
        // An encoder-decoder's second half reads the tokens of another text.
        let reads = tokens == 1 || tokens == example.ids.len();
        reads.then(|| TokenWeights {
            layer: layer_of(&site),
            site,
            weights: token_weights(weights, shown),
        })
    };
    Ok(SentenceRouting {
        task: task.to_owned(),
        record: row + 1,
        tokens: tokens.collect::<Result<_, _>>()?,
        sites: routes.iter().filter_map(weights).collect(),
    })
}

/// Weights `[1, T'*G, E]` as means over the groups of a token, `[1, T', E]`.
fn over_groups(weights: Tensor<3>, groups: usize) -> Tensor<3> {
    let [batch, decisions, experts] = weights.dims();
    let by_group = weights.reshape([batch, decisions / groups, groups, experts]);
    by_group.mean_dim(2).squeeze_dim(2)
}

/// The first `shown` rows of weights `[1, T, E]`; one row for all tokens is that of each.
fn token_weights(weights: Tensor<3>, shown: usize) -> Vec<Vec<f64>> {
    let [_, tokens, experts] = weights.dims();
    let values: Vec<f64> = weights.into_data().iter::<f64>().map(rounded).collect();
    let row = |token: usize| {
        let token = if tokens == 1 { 0 } else { token };
        values[token * experts..][..experts].to_vec()
    };
    (0..shown).map(row).collect()
}
