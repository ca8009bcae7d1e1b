//! How much weight each expert got from each task, as values for shaded tables.

use minijinja::{Value, context};

use super::idle::IDLE_SHARE;
use super::schema::{RoutingReport, SiteRouting};

/// Models with more layers show the first and the last, and fold the others.
const UNFOLDED: usize = 6;

/// One group of tables per layer, and a count of idle experts.
pub(super) fn routing_values(report: &RoutingReport) -> Value {
    let idle = |site: &SiteRouting| site.idle_experts(IDLE_SHARE).len();
    let same_layer = |left: &SiteRouting, right: &SiteRouting| left.layer == right.layer;
    let layers: Vec<&[SiteRouting]> = report.sites.chunk_by(same_layer).collect();
    let layer = |(number, sites): (usize, &&[SiteRouting])| {
        let names: Vec<&str> = sites.iter().map(|site| &site.site[..]).collect();
        let names = short_names(&names, sites[0].layer);
        let maps = sites.iter().zip(&names).map(|(site, name)| map(site, name));
        context! {
            number => sites[0].layer,
            maps => maps.collect::<Vec<_>>(),
            experts => sites.iter().map(SiteRouting::num_experts).max(),
            shares => shares(sites),
            is_open => layers.len() <= UNFOLDED || number == 0 || number + 1 == layers.len(),
        }
    };
    context! {
        sites => report.sites.len(),
        experts => report.sites.iter().map(SiteRouting::num_experts).sum::<usize>(),
        idle_sites => report.sites.iter().filter(|site| idle(site) > 0).count(),
        idle_experts => report.sites.iter().map(idle).sum::<usize>(),
        has_general => report.has_general,
        layers => layers.iter().enumerate().map(layer).collect::<Vec<_>>(),
    }
}

/// Mean share of each expert over a layer's sites and the tasks, in words.
fn shares(sites: &[SiteRouting]) -> String {
    let rows: Vec<&Vec<f64>> = sites
        .iter()
        .flat_map(|site| site.weights.values())
        .collect();
    let experts = sites.iter().map(SiteRouting::num_experts).max();
    let share = |expert: usize| {
        let weights = rows.iter().filter_map(|row| row.get(expert));
        let mean = weights.sum::<f64>() / rows.len().max(1) as f64;
        format!("e{expert} {} %", in_percent(mean))
    };
    let shares: Vec<String> = (0..experts.unwrap_or(0)).map(share).collect();
    shares.join(", ")
}

/// One site: a row per task, a cell per expert, and the idle experts.
fn map(site: &SiteRouting, name: &str) -> Value {
    let row = |(task, weights): (&String, &Vec<f64>)| {
        let cells: Vec<Value> = weights.iter().map(|&weight| cell(weight)).collect();
        context! { task => task, cells => cells }
    };
    let idle = site.idle_experts(IDLE_SHARE);
    let idle: Vec<String> = idle.iter().map(|expert| format!("e{expert}")).collect();
    context! {
        site => &site.site,
        name => name,
        experts => site.num_experts(),
        rows => site.weights.iter().map(row).collect::<Vec<_>>(),
        idle => idle.join(", "),
    }
}

fn cell(weight: f64) -> Value {
    context! {
        shade => format!("{:.3}", weight.clamp(0.0, 1.0)),
        weight => format!("{weight:.4}"),
        text => in_percent(weight),
    }
}

fn in_percent(weight: f64) -> String {
    match weight * 100.0 {
        percent if percent > 0.0 && percent < 1.0 => "<1".to_owned(),
        percent => format!("{percent:.0}"),
    }
}

/// Names of a layer's sites without the dotted parts that all of them begin with; a layer's own
/// router, which ends in the layer's number, is called that.
pub(super) fn short_names(sites: &[&str], layer: usize) -> Vec<String> {
    if let [own] = sites
        && own.ends_with(&format!(".{layer}"))
    {
        return vec!["router of the layer".into()];
    }
    let parts: Vec<Vec<&str>> = sites.iter().map(|site| site.split('.').collect()).collect();
    let shortest = parts.iter().map(Vec::len).min().unwrap_or(0);
    let is_common = |index: &usize| parts.iter().all(|name| name[*index] == parts[0][*index]);
    let common = (0..shortest.saturating_sub(1))
        .take_while(is_common)
        .count();
    parts.iter().map(|name| name[common..].join(".")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Page, render, sample};

    fn site(name: &str, rows: &[&[f64]]) -> SiteRouting {
        let weights = rows.iter().enumerate();
        let weights = weights
            .map(|(task, row)| (format!("t{task}"), row.to_vec()))
            .collect();
        SiteRouting {
            site: name.into(),
            layer: 0,
            weights,
        }
    }

    #[test]
    fn common_beginnings_of_names_are_dropped() {
        let names = |all: &[&str]| short_names(all, 0);
        assert_eq!(names(&["encoder.layer.0"]), ["router of the layer"]);
        assert_eq!(
            names(&["a.0.self.q", "a.0.self.k", "a.0.out"]),
            ["self.q", "self.k", "out"]
        );
        assert_eq!(names(&["a.0.self.q"]), ["q"]);
        assert_eq!(names(&["a.b", "a.b"]), ["b", "b"]);
    }

    #[test]
    fn idle_experts_are_noted_at_their_site() {
        let values = map(&site("a", &[&[0.995, 0.005, 0.0], &[0.4, 0.6, 0.0]]), "a");
        let text = |path: &[&str]| {
            let get = |value: Value, key: &&str| match key.parse::<usize>() {
                Ok(index) => value.get_item_by_index(index).expect("long enough"),
                Err(_) => value.get_attr(key).expect("an object"),
            };
            path.iter().fold(values.clone(), get).to_string()
        };
        assert_eq!(text(&["idle"]), "e2");
        assert_eq!(text(&["rows", "0", "cells", "0", "shade"]), "0.995");
        assert_eq!(text(&["rows", "0", "cells", "1", "text"]), "<1");
        assert_eq!(text(&["rows", "1", "cells", "1", "text"]), "60");
        let values = map(&site("a", &[&[0.5, 0.5]]), "a");
        assert_eq!(values.get_attr("idle").expect("an object").to_string(), "");
    }

    fn page(report: &RoutingReport) -> String {
        let (summary, eval) = (sample::summary(), sample::eval());
        let routing = Some(report);
        render(&Page {
            routing,
            ..Page::new(&summary, &eval)
        })
    }

    #[test]
    fn the_section_has_one_table_per_site_and_counts_idle_ones() {
        let page = page(&sample::routing(2, 3));
        assert_eq!(page.matches("<table class=\"map\">").count(), 8);
        assert!(page.contains("<summary>Layer 1 <span>e0 ") && page.contains("self.query"));
        assert!(page.contains(">&lt;1</td>"), "{page}");
        let marked = page.matches("under 1 % from every task").count();
        assert!(
            marked > 0 && page.contains(&format!("{marked} of 8 sites")),
            "{marked}"
        );
    }

    #[test]
    fn many_layers_are_folded_but_for_the_first_and_the_last() {
        for (layers, open) in [(1, 1), (6, 6), (7, 2), (12, 2)] {
            let page = page(&sample::routing(layers, 3));
            let found = page.matches("<details class=\"layer\" open>").count();
            assert_eq!(found, open, "{layers} layers");
        }
    }

    #[test]
    fn a_layer_is_summed_up_by_its_shares() {
        let sites = [site("a", &[&[0.2, 0.8]]), site("b", &[&[0.6, 0.4]])];
        assert_eq!(shares(&sites), "e0 40 %, e1 60 %");
    }
}
