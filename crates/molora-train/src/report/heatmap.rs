//! How much weight each expert got from each task, as shaded tables.

use std::fmt::Write as _;

use super::html::escape;
use super::idle::IDLE_SHARE;
use super::schema::{RoutingReport, SiteRouting};

/// One group of tables per layer, with a legend and a count of idle experts first.
pub(super) fn routing_section(report: &RoutingReport) -> String {
    let mut html = String::new();
    let idle = report
        .sites
        .iter()
        .filter(|site| !site.idle_experts(IDLE_SHARE).is_empty())
        .count();
    let _ = write!(
        html,
        "<p>Mean weight in per cent that the real tokens of a task (row) give to each expert \
         (column e0, e1, ...), on the evaluation split.</p>\
         <p class=\"legend\">0 % <span class=\"ramp\"></span> 100 %</p>\
         <p>{}</p>",
        idle_note(idle, report)
    );
    for layer in report
        .sites
        .chunk_by(|left, right| left.layer == right.layer)
    {
        let names = short_names(layer);
        let maps = layer
            .iter()
            .zip(&names)
            .map(|(site, name)| heatmap(site, name));
        let maps = maps.collect::<String>();
        let _ = write!(
            html,
            "<h3>Layer {}</h3><div class=\"maps\">{maps}</div>",
            layer[0].layer
        );
    }
    html
}

fn idle_note(idle: usize, report: &RoutingReport) -> String {
    let note = match idle {
        0 => "Every expert got at least 1 % from some task at every site.".to_owned(),
        _ => {
            let sites = report.sites.len();
            let experts: usize = report.sites.iter().map(SiteRouting::num_experts).sum();
            let idle_experts = report
                .sites
                .iter()
                .map(|s| s.idle_experts(IDLE_SHARE).len());
            let idle_experts: usize = idle_experts.sum();
            format!(
                "<span class=\"warn\">{idle} of {sites} sites</span> have an expert that got less \
                 than 1 % from every task: {idle_experts} of {experts} experts in all."
            )
        }
    };
    match report.has_general {
        true => note + " The general expert of each site is not routed and not shown.",
        false => note,
    }
}

/// One site: a row per task, a column per expert, and a note on idle experts.
fn heatmap(site: &SiteRouting, name: &str) -> String {
    let mut html = format!(
        "<figure><figcaption title=\"{}\">{}</figcaption><table class=\"map\"><tr><th></th>",
        escape(&site.site),
        escape(name)
    );
    let experts = site.num_experts();
    (0..experts).for_each(|expert| html.push_str(&format!("<th>e{expert}</th>")));
    html.push_str("</tr>");
    for (task, weights) in &site.weights {
        let cells = weights
            .iter()
            .map(|&weight| cell(weight))
            .collect::<String>();
        let _ = write!(html, "<tr><th>{}</th>{cells}</tr>", escape(task));
    }
    html.push_str("</table>");
    let idle = site.idle_experts(IDLE_SHARE);
    if !idle.is_empty() {
        let list = idle
            .iter()
            .map(|expert| format!("e{expert}"))
            .collect::<Vec<_>>()
            .join(", ");
        let _ = write!(
            html,
            "<p class=\"warn\">{list}: under 1 % from every task</p>"
        );
    }
    html + "</figure>"
}

fn cell(weight: f64) -> String {
    let shade = weight.clamp(0.0, 1.0);
    let number = match weight * 100.0 {
        percent if percent > 0.0 && percent < 1.0 => "&lt;1".to_owned(),
        percent => format!("{percent:.0}"),
    };
    format!("<td style=\"--w:{shade:.3}\" title=\"{weight:.4}\">{number}</td>")
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
    use crate::report::sample;

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
        let html = heatmap(&site("a", &[&[0.995, 0.005, 0.0], &[0.4, 0.6, 0.0]]), "a");
        assert!(html.contains("e2: under 1 % from every task"), "{html}");
        assert!(
            html.contains("--w:0.995") && html.contains("&lt;1</td>"),
            "{html}"
        );
        let html = heatmap(&site("a", &[&[0.5, 0.5]]), "a");
        assert!(!html.contains("warn"), "{html}");
    }

    #[test]
    fn the_section_has_one_table_per_site_and_counts_idle_ones() {
        let html = routing_section(&sample::routing(2, 3));
        assert_eq!(html.matches("<figure>").count(), 8);
        assert!(
            html.contains("<h3>Layer 1</h3>") && html.contains("self.query"),
            "{html}"
        );
        let marked = html.matches("under 1 % from every task").count();
        assert!(
            marked > 0 && html.contains(&format!("{marked} of 8 sites")),
            "{marked}"
        );
    }
}
