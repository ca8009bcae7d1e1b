//! Experts that hardly any token reaches, in words.

use super::format::thousands;
use super::schema::RoutingReport;

/// An expert with less than this share of every task's weight at its site is idle.
pub(crate) const IDLE_SHARE: f64 = 0.01;

/// Sites that are named before the rest is counted.
const NAMED: usize = 6;

/// How many routed experts are idle, of how many, and where; nothing without routers.
pub fn idle_summary(report: &RoutingReport) -> Option<String> {
    let total: usize = report.sites.iter().map(|site| site.num_experts()).sum();
    if total == 0 {
        return None;
    }
    let sites: Vec<(&str, Vec<usize>)> = report
        .sites
        .iter()
        .map(|site| (&site.site[..], site.idle_experts(IDLE_SHARE)))
        .filter(|(_, idle)| !idle.is_empty())
        .collect();
    let count: usize = sites.iter().map(|(_, idle)| idle.len()).sum();
    let places = match sites.len() {
        0 => String::new(),
        _ => format!(": {}", places(&sites)),
    };
    let general = match report.has_general {
        true => "; the general expert of each site is not routed and not counted",
        false => "",
    };
    Some(format!(
        "idle experts (less than 1 % of every task's weight): {} of {}{places}{general}",
        thousands(count),
        thousands(total)
    ))
}

fn places(sites: &[(&str, Vec<usize>)]) -> String {
    let place = |(site, idle): &(&str, Vec<usize>)| {
        let experts: Vec<String> = idle.iter().map(|expert| format!("e{expert}")).collect();
        format!("{site} {}", experts.join(" "))
    };
    let named: Vec<String> = sites.iter().take(NAMED).map(place).collect();
    let rest = match sites.len().saturating_sub(NAMED) {
        0 => String::new(),
        rest => format!(" and {rest} more sites (routing.json has all)"),
    };
    named.join(", ") + &rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn idle_experts_are_counted_and_named() {
        let text = idle_summary(&sample::routing(8, 4)).expect("routed sites");
        let start = "idle experts (less than 1 % of every task's weight): 17 of 128: \
                     encoder.layer.0.attention.output.dense e3, encoder.layer.1.";
        assert!(text.starts_with(start), "{text}");
        assert!(
            text.ends_with(" and 11 more sites (routing.json has all)"),
            "{text}"
        );
    }

    #[test]
    fn a_general_expert_is_said_not_to_be_routed() {
        let mut report = sample::routing(1, 4);
        report.sites.truncate(1);
        report.has_general = true;
        let expected = "idle experts (less than 1 % of every task's weight): 0 of 4; the general \
                        expert of each site is not routed and not counted";
        assert_eq!(idle_summary(&report).as_deref(), Some(expected));
        report.sites.clear();
        assert_eq!(idle_summary(&report), None);
    }
}
