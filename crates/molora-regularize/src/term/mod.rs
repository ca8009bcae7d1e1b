//! Terms: what one site adds to the loss. One file each, and one line in the list below.

use burn::tensor::Tensor;
use molora_adapters::ExpertBank;
use molora_routing::RouterOutput;
use molora_routing::normaliser::Learned;

use crate::Reduction;

#[cfg(test)]
mod testing;

/// What a term needs that a site or a stage may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Routing decisions.
    Router,
    /// A router with cosine keys on the low-rank code of a shared `A`.
    RankKeys,
    /// For each sequence, the label of its expert.
    Labels,
    /// For each sequence, its task.
    Tasks,
    /// Experts that differ in what they cost.
    Costs,
    /// A router whose normaliser learns this of each decision.
    Learned(Learned),
    /// The low-rank code of every token, from which experts' outputs are computed: sites that have a
    /// router each, which decides by token.
    Codes,
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
    /// Rows that pick each sequence's task, `[B, tasks]`, if that is known.
    pub tasks: Option<Tensor<2>>,
    /// The low-rank code of this batch behind the core but for its scale, `[B, T, S*R]`, if a term
    /// asked for it.
    pub code: Option<Tensor<3>>,
}

impl<'a> SiteView<'a> {
    /// A site of which nothing but the weights is known.
    pub fn of_weights(bank: &'a ExpertBank) -> Self {
        Self {
            bank,
            keys: None,
            routed: None,
            labels: None,
            tasks: None,
            code: None,
        }
    }

    /// The decisions, where there is anything to balance: more than one expert.
    fn balanced(&self) -> Option<&RouterOutput> {
        self.routed.filter(|routed| routed.num_experts() > 1)
    }
}

/// The numbers of a term.
pub trait TermNumbers {
    /// The term's value at one site, `[1]`; `None` if the site has nothing to show for it.
    fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>>;

    /// What the term reads beside weights.
    fn needs(&self) -> &'static [Need] {
        &[]
    }

    /// What is out of its range, with the name of the field.
    fn problem(&self) -> Option<String> {
        None
    }

    /// The term is added on every so many steps of a stage.
    fn every(&self) -> usize {
        1
    }

    /// Whether the term is about the model as a whole, and not the sum or mean of what sites give.
    fn is_of_model(&self) -> bool {
        false
    }

    /// What the term makes of the mean over all sites, `[1]`, where it is about the model as a whole.
    fn of_model(&self, value: Tensor<1>) -> Tensor<1> {
        value
    }

    /// The same term for given tasks, where it names some.
    ///
    /// # Errors
    /// A name that is not among them, with its field.
    fn for_tasks(&self, _tasks: &[String]) -> Result<Self, String>
    where
        Self: Clone,
    {
        Ok(self.clone())
    }
}

/// Makes the enum of the axis and hands every call on.
macro_rules! terms {
    ($($(#[$doc:meta])* $name:literal => $file:ident::$Term:ident $(+ $item:ident)*),* $(,)?) => {
        $(
            mod $file;
            pub use $file::{$Term $(, $item)*};
        )*

        molora_parts::choices! {
            /// What a term computes at one site.
            pub enum Term {
                $($(#[$doc])* $name => $Term($Term),)*
            }
        }

        impl Term {
            /// The term's value at one site, `[1]`; `None` if the site has nothing to show for it.
            pub fn at(&self, site: &SiteView<'_>, reduction: Reduction) -> Option<Tensor<1>> {
                match self {
                    $(Self::$Term(term) => term.at(site, reduction),)*
                }
            }

            /// What the term reads beside weights.
            pub fn needs(&self) -> &'static [Need] {
                match self {
                    $(Self::$Term(term) => term.needs(),)*
                }
            }

            /// The term is added on every so many steps of a stage.
            pub fn every(&self) -> usize {
                match self {
                    $(Self::$Term(term) => term.every(),)*
                }
            }

            /// See [`TermNumbers::is_of_model`].
            pub fn is_of_model(&self) -> bool {
                match self {
                    $(Self::$Term(term) => term.is_of_model(),)*
                }
            }

            /// See [`TermNumbers::of_model`].
            pub fn of_model(&self, value: Tensor<1>) -> Tensor<1> {
                match self {
                    $(Self::$Term(term) => term.of_model(value),)*
                }
            }

            /// What is out of its range, with the name of the field.
            pub fn problem(&self) -> Option<String> {
                match self {
                    $(Self::$Term(term) => term.problem(),)*
                }
            }

            /// The same term for given tasks, where it names some.
            ///
            /// # Errors
            /// A name that is not among them, with its field.
            pub fn for_tasks(&self, tasks: &[String]) -> Result<Self, String> {
                match self {
                    $(Self::$Term(term) => term.for_tasks(tasks).map(Self::$Term),)*
                }
            }
        }
    };
}

terms! {
    "orthogonality" => orthogonality::Orthogonality + orthogonality,
    "across_experts" => across_experts::AcrossExperts + across_experts,
    "l2" => l2::L2 + l2,
    "key_matching" => key_matching::KeyMatching + key_matching,
    "load_balance" => load_balance::LoadBalance + load_balance,
    "balance_mass" => balance_mass::BalanceMass + balance_mass,
    "balance_literal" => balance_literal::BalanceLiteral + balance_literal,
    "mass_variation" => mass_variation::MassVariation + mass_variation,
    "router_z_loss" => router_z_loss::RouterZLoss + router_z_loss,
    "router_entropy" => router_entropy::RouterEntropy + router_entropy,
    "domain_cross_entropy" => domain_cross_entropy::DomainCrossEntropy + domain_cross_entropy,
    "info_nce" => info_nce::InfoNce + info_nce + Contrast,
    "spectral" => spectral::Spectral + spectral + SpectralForm,
    "balance_weights" => balance_weights::BalanceWeights + balance_weights,
    "sparsity" => sparsity::Sparsity + sparsity,
    "density" => density::Density + density,
    "typed_balance" => typed_balance::TypedBalance + typed_balance + Spread,
    "task_information" => task_information::TaskInformation + task_information,
    "threshold_balance" => threshold_balance::ThresholdBalance + threshold_balance,
    "token_gini" => token_gini::TokenGini + token_gini,
    "sequence_gini" => sequence_gini::SequenceGini + sequence_gini,
    "budget" => budget::Budget + mean_cost,
    "divergence" => divergence::Divergence + divergence,
}

impl Term {
    /// Whether the term needs this.
    pub fn needs_any(&self, need: Need) -> bool {
        self.needs().contains(&need)
    }

    /// Whether the term reads what a forward pass decided, and not weights alone.
    pub fn reads_routes(&self) -> bool {
        let of_weights = |need: &Need| *need == Need::RankKeys;
        !self.needs().iter().all(of_weights)
    }

    /// What the term needs that no site of a mixture has, in words; `None` if it has it all.
    pub fn lacks(&self, mixture: Mixture) -> Option<&'static str> {
        let lacks = |need: &&Need| match need {
            Need::Router => !mixture.has_router,
            Need::RankKeys => !mixture.has_rank_keys,
            Need::Costs => !mixture.has_costs,
            Need::Codes => !mixture.routes_tokens,
            Need::Learned(what) => mixture.learned != Some(*what),
            Need::Labels | Need::Tasks => false,
        };
        self.needs().iter().find(lacks).map(|need| match need {
            Need::Router => "a router",
            Need::RankKeys => "a router with cosine keys on the low-rank code of a shared A",
            Need::Costs => "experts of different ranks (adapter.bank.combine = \"sizes\")",
            Need::Codes => "a router of its own at every site that decides by token",
            Need::Learned(Learned::Threshold) => "a router with normaliser = \"threshold\"",
            Need::Learned(Learned::Sparsity) => "a router with normaliser = \"sparsegen\"",
            Need::Labels | Need::Tasks => unreachable!("no mixture lacks what its data have"),
        })
    }
}

/// What the sites of a mixture have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mixture {
    /// Routing decisions.
    pub has_router: bool,
    /// Routers with keys in rank space.
    pub has_rank_keys: bool,
    /// A router of its own at every site, which decides by token.
    pub routes_tokens: bool,
    /// Experts that differ in what they cost.
    pub has_costs: bool,
    /// What the routers' normaliser learns of each decision.
    pub learned: Option<Learned>,
}
