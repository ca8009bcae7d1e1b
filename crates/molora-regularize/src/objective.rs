//! The weighted list of auxiliary terms of a recipe.

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Need, Reduction, SiteView, Term};

/// One weighted term.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TermConfig {
    /// What is computed.
    pub term: Term,
    /// Its weight in the total loss.
    pub weight: f64,
    /// How it is put together within a site.
    #[serde(default)]
    pub within_site: Reduction,
    /// How it is put together over sites.
    #[serde(default)]
    pub over_sites: Reduction,
}

/// The auxiliary terms that are added to the task loss.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ObjectiveConfig {
    /// The terms in the order in which they are reported.
    pub terms: Vec<TermConfig>,
}

/// The values of all terms in one step; none by default.
#[derive(Debug, Clone, Default)]
pub struct LossBreakdown {
    /// Weighted sum, `[1]`; `None` if there are no terms.
    pub total: Option<Tensor<1>>,
    /// Unweighted value of each term, `[1]`, detached.
    pub terms: Vec<(&'static str, Tensor<1>)>,
}

/// What sites have to show for a term.
#[derive(Debug, Clone)]
pub struct Shown {
    /// How many have anything.
    pub sites: usize,
    /// Their values put together, `[1]`, detached; for a term about the model as a whole.
    pub whole: Option<Tensor<1>>,
}

impl ObjectiveConfig {
    /// The same terms for given tasks.
    ///
    /// # Errors
    /// For each term that names a task that is not among them, its number, field and the name.
    pub fn for_tasks(&self, tasks: &[String]) -> Result<Self, Vec<String>> {
        let (mut terms, mut problems) = (Vec::new(), Vec::new());
        for (index, config) in self.terms.iter().enumerate() {
            match config.term.for_tasks(tasks) {
                Ok(term) => terms.push(TermConfig {
                    term,
                    ..config.clone()
                }),
                Err(problem) => problems.push(format!("{index}.{problem}")),
            }
        }
        match problems.is_empty() {
            true => Ok(Self { terms }),
            false => Err(problems),
        }
    }

    /// Whether any term reads routing decisions, and not weights alone.
    pub fn reads_routes(&self) -> bool {
        self.terms.iter().any(|config| config.term.reads_routes())
    }

    /// Whether any term reads the low-rank codes of a forward pass.
    pub fn reads_codes(&self) -> bool {
        self.terms
            .iter()
            .any(|config| config.term.needs_any(Need::Codes))
    }

    /// Evaluates every term over all sites.
    pub fn evaluate(&self, sites: &[SiteView<'_>]) -> LossBreakdown {
        let mut breakdown = LossBreakdown {
            total: None,
            terms: Vec::new(),
        };
        for config in &self.terms {
            let Some(value) = config.over(sites) else {
                continue;
            };
            let value = config.term.of_model(value);
            breakdown
                .terms
                .push((config.term.name(), value.clone().detach()));
            let weighted = value.mul_scalar(config.weight);
            breakdown.total = Some(match breakdown.total.take() {
                Some(total) => total + weighted,
                None => weighted,
            });
        }
        breakdown
    }
}

impl ObjectiveConfig {
    /// The terms that are added on a step, which is counted from 0 in its stage.
    pub fn due(&self, step: usize) -> Self {
        let terms = self.terms.iter();
        Self {
            terms: terms
                .filter(|config| step.is_multiple_of(config.term.every()))
                .cloned()
                .collect(),
        }
    }

    /// The terms that read routing decisions, or those that read weights alone.
    pub fn part(&self, reads_routes: bool) -> Self {
        let terms = self.terms.iter();
        Self {
            terms: terms
                .filter(|config| config.term.reads_routes() == reads_routes)
                .cloned()
                .collect(),
        }
    }

    /// The terms about the decisions of a batch as a whole, or the others. Those about experts' outputs are no such
    /// terms: they need codes.
    pub fn of_decisions(&self, is_about_them: bool) -> Self {
        let is_about = |term: &Term| term.reads_routes() && !term.needs_any(Need::Codes);
        let terms = self.terms.iter();
        Self {
            terms: terms
                .filter(|config| is_about(&config.term) == is_about_them)
                .cloned()
                .collect(),
        }
    }

    /// What all sites together have to show for each term.
    pub fn shown(&self, sites: &[SiteView<'_>]) -> Vec<Shown> {
        let shown = |config: &TermConfig| {
            let shows = |site: &&SiteView<'_>| config.term.at(site, config.within_site).is_some();
            let whole = config.term.is_of_model().then(|| config.over(sites));
            Shown {
                sites: sites.iter().filter(shows).count(),
                whole: whole.flatten().map(Tensor::detach),
            }
        };
        self.terms.iter().map(shown).collect()
    }

    /// The share of some sites in the weighted sum that [`evaluate`](Self::evaluate) gives for all,
    /// which have `shown` this for each term; `None` if these have nothing.
    ///
    /// Of a term about the model as a whole it has the sites' share of the gradient, and the whole value.
    pub fn share(&self, sites: &[SiteView<'_>], shown: &[Shown]) -> Option<Tensor<1>> {
        let mut total: Option<Tensor<1>> = None;
        for (config, shown) in self.terms.iter().zip(shown) {
            let sum = TermConfig {
                over_sites: Reduction::Sum,
                ..config.clone()
            };
            let Some(value) = sum.over(sites) else {
                continue;
            };
            let value = match config.over_sites {
                Reduction::Mean => value.div_scalar(shown.sites as f64),
                Reduction::Sum => value,
            };
            let value = match &shown.whole {
                Some(whole) => {
                    // The whole, with the gradient of these sites' part of it.
                    let part = value.clone() - value.detach();
                    config
                        .term
                        .of_model(part + Tensor::from_inner(whole.clone()))
                }
                None => value,
            };
            let value = value.mul_scalar(config.weight);
            total = Some(match total {
                Some(total) => total + value,
                None => value,
            });
        }
        total
    }
}

impl TermConfig {
    fn over(&self, sites: &[SiteView<'_>]) -> Option<Tensor<1>> {
        let values: Vec<_> = sites
            .iter()
            .filter_map(|site| self.term.at(site, self.within_site))
            .collect();
        if values.is_empty() {
            return None;
        }
        let values = Tensor::cat(values, 0);
        Some(match self.over_sites {
            Reduction::Mean => values.mean(),
            Reduction::Sum => values.sum(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BalanceLiteral, BalanceMass, InfoNce, KeyMatching, LoadBalance, Mixture, Orthogonality,
        orthogonality,
    };
    use molora_adapters::{BankConfig, SiteDims};
    use molora_kernels::random::Seed;
    use molora_routing::{RouteInput, RouterConfig};
    use molora_testkit::{FORWARD, assert_close};

    fn term(term: impl Into<Term>, over_sites: Reduction) -> TermConfig {
        TermConfig {
            term: term.into(),
            weight: 0.5,
            within_site: Reduction::Mean,
            over_sites,
        }
    }

    #[test]
    fn terms_are_weighted_and_put_together_over_sites() {
        let device = molora_testkit::device();
        let dims = SiteDims {
            d_input: 6,
            d_output: 5,
        };
        let init = |seed| {
            BankConfig {
                rank: 2,
                ..Default::default()
            }
            .init(dims, seed, &device)
        };
        let banks = [init(Seed::new(1)), init(Seed::new(2))];
        let sites: Vec<_> = banks.iter().map(SiteView::of_weights).collect();
        let config = ObjectiveConfig {
            terms: vec![
                term(Orthogonality, Reduction::Sum),
                term(Orthogonality, Reduction::Mean),
                term(KeyMatching, Reduction::Mean),
            ],
        };
        let found = config.evaluate(&sites);
        let sum =
            orthogonality(&banks[0], Reduction::Mean) + orthogonality(&banks[1], Reduction::Mean);
        assert_eq!(
            found.terms.len(),
            2,
            "without keys there is nothing to match"
        );
        assert_close(
            found.terms[0].1.clone(),
            sum.clone(),
            FORWARD,
            "sum over sites",
        );
        assert_close(
            found.total.expect("two terms"),
            sum.mul_scalar(0.75),
            FORWARD,
            "total",
        );
    }

    /// Two sites, one of them of one expert: only the other one counts.
    #[test]
    fn sites_of_one_expert_have_nothing_to_balance() {
        let device = molora_testkit::device();
        let dims = SiteDims {
            d_input: 8,
            d_output: 8,
        };
        let bank = BankConfig::default().init(dims, Seed::new(1), &device);
        let routed = [1, 4].map(|experts| {
            let router = RouterConfig::default().init(8, experts, 0, Seed::new(2), &device);
            router.route(&RouteInput {
                features: Tensor::zeros([1, 3, 8], &device),
                mask: Tensor::ones([1, 3], &device),
                tasks: None,
                columns: None,
            })
        });
        let sites = routed.each_ref().map(|routed| SiteView {
            routed: Some(routed),
            ..SiteView::of_weights(&bank)
        });
        let value = |name: Term, sites: &[SiteView<'_>]| {
            let terms = vec![term(name, Reduction::Sum)];
            ObjectiveConfig { terms }.evaluate(sites).total
        };
        // Dense and uniform: 1 by Switch, K / E = 1 per decision by the others.
        for name in [
            LoadBalance.into(),
            BalanceMass.into(),
            Term::from(BalanceLiteral),
        ] {
            let found = value(name.clone(), &sites).expect("one site of four experts");
            assert_close(found, [0.5], FORWARD, name.name());
            assert!(
                value(name.clone(), &sites[..1]).is_none(),
                "{}",
                name.name()
            );
        }
    }

    #[test]
    fn missing_needs_are_named() {
        let (nothing, routed) = (
            Mixture::default(),
            Mixture {
                has_router: true,
                ..Mixture::default()
            },
        );
        for term in [
            LoadBalance.into(),
            BalanceMass.into(),
            Term::from(BalanceLiteral),
        ] {
            assert_eq!(term.lacks(nothing), Some("a router"));
            assert_eq!(term.lacks(routed), None);
        }
        assert!(Term::from(KeyMatching).lacks(routed).is_some());
        let outputs = Term::from(InfoNce::default());
        assert_eq!(
            outputs.lacks(routed),
            Some("a router of its own at every site that decides by token")
        );
        assert_eq!(Term::from(Orthogonality).lacks(nothing), None);
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        let text = r#"{"term": "orthogonality", "wieght": 1}"#;
        let error = serde_json::from_str::<TermConfig>(text)
            .expect_err("misspelt")
            .to_string();
        assert!(
            error.contains("wieght") && error.contains("weight"),
            "{error}"
        );
    }
}
