//! How much weight each expert got from each task, as values for shaded tables.

use minijinja::{Value, context};

use super::idle::IDLE_SHARE;
use super::schema::{RoutingReport, SiteRouting};

/// One group of tables per layer, and a count of idle experts.
pub(super) fn routing_values(report: &RoutingReport) -> Value {
    let idle = |site: &SiteRouting| site.idle_experts(IDLE_SHARE).len();
    let layers = report
        .sites
        .chunk_by(|left, right| left.layer == right.layer);
    let layer = |sites: &[SiteRouting]| {
        let names = short_names(sites);
        let maps = sites.iter().zip(&names).map(|(site, name)| map(site, name));
        context! { number => sites[0].layer, maps => maps.collect::<Vec<_>>() }
    };
    context! {
        sites => report.sites.len(),
        experts => report.sites.iter().map(SiteRouting::num_experts).sum::<usize>(),
        idle_sites => report.sites.iter().filter(|site| idle(site) > 0).count(),
        idle_experts => report.sites.iter().map(idle).sum::<usize>(),
        has_general => report.has_general,
        layers => layers.map(layer).collect::<Vec<_>>(),
    }
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
    let text = match weight * 100.0 {
        percent if percent > 0.0 && percent < 1.0 => "<1".to_owned(),
        percent => format!("{percent:.0}"),
    };
    context! {
        shade => format!("{:.3}", weight.clamp(0.0, 1.0)),
        weight => format!("{weight:.4}"),
        text => text,
    }
}

/// Names of a layer's sites without the dotted parts that all of them begin with; a layer's own
/// router, which ends in the layer's number, is called that.
fn short_names(layer: &[SiteRouting]) -> Vec<String> {
    if let [own] = layer
        && own.site.ends_with(&format!(".{}", own.layer))
    {
        return vec!["router of the layer".into()];
    }
    let parts: Vec<Vec<&str>> = layer
        .iter()
        .map(|site| site.site.split('.').collect())
        .collect();
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
    use crate::report::{render, sample};

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
        let names = |all: &[&str]| short_names(&all.map_sites());
        assert_eq!(names(&["encoder.layer.0"]), ["router of the layer"]);
        assert_eq!(
            names(&["a.0.self.q", "a.0.self.k", "a.0.out"]),
            ["self.q", "self.k", "out"]
        );
        assert_eq!(names(&["a.0.self.q"]), ["q"]);
        assert_eq!(names(&["a.b", "a.b"]), ["b", "b"]);
    }

    trait MapSites {
        fn map_sites(&self) -> Vec<SiteRouting>;
    }

    impl MapSites for [&str] {
        fn map_sites(&self) -> Vec<SiteRouting> {
            self.iter().map(|name| site(name, &[])).collect()
        }
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

    #[test]
    fn the_section_has_one_table_per_site_and_counts_idle_ones() {
        let report = sample::routing(2, 3);
        let page = render(&sample::summary(), &sample::eval(), Some(&report), &[]);
        assert_eq!(page.matches("<table class=\"map\">").count(), 8);
        assert!(page.contains("<h3>Layer 1</h3>") && page.contains("self.query"));
        assert!(page.contains(">&lt;1</td>"), "{page}");
        let marked = page.matches("under 1 % from every task").count();
        assert!(
            marked > 0 && page.contains(&format!("{marked} of 8 sites")),
            "{marked}"
        );
    }
}
