//! What a guard saw of the routers, and what it did.

use serde::{Deserialize, Serialize};

/// What a guard did after a step: one more kind of lines of `steps.jsonl`, behind that of the step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardRecord {
    /// [`SCHEMA_VERSION`](super::SCHEMA_VERSION) of the writer.
    pub version: u32,
    /// The step after which it was done.
    pub step: usize,
    /// Name of the training stage.
    pub stage: String,
    /// What was seen and done.
    pub guard: GuardAct,
}

/// What a guard saw, and what it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardAct {
    /// What is watched.
    pub watch: String,
    /// The site or layer, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The expert, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<usize>,
    /// What it was.
    pub value: f64,
    /// What it should not have been below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// What it should not have been above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// What was done.
    pub done: GuardDone,
}

/// What a guard can have done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GuardDone {
    /// It said so.
    Warned,
    /// It stopped the run.
    Stopped,
    /// It raised the weights of balance terms.
    BalanceRaised {
        /// To this times those of the recipe.
        factor: f64,
    },
    /// It would have raised them, had they not been at the most.
    BalanceAtMost {
        /// This times those of the recipe.
        factor: f64,
    },
    /// It put a copy of another expert in the place of this one.
    ExpertRestarted {
        /// The other one.
        from: usize,
    },
}

impl GuardRecord {
    /// The record as a line for people.
    pub fn text(&self) -> String {
        let act = &self.guard;
        let expert = act.expert.map(|expert| format!(" of e{expert}"));
        let site = act.site.as_ref().map(|site| format!(" at {site}"));
        let (side, limit) = match (act.below, act.above) {
            (Some(limit), _) => ("below", limit),
            (None, limit) => ("above", limit.unwrap_or(f64::NAN)),
        };
        let done = match act.done {
            GuardDone::Warned => String::new(),
            GuardDone::Stopped => ": the run stops".into(),
            GuardDone::BalanceRaised { factor } => {
                format!(": balance terms weigh {factor} times as much as in the recipe")
            }
            GuardDone::BalanceAtMost { factor } => {
                format!(": balance terms stay at the most, {factor} times those of the recipe")
            }
            GuardDone::ExpertRestarted { from } => format!(": restarted as a copy of e{from}"),
        };
        format!(
            "guard, step {}: {}{}{} is {:.4}, {side} {limit}{done}",
            self.step,
            act.watch,
            expert.unwrap_or_default(),
            site.unwrap_or_default(),
            act.value,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::SCHEMA_VERSION;

    #[test]
    fn an_act_is_one_line() {
        let mut record = GuardRecord {
            version: SCHEMA_VERSION,
            step: 40,
            stage: "joint".into(),
            guard: GuardAct {
                watch: "load_share".into(),
                site: Some("encoder.layer.0.query".into()),
                expert: Some(2),
                value: 0.001,
                below: Some(0.01),
                above: None,
                done: GuardDone::ExpertRestarted { from: 0 },
            },
        };
        let expected = "guard, step 40: load_share of e2 at encoder.layer.0.query is 0.0010, below 0.01: \
                        restarted as a copy of e0";
        assert_eq!(record.text(), expected);
        record.guard = GuardAct {
            watch: "router_gradient_share".into(),
            site: None,
            expert: None,
            value: 0.9,
            below: None,
            above: Some(0.5),
            done: GuardDone::Warned,
        };
        let expected = "guard, step 40: router_gradient_share is 0.9000, above 0.5";
        assert_eq!(record.text(), expected);
        let line = serde_json::to_string(&record).expect("plain data");
        assert_eq!(
            serde_json::from_str::<GuardRecord>(&line).expect("its own"),
            record
        );
    }
}
