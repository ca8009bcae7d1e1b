//! The weighted list of auxiliary terms of a recipe.

use burn::tensor::Tensor;
use molora_adapters::ExpertBank;
use molora_routing::RouterOutput;
use serde::{Deserialize, Serialize};

use crate::{
    Reduction, across_experts, balance_literal, balance_mass, domain_cross_entropy, key_matching,
    l2, load_balance, mass_variation, orthogonality, router_entropy, router_z_loss,
};

/// What a term computes at one site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Term {
    /// See [`orthogonality`].
    Orthogonality,
    /// See [`across_experts`].
    AcrossExperts,
    /// See [`l2`].
    L2,
    /// See [`key_matching`]; needs a router with keys in rank space.
    KeyMatching,
    /// See [`load_balance`]; needs a router and skips sites of one expert, where it is constant.
    LoadBalance,
    /// See [`balance_mass`]; needs a router and skips sites of one expert.
    BalanceMass,
    /// See [`balance_literal`]; needs a router and skips sites of one expert.
    BalanceLiteral,
    /// See [`mass_variation`]; needs a router, skips sites of one expert and has no reduction.
    MassVariation,
    /// See [`router_z_loss`]; needs a router.
    RouterZLoss,
    /// See [`router_entropy`]; needs a router.
    RouterEntropy,
    /// See [`domain_cross_entropy`]; needs a router and, for each sequence, the label of its expert.
    DomainCrossEntropy,
}

impl Term {
    /// The name under which the term is reported.
    pub fn name(self) -> &'static str {
        match self {
            Self::Orthogonality => "orthogonality",
            Self::AcrossExperts => "across_experts",
            Self::L2 => "l2",
            Self::KeyMatching => "key_matching",
            Self::LoadBalance => "load_balance",
            Self::BalanceMass => "balance_mass",
            Self::BalanceLiteral => "balance_literal",
            Self::MassVariation => "mass_variation",
            Self::RouterZLoss => "router_z_loss",
            Self::RouterEntropy => "router_entropy",
            Self::DomainCrossEntropy => "domain_cross_entropy",
        }
    }

    /// What the term needs that a site may lack, in words; `None` if the site has it all.
    pub fn lacks(self, has_router: bool, has_rank_keys: bool) -> Option<&'static str> {
        match self {
            Self::KeyMatching if !has_rank_keys => {
                Some("a router with cosine keys on the low-rank code of a shared A")
            }
            term if term.reads_routes() && !has_router => Some("a router"),
            _ => None,
        }
    }

    /// Whether the term reads routing decisions, and not weights alone.
    fn reads_routes(self) -> bool {
        match self {
            Self::Orthogonality | Self::AcrossExperts | Self::L2 | Self::KeyMatching => false,
            Self::LoadBalance
            | Self::BalanceMass
            | Self::BalanceLiteral
            | Self::MassVariation
            | Self::RouterZLoss
            | Self::RouterEntropy
            | Self::DomainCrossEntropy => true,
        }
    }

    /// The term's value at one site, `[1]`; `None` if the site has nothing to show for it.
    fn at(self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
        // There is nothing to balance at a site of one expert.
        let balanced = || site.routed.filter(|routed| routed.num_experts() > 1);
        match self {
            Self::Orthogonality => Some(orthogonality(site.bank, reduction)),
            Self::AcrossExperts => Some(across_experts(site.bank, reduction)),
            Self::L2 => Some(l2(site.bank, reduction)),
            Self::KeyMatching => site
                .keys
                .clone()
                .map(|keys| key_matching(keys, site.bank, reduction)),
            Self::LoadBalance => balanced().map(|routed| load_balance(routed, reduction)),
            Self::BalanceMass => balanced().map(|routed| balance_mass(routed, reduction)),
            Self::BalanceLiteral => balanced().map(|routed| balance_literal(routed, reduction)),
            Self::MassVariation => balanced().map(mass_variation),
            Self::RouterEntropy => site.routed.map(|routed| router_entropy(routed, reduction)),
            Self::RouterZLoss => site.routed.map(|routed| router_z_loss(routed, reduction)),
            Self::DomainCrossEntropy => {
                let labels = site.labels.clone();
                let pair = site.routed.zip(labels);
                pair.map(|(routed, labels)| domain_cross_entropy(routed, labels, reduction))
            }
        }
    }
}

/// One weighted term.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectiveConfig {
    /// The terms in the order in which they are reported.
    pub terms: Vec<TermConfig>,
}

/// What one site lends to the objective.
#[derive(Debug)]
pub struct SiteView<'a> {
    /// The site's experts.
    pub bank: &'a ExpertBank,
    /// The router's keys `[E, R]`, if it has keys in rank space.
    pub keys: Option<Tensor<2>>,
    /// The decisions of this batch, if the site has a router.
    pub routed: Option<&'a RouterOutput>,
    /// The expert that each sequence belongs to as one-hot rows `[B, E]`, if that is known.
    pub labels: Option<Tensor<2>>,
}

/// The values of all terms in one step.
#[derive(Debug, Clone)]
pub struct LossBreakdown {
    /// Weighted sum, `[1]`; `None` if there are no terms.
    pub total: Option<Tensor<1>>,
    /// Unweighted value of each term, `[1]`, detached.
    pub terms: Vec<(&'static str, Tensor<1>)>,
}

impl ObjectiveConfig {
    /// Whether any term reads routing decisions, and not weights alone.
    pub fn reads_routes(&self) -> bool {
        self.terms.iter().any(|config| config.term.reads_routes())
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

    /// Number of sites that have something to show for each term.
    pub fn counts(&self, sites: &[SiteView<'_>]) -> Vec<usize> {
        let count = |config: &TermConfig| {
            let shows = |site: &&SiteView<'_>| config.term.at(site, config.within_site).is_some();
            sites.iter().filter(shows).count()
        };
        self.terms.iter().map(count).collect()
    }

    /// The share of some sites in the weighted sum that [`evaluate`](Self::evaluate) gives for all,
    /// of which `counts` have something to show for each term; `None` if these have nothing.
    pub fn share(&self, sites: &[SiteView<'_>], counts: &[usize]) -> Option<Tensor<1>> {
        let mut total: Option<Tensor<1>> = None;
        for (config, &count) in self.terms.iter().zip(counts) {
            let sum = TermConfig {
                over_sites: Reduction::Sum,
                ..config.clone()
            };
            let Some(value) = sum.over(sites) else {
                continue;
            };
            let weight = match config.over_sites {
                Reduction::Mean => config.weight / count as f64,
                Reduction::Sum => config.weight,
            };
            let value = value.mul_scalar(weight);
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
    use molora_adapters::{BankConfig, SiteDims};
    use molora_kernels::random::Seed;
    use molora_routing::{RouteInput, RouterConfig};
    use molora_testkit::{FORWARD, assert_close};

    fn term(term: Term, over_sites: Reduction) -> TermConfig {
        TermConfig {
            term,
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
        let sites: Vec<_> = banks
            .iter()
            .map(|bank| SiteView {
                bank,
                keys: None,
                routed: None,
                labels: None,
            })
            .collect();
        let config = ObjectiveConfig {
            terms: vec![
                term(Term::Orthogonality, Reduction::Sum),
                term(Term::Orthogonality, Reduction::Mean),
                term(Term::KeyMatching, Reduction::Mean),
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
            })
        });
        let sites = routed.each_ref().map(|routed| SiteView {
            bank: &bank,
            keys: None,
            routed: Some(routed),
            labels: None,
        });
        let value = |name, sites: &[SiteView<'_>]| {
            let terms = vec![term(name, Reduction::Sum)];
            ObjectiveConfig { terms }.evaluate(sites).total
        };
        // Dense and uniform: 1 by Switch, K / E = 1 per decision by the others.
        for name in [Term::LoadBalance, Term::BalanceMass, Term::BalanceLiteral] {
            let found = value(name, &sites).expect("one site of four experts");
            assert_close(found, [0.5], FORWARD, name.name());
            assert!(value(name, &sites[..1]).is_none(), "{}", name.name());
        }
    }

    #[test]
    fn missing_needs_are_named() {
        for term in [Term::LoadBalance, Term::BalanceMass, Term::BalanceLiteral] {
            assert_eq!(term.lacks(false, false), Some("a router"));
            assert_eq!(term.lacks(true, false), None);
        }
        assert!(Term::KeyMatching.lacks(true, false).is_some());
        assert_eq!(Term::Orthogonality.lacks(false, false), None);
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
