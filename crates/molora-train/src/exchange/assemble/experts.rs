//! The given experts, and how they become a bank.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use molora_adapters::ExpertBank;
use molora_adapters::merge::{LowRank, above_quantile, truncated_matrix};
use molora_kernels::random::Seed;
use molora_models::peft::{GivenExperts, ModuleLora, PeftAdapter, ResolvedAdapter, attach_experts};
use molora_models::{Adaptable, Backbone, TaskModel, load_heads};
use molora_routing::scorer::RowsFrom;

use super::{AssembleRequest, Given, RouterChoice, Source, recipe};
use crate::error::{RunProblem, TrainError};
use crate::guide::check_instructions;
use crate::model::with_stable_ids;
use crate::recipe::Recipe;
use crate::run::Loaded;
use crate::store::pool::{self, GATE, HEAD};

/// Experts that have been read for a model.
pub(super) struct Experts<'a> {
    request: &'a AssembleRequest,
    given: &'a [Given],
    router: RouterChoice,
    pub(super) banks: GivenExperts<Backbone>,
}

/// Refuses names that cannot be those of experts, and instructions that are missing.
pub(super) fn check_names(request: &AssembleRequest) -> Result<(), TrainError> {
    let refuse = |problem: String| TrainError::Recipe {
        name: request.router.name().into(),
        problems: vec![problem],
    };
    check_names_of(&request.experts, request.router.name())?;
    if request.experts.is_empty() {
        return Err(refuse("there is no --expert, expected at least one".into()));
    }
    // With data, instructions may come from the tasks.
    if request.router == RouterChoice::Glider && request.data.is_none() {
        let text = |given: &Given| (given.name.clone(), given.instruction.clone());
        let texts = request.experts.iter().map(text);
        if let Some((name, _)) = texts.clone().find(|(_, text)| text.is_none()) {
            return Err(refuse(format!(
                "compares experts by their instructions, and {name} has none: give --instruction \
                 {name}=TEXT"
            )));
        }
        let texts: Vec<_> = texts
            .map(|(name, text)| (name, text.unwrap_or_default()))
            .collect();
        check_instructions(texts.iter().map(|(name, text)| (name, text)))?;
    }
    Ok(())
}

/// Refuses names that cannot be those of experts, and those of two.
pub(in crate::exchange) fn check_names_of(
    experts: &[Given],
    recipe: &str,
) -> Result<(), TrainError> {
    let refuse = |problem: String| TrainError::Recipe {
        name: recipe.into(),
        problems: vec![problem],
    };
    let mut folders: BTreeMap<&str, &Path> = BTreeMap::new();
    for given in experts {
        let name = &given.name[..];
        if name.is_empty() || name.contains(['/', '\\', '\0']) || name.starts_with('.') {
            return Err(refuse(format!(
                "`{name}` cannot be the name of an expert, expected one without slashes"
            )));
        }
        if let Some(first) = folders.insert(name, &given.folder) {
            let (first, second) = (first.display(), given.folder.display());
            return Err(refuse(format!(
                "two experts are called {name}: {first} and {second}"
            )));
        }
    }
    Ok(())
}

impl<'a> Experts<'a> {
    /// Reads the experts for the base model.
    ///
    /// # Errors
    /// See [`super::assemble`].
    pub(super) fn read(request: &'a AssembleRequest, base: &Backbone) -> Result<Self, TrainError> {
        let mut adapters = Vec::new();
        let mut bases: Vec<(&Given, String)> = Vec::new();
        for given in &request.experts {
            let adapter = PeftAdapter::open(&given.folder)?;
            let found = adapter.config().base_model.clone();
            bases.extend(found.map(|base| (given, base)));
            let resolved = adapter.resolve(base)?;
            check_mixable(given, base, &resolved)?;
            adapters.push(match request.router {
                RouterChoice::EWemoe => without_small(&resolved),
                _ => resolved,
            });
        }
        check_bases(&bases)?;
        let mut experts = request.experts.iter();
        if request.router == RouterChoice::Phatgoose
            && let Some(given) = experts.find(|given| !has_gate(given))
        {
            let problem = RunProblem::NoGate { file: GATE };
            return Err(TrainError::run(&given.folder, problem));
        }
        let banks = GivenExperts::new(base, &adapters.iter().collect::<Vec<_>>())?;
        Ok(Self {
            request,
            given: &request.experts,
            router: request.router,
            banks,
        })
    }

    /// Whether tasks of an encoder would get untrained heads.
    pub(super) fn lacks_heads(&self, base: &Backbone) -> bool {
        !base.writes() && self.given.iter().any(|given| !has_head(given))
    }

    /// Whether the routers go by gates.
    fn has_gates(&self) -> Result<bool, TrainError> {
        let with = self.given.iter().filter(|given| has_gate(given)).count();
        match self.router {
            RouterChoice::Phatgoose => Ok(true),
            // Without any, the instructions alone decide.
            RouterChoice::Glider if with == 0 => Ok(false),
            RouterChoice::Glider => match self.given.iter().find(|given| !has_gate(given)) {
                None => Ok(true),
                Some(given) => {
                    let problem = RunProblem::SomeGates { file: GATE };
                    Err(TrainError::run(&given.folder, problem))
                }
            },
            _ => Ok(false),
        }
    }

    fn gates(&self, loaded: &Loaded) -> Result<Vec<Backbone>, TrainError> {
        let spec = loaded.spec.one_expert(true);
        let gate = |given: &Given| {
            let mut backbone = loaded.base.clone();
            backbone.attach(&spec, 0, Seed::new(0), &loaded.device)?;
            pool::load_gate(&given.folder, &mut backbone, &spec)?;
            Ok(backbone)
        };
        self.given.iter().map(gate).collect()
    }
}

impl Source for Experts<'_> {
    fn recipe(&self, base: &Backbone, has_template: bool) -> Result<Recipe, TrainError> {
        recipe::recipe(self.request, self, base, has_template)
    }

    /// Puts the experts, what their routers go by, and the heads that they bring into a fresh
    /// mixture.
    ///
    /// # Errors
    /// A gate or head that is broken or of another shape.
    fn fill(&self, mut mixture: TaskModel, loaded: &Loaded) -> Result<TaskModel, TrainError> {
        self.banks.fill(&mut mixture.backbone);
        let has_directions = loaded.spec.rows_from() == Some(RowsFrom::Experts);
        let sites = mixture.backbone.sites_mut().into_iter();
        for ((_, site), (_, given)) in sites.zip(self.banks.sites()) {
            if let Some(router) = site.router.as_mut().filter(|_| has_directions) {
                router.set_rows(directions(&given.bank));
            }
        }
        if self.has_gates()? {
            let gated = self.gates(loaded)?;
            pool::collect_prototypes(&mut mixture, &gated);
        }
        for (given, head) in self.given.iter().zip(&mut mixture.heads) {
            if has_head(given) && head.is_some() {
                let (name, head) = (
                    std::slice::from_ref(&given.name),
                    std::slice::from_mut(head),
                );
                load_heads(&given.folder.join(HEAD), name, head)?;
            }
        }
        Ok(with_stable_ids(mixture))
    }
}

fn has_gate(given: &Given) -> bool {
    given.folder.join(GATE).is_file()
}

fn has_head(given: &Given) -> bool {
    given.folder.join(HEAD).is_file()
}

/// Refuses an expert that changes the model in a way that cannot be mixed, under its own name.
fn check_mixable(
    given: &Given,
    base: &Backbone,
    adapter: &ResolvedAdapter,
) -> Result<(), TrainError> {
    if adapter.loras.iter().any(|lora| lora.magnitude.is_some()) {
        return Err(TrainError::run(&given.folder, RunProblem::Dora));
    }
    let attached = attach_experts(&mut base.clone(), &[adapter]);
    attached.map(drop).map_err(|error| {
        let text = error.to_string().replace("adapter 0 ", "");
        TrainError::run(&given.folder, RunProblem::NotMixable(text))
    })
}

/// Refuses experts that say that they belong to different base models. Folders and names on the Hub
/// are compared by their last part.
fn check_bases(bases: &[(&Given, String)]) -> Result<(), TrainError> {
    let short = |name: &str| {
        let name = name.trim_end_matches(['/', '\\']);
        name.rsplit(['/', '\\']).next().unwrap_or(name).to_owned()
    };
    let Some((first, base)) = bases.first() else {
        return Ok(());
    };
    match bases.iter().find(|(_, other)| short(other) != short(base)) {
        None => Ok(()),
        Some((given, other)) => {
            let problem = RunProblem::DifferentBases {
                found: other.clone(),
                first: first.name.clone(),
                expected: base.clone(),
            };
            Err(TrainError::run(&given.folder, problem))
        }
    }
}

/// Of each change its largest tenth, as a LoRA of the same rank that comes nearest to that
/// (arXiv:2410.21804, section 4.2).
fn without_small(adapter: &ResolvedAdapter) -> ResolvedAdapter {
    const QUANTILE: f64 = 0.9;
    let cut = |lora: &ModuleLora| {
        let large = above_quantile(&lora.delta(), QUANTILE);
        let LowRank { a, b, scale } = truncated_matrix(&large, lora.a.dims()[1]);
        ModuleLora {
            a,
            b,
            scale,
            ..lora.clone()
        }
    };
    ResolvedAdapter {
        loras: adapter.loras.iter().map(cut).collect(),
        ..adapter.clone()
    }
}

/// Arrow's directions `[E, D]`; zero for an expert that does not change the layer.
pub(in crate::exchange) fn directions(bank: &ExpertBank) -> Tensor<2> {
    let sizes = bank.b_by_expert().detach().abs().sum_dim(2).sum_dim(1);
    let acts = sizes.greater_elem(0.0).float().reshape([-1, 1]);
    let rows = bank.directions() * acts;
    Tensor::from_data(rows.clone().into_data(), &rows.device())
}
