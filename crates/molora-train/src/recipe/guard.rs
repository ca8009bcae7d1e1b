//! Rules that watch the routers while a mixture trains, and how they react.

use molora_models::{AdapterSpec, Composition, RouterScope};
use molora_regularize::ObjectiveConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Terms that a guard can give more weight: those that spread the load over experts.
const BALANCES: [&str; 7] = [
    "balance_literal",
    "balance_mass",
    "balance_weights",
    "load_balance",
    "mass_variation",
    "threshold_balance",
    "typed_balance",
];

/// What is watched while a mixture trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// Routers are looked at after every so many steps of a stage.
    pub every: usize,
    /// What must not happen, and what is done if it does; one after the other.
    pub rules: Vec<GuardRule>,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            every: 50,
            rules: Vec::new(),
        }
    }
}

/// A limit of something that is watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuardRule {
    /// What is watched.
    pub watch: Watched,
    /// The rule is broken by values below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// The rule is broken by values above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// What is done then.
    pub action: GuardAction,
}

/// What a guard watches, of one batch of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Watched {
    /// Mean entropy of a router's decisions, divided by `ln E`: 0 where it is sure of one expert, 1 where
    /// all are alike to it.
    Entropy,
    /// The share of an expert in the weight that its router gives, `1 / E` where all are alike.
    LoadShare,
    /// Cosine of the weight changes of two experts of a site, from -1 to 1.
    ExpertSimilarity,
    /// Norm of the routers' gradient divided by that of all that trains, from 0 to 1.
    RouterGradientShare,
}

impl Watched {
    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Entropy => "entropy",
            Self::LoadShare => "load_share",
            Self::ExpertSimilarity => "expert_similarity",
            Self::RouterGradientShare => "router_gradient_share",
        }
    }
}

/// What a guard does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GuardAction {
    /// Says so.
    Warn,
    /// Stops the run, with a checkpoint.
    Stop,
    /// Multiplies the weights of the objective's balance terms, until the end of the stage.
    RaiseBalance {
        /// By this, each time.
        factor: f64,
        /// They are never more than this times those of the recipe.
        most: f64,
    },
    /// Puts copies of the busiest expert of its site in the place of those that break the rule.
    RestartDead,
}

impl GuardRule {
    /// Whether a value breaks the rule.
    pub fn is_broken_by(&self, value: f64) -> bool {
        self.below.is_some_and(|limit| value < limit)
            || self.above.is_some_and(|limit| value > limit)
    }

    fn problems(&self, adapter: &AdapterSpec, objectives: &[&ObjectiveConfig]) -> Vec<String> {
        let mut problems = Vec::new();
        match (self.below, self.above) {
            (Some(limit), None) | (None, Some(limit)) if limit.is_finite() => {}
            _ => problems.push("has to have a finite below or above, and not both".to_owned()),
        }
        match self.action {
            GuardAction::RaiseBalance { factor, most } => {
                if !(factor.is_finite() && factor > 1.0 && most.is_finite() && most >= factor) {
                    problems.push(format!(
                        "action.raise_balance has factor {factor} and most {most}, expected a factor above 1 \
                         and at least as much as most"
                    ));
                }
                let balances = |objective: &&&ObjectiveConfig| {
                    let mut terms = objective.terms.iter();
                    terms.any(|config| balances(config.term.name()) && config.weight > 0.0)
                };
                if !objectives.iter().any(|objective| balances(&objective)) {
                    problems.push(format!(
                        "action is raise_balance, but no objective has a balance term with a weight above 0: {}",
                        BALANCES.join(", ")
                    ));
                }
            }
            GuardAction::RestartDead => problems.extend(self.restart_problem(adapter)),
            GuardAction::Warn | GuardAction::Stop => {}
        }
        problems
    }

    /// An expert can be put in the place of another where it is a thing of its own at a site with its own
    /// router.
    fn restart_problem(&self, adapter: &AdapterSpec) -> Option<String> {
        if self.watch != Watched::LoadShare || self.below.is_none() {
            return Some(
                "action is restart_dead, which needs watch = \"load_share\" and below".into(),
            );
        }
        let is_own = adapter.router_scope == RouterScope::Site
            && adapter.composition == Composition::Site
            && adapter.bank.choices() == adapter.bank.num_experts;
        let is_plain = adapter.general.is_none()
            && adapter.task_groups().is_none()
            && adapter.bank.costs().is_none()
            && !adapter.bank.start.reads_weight();
        let lacks = match () {
            () if adapter.has_expert_per_task() => "experts that belong to no task",
            () if !is_own => "a router of its own at every site",
            () if !is_plain => "experts that are all alike in kind",
            () => return None,
        };
        Some(format!("action is restart_dead, which needs {lacks}"))
    }
}

/// Whether a term of this name spreads the load over experts.
pub(crate) fn balances(term: &str) -> bool {
    BALANCES.contains(&term)
}

impl GuardConfig {
    /// Whether routers are looked at after a step of a stage, counted from 1.
    pub fn is_due(&self, step: usize) -> bool {
        !self.rules.is_empty() && step.is_multiple_of(self.every.max(1))
    }

    /// What is out of range, or cannot be for this mixture with these objectives, each with its field.
    pub(super) fn problems(
        &self,
        adapter: &AdapterSpec,
        objectives: &[&ObjectiveConfig],
    ) -> Vec<String> {
        let mut problems = Vec::new();
        if self.every == 0 {
            problems.push("guard.every is 0, expected at least 1".to_owned());
        }
        if !self.rules.is_empty() && adapter.router.is_none() {
            problems.push("guard.rules watch routers, but there is no adapter.router".into());
            return problems;
        }
        for (index, rule) in self.rules.iter().enumerate() {
            let own = rule.problems(adapter, objectives).into_iter();
            problems.extend(own.map(|problem| format!("guard.rules.{index}: {problem}")));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Recipe, find};

    fn problem(name: &str, rule: &str) -> String {
        let mut recipe = find(name).expect("listed");
        let rule = format!("[[rules]]\n{rule}");
        recipe.guard = toml::from_str(&rule).expect("a guard");
        recipe.check().expect_err(name).to_string()
    }

    #[test]
    fn rules_that_cannot_be_are_refused_by_name() {
        const DEAD: &str = "watch = \"load_share\"\nbelow = 0.01\naction = \"restart_dead\"";
        const RAISE: &str = "watch = \"entropy\"\nbelow = 0.1\n\
                             action = { raise_balance = { factor = 2.0, most = 8.0 } }";
        for (name, rule, expected) in [
            ("lora", DEAD, "there is no adapter.router"),
            ("mixlora", DEAD, "needs a router of its own at every site"),
            ("moa", DEAD, "needs experts that belong to no task"),
            ("goat", DEAD, "needs experts that are all alike in kind"),
            ("hydralora", RAISE, "no objective has a balance term"),
            (
                "mole-topk",
                "watch = \"entropy\"\naction = \"warn\"",
                "guard.rules.0: has to have a finite below or above",
            ),
            (
                "mole-topk",
                "watch = \"entropy\"\nbelow = 0.1\naction = \"restart_dead\"",
                "needs watch = \"load_share\"",
            ),
            (
                "mole-topk",
                "watch = \"entropy\"\nbelow = 0.1\naction = { raise_balance = { factor = 1.0, most = 8.0 } }",
                "factor 1 and most 8",
            ),
        ] {
            let found = problem(name, rule);
            assert!(found.contains(expected), "{name}: {found}");
        }
    }

    #[test]
    fn a_guard_is_read_and_written() {
        let mut recipe = find("mole-topk").expect("listed");
        assert!(!recipe.to_toml().contains("guard"));
        recipe.guard.rules = vec![GuardRule {
            watch: Watched::LoadShare,
            below: Some(0.01),
            above: None,
            action: GuardAction::RestartDead,
        }];
        let text = recipe.to_toml();
        assert_eq!(
            Recipe::from_toml(&text, "mine.toml").expect("its own"),
            recipe
        );
        recipe.check().expect("within limits");
    }
}
