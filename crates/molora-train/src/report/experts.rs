//! What the experts of a run do, as shaded tables and rows of tokens.

use minijinja::{Value, context};

use super::answers::cut;
use super::details::{ExpertReport, ExpertSimilarity, SentenceRouting, TokenWeights};
use super::palette::{COLORS, color};
use super::routing::short_names;

/// Longer tokens are cut.
const TOKEN: usize = 40;

/// Similarities by layer, and sentences; nothing where there is neither.
pub(super) fn expert_values(report: &ExpertReport) -> Option<Value> {
    let same_layer = |left: &ExpertSimilarity, right: &ExpertSimilarity| left.layer == right.layer;
    let layers: Vec<Value> = report.similarity.chunk_by(same_layer).map(layer).collect();
    let sentences: Vec<Value> = report.sentences.iter().filter_map(sentence).collect();
    let experts = report.sentences.iter().flat_map(|sentence| &sentence.sites);
    let experts = experts.flat_map(|site| &site.weights).map(Vec::len).max();
    let cells = report.similarity.iter().map(|site| site.cosine.len()).max();
    let is_empty = layers.is_empty() && sentences.is_empty();
    (!is_empty).then(|| {
        context! {
            layers => layers,
            sentences => sentences,
            // Names of experts take less room than those of tasks.
            cells => cells.unwrap_or(0).saturating_sub(1).max(2),
            keys => keys(experts.unwrap_or(0)),
        }
    })
}

/// The experts of each color.
fn keys(experts: usize) -> Vec<[String; 2]> {
    let key = |number: usize| {
        let same = (number..experts).step_by(COLORS);
        let names: Vec<String> = same.map(|expert| format!("e{expert}")).collect();
        [color(number).class.to_owned(), names.join(", ")]
    };
    (0..experts.min(COLORS)).map(key).collect()
}

/// One layer: the mean over its sites, if these have as many experts each, and the sites.
fn layer(sites: &[ExpertSimilarity]) -> Value {
    let names: Vec<&str> = sites.iter().map(|site| &site.site[..]).collect();
    let names = short_names(&names, sites[0].layer);
    let tables: Vec<&Vec<Vec<f64>>> = sites.iter().map(|site| &site.cosine).collect();
    let site = |(site, name): (&ExpertSimilarity, &String)| {
        context! { site => &site.site, name => name, rows => rows(&site.cosine) }
    };
    context! {
        number => sites[0].layer,
        mean => mean(&tables).map(|mean| rows(&mean)),
        sites => sites.iter().zip(&names).map(site).collect::<Vec<_>>(),
    }
}

/// The mean of tables of the same form; `None` where they have several.
fn mean(tables: &[&Vec<Vec<f64>>]) -> Option<Vec<Vec<f64>>> {
    let form = |table: &[Vec<f64>]| table.iter().map(Vec::len).collect::<Vec<_>>();
    let first = tables.first()?;
    if tables.iter().any(|table| form(table) != form(first)) {
        return None;
    }
    let mut sums = (*first).clone();
    for table in &tables[1..] {
        let pairs = sums.iter_mut().flatten().zip(table.iter().flatten());
        pairs.for_each(|(sum, value)| *sum += value);
    }
    let count = tables.len() as f64;
    sums.iter_mut().flatten().for_each(|sum| *sum /= count);
    Some(sums)
}

/// Cells in per cent: shade, class of the sign, text.
fn rows(cosine: &[Vec<f64>]) -> Vec<Vec<[String; 3]>> {
    let cell = |value: &f64| {
        let sign = if *value < 0.0 { "minus" } else { "plus" };
        // Adding zero turns a negative zero into a positive one.
        let percent = (value * 100.0).round() + 0.0;
        [shade(value.abs()), sign.to_owned(), format!("{percent}")]
    };
    let row = |values: &Vec<f64>| values.iter().map(cell).collect();
    cosine.iter().map(row).collect()
}

fn shade(value: f64) -> String {
    format!("{:.2}", value.clamp(0.0, 1.0))
}

/// A sentence by layer, the first and the last of them unfolded.
fn sentence(sentence: &SentenceRouting) -> Option<Value> {
    let same_layer = |left: &TokenWeights, right: &TokenWeights| left.layer == right.layer;
    let layers: Vec<&[TokenWeights]> = sentence.sites.chunk_by(same_layer).collect();
    let last = layers.len().checked_sub(1)?;
    let tokens: Vec<String> = sentence.tokens.iter().map(|token| shown(token)).collect();
    let layer = |(number, sites): (usize, &&[TokenWeights])| {
        context! {
            number => sites[0].layer,
            sites => sites.len(),
            is_open => number == 0 || number == last,
            tokens => marked(&tokens, sites),
        }
    };
    Some(context! {
        task => &sentence.task,
        record => sentence.record,
        layers => layers.iter().enumerate().map(layer).collect::<Vec<_>>(),
    })
}

/// A token on one line.
fn shown(token: &str) -> String {
    let visible = |character: char| match character {
        '\n' => "\\n".to_owned(),
        '\t' => "\\t".to_owned(),
        other => other.to_string(),
    };
    cut(&token.chars().map(visible).collect::<String>(), TOKEN)
}

/// Class and number of the expert that weighs most for each token, its share of the weight as a
/// shade, and the token.
fn marked(tokens: &[String], sites: &[TokenWeights]) -> Vec<[String; 4]> {
    let mark = |(place, token): (usize, &String)| {
        let rows: Vec<&Vec<f64>> = sites.iter().filter_map(|s| s.weights.get(place)).collect();
        let experts = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let weight = |expert: usize| -> f64 { rows.iter().filter_map(|row| row.get(expert)).sum() };
        let sum: f64 = (0..experts).map(weight).sum();
        let most = (0..experts).max_by(|a, b| weight(*a).total_cmp(&weight(*b)).then(b.cmp(a)));
        match most.filter(|_| sum > 0.0) {
            Some(expert) => [
                color(expert).class.to_owned(),
                format!("e{expert}"),
                shade(weight(expert) / sum),
                token.clone(),
            ],
            None => ["", "no expert", "0", token].map(str::to_owned),
        }
    };
    tokens.iter().enumerate().map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn weights(rows: &[&[f64]]) -> TokenWeights {
        TokenWeights {
            site: "layer.0.query".into(),
            layer: 0,
            weights: rows.iter().map(|row| row.to_vec()).collect(),
        }
    }

    #[test]
    fn tokens_show_the_expert_that_weighs_most_over_the_sites() {
        let sites = [
            weights(&[&[0.6, 0.4], &[0.0, 0.0]]),
            weights(&[&[0.1, 0.9], &[0.0, 0.0]]),
        ];
        let tokens = ["a", "b", "c"].map(str::to_owned);
        let found = marked(&tokens, &sites);
        assert_eq!(found[0], ["k1", "e1", "0.65", "a"]);
        assert_eq!(found[1], ["", "no expert", "0", "b"]);
        // A file that has fewer weights than tokens.
        assert_eq!(found[2][1], "no expert");
        assert_eq!(shown("a\nb"), "a\\nb");
    }

    #[test]
    fn a_layer_has_a_mean_if_its_sites_have_as_many_experts() {
        let [two, other] = [vec![vec![1.0, -0.5]; 2], vec![vec![0.0, 0.5]; 2]];
        let found = mean(&[&two, &other]).expect("the same form");
        assert_eq!(found, vec![vec![0.5, 0.0]; 2]);
        assert_eq!(mean(&[&two, &vec![vec![1.0; 3]; 3]]), None);
        let cells = rows(&[vec![-0.254, -0.001]]);
        assert_eq!(cells[0][0], ["0.25", "minus", "-25"]);
        assert_eq!(cells[0][1][2], "0");
    }

    #[test]
    fn colors_come_again_and_say_so() {
        assert_eq!(keys(9)[0], ["k0", "e0, e8"]);
        assert_eq!(keys(2).len(), 2);
    }

    #[test]
    fn nothing_is_nothing() {
        let mut report = sample::experts(2, 3);
        assert!(expert_values(&report).is_some());
        report.similarity.clear();
        report.sentences.clear();
        assert!(expert_values(&report).is_none());
    }
}
