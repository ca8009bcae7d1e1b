//! A run of an adapter of PEFT's own methods.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use molora_models::peft::{
    ArrowFolder, GivenExperts, Lily, PeftAdapter, PeftKind, Poly, ResolvedAdapter, XLora,
};
use molora_models::{
    Adaptable, AdapterSpec, Backbone, ExpertCount, ModelError, RouterScope, TaskModel, load_heads,
    shortest_names,
};
use molora_routing::scorer::ArrowConfig;
use molora_routing::{RouterConfig, Selection};

use super::assemble::{Place, Source, check_names_of, directions, of_given};
use super::{Assembled, Given};
use crate::base::DeviceSpec;
use crate::error::{RunProblem, TrainError};
use crate::model::with_stable_ids;
use crate::recipe::{self, Recipe};
use crate::run::Loaded;
use crate::store::checkpoint::HEADS;
use crate::train::Event;

/// What is imported, and where to.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// The folder that PEFT wrote.
    pub folder: PathBuf,
    /// Folder of the base model, `bundled:NAME`, or `org/name` on the Hub.
    pub base: String,
    /// Names of the tasks, in the order of the adapter's; its own names or numbers if there are none.
    pub tasks: Vec<String>,
    /// Folders of an X-LoRA's LoRAs in their order; where the adapter says if there are none.
    pub experts: Vec<PathBuf>,
    /// Folder with these tasks, on which the run is evaluated.
    pub data: Option<String>,
    /// The run folder.
    pub out: PathBuf,
    /// Whether an older run in that folder may be removed.
    pub force: bool,
    /// The device.
    pub device: DeviceSpec,
}

/// Makes a run of what PEFT wrote of a PolyTropon, an X-LoRA, a Lily or an Arrow model.
///
/// Everything that can be checked is checked before the folder is made.
///
/// # Errors
/// A folder of another method, one that PEFT itself has lost a part of, another number of names than the
/// adapter has tasks; any problem with model, data or folder.
pub fn import(
    request: &ImportRequest,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Assembled, TrainError> {
    let method = Method::open(request)?;
    let tasks = method.tasks(request)?;
    check_names_of(&tasks, method.name())?;
    let place = Place {
        base: &request.base,
        tasks: &tasks,
        data: request.data.as_deref(),
        out: &request.out,
        force: request.force,
        seed: 0,
        device: request.device,
        trains: false,
    };
    place.put_together(
        |base| Imported::read(method, request, &tasks, base),
        |_, mixture, _| Ok(mixture),
        stop,
        on_event,
    )
}

/// An adapter of one of PEFT's methods.
enum Method {
    Poly(Poly),
    XLora(Box<XLora>, Vec<PathBuf>),
    Lily(Lily),
    Arrow(ArrowFolder),
}

impl Method {
    fn open(request: &ImportRequest) -> Result<Self, TrainError> {
        let folder = &request.folder;
        let refuse = |problem| Err(TrainError::run(folder, problem));
        let kind = PeftKind::of(folder)?;
        if kind != PeftKind::XLora && !request.experts.is_empty() {
            return refuse(RunProblem::HasOwnExperts);
        }
        Ok(match kind {
            PeftKind::Lora => return refuse(RunProblem::ImportsLora),
            PeftKind::Poly => Self::Poly(Poly::open(folder)?),
            PeftKind::Lily => Self::Lily(Lily::open(folder)?),
            PeftKind::Arrow => Self::Arrow(ArrowFolder::open(folder)?),
            PeftKind::XLora => {
                let xlora = XLora::open(folder)?;
                let folders = match request.experts.as_slice() {
                    [] => xlora.expert_folders()?,
                    given => given.to_vec(),
                };
                let (found, expected) = (folders.len(), xlora.num_experts());
                if found != expected {
                    return refuse(RunProblem::OtherCount {
                        what: "LoRAs (--expert)",
                        found,
                        expected,
                    });
                }
                Self::XLora(Box::new(xlora), folders)
            }
        })
    }

    /// The name of its recipe.
    fn name(&self) -> &'static str {
        match self {
            Self::Poly(_) => "poly",
            Self::XLora(..) => "x-lora",
            Self::Lily(_) => "lily",
            Self::Arrow(_) => "arrow",
        }
    }

    /// The tasks of the run, each with the folder that is read for it.
    fn tasks(&self, request: &ImportRequest) -> Result<Vec<Given>, TrainError> {
        let numbers = |count: usize| (0..count).map(|number| number.to_string()).collect();
        let own: Vec<String> = match self {
            Self::Poly(poly) => numbers(poly.num_tasks()),
            Self::XLora(xlora, _) => numbers(xlora.num_experts()),
            Self::Arrow(arrow) => arrow.experts.iter().map(|(name, _)| name.clone()).collect(),
            // Its experts belong to no task.
            Self::Lily(_) if request.tasks.is_empty() => vec!["task".into()],
            Self::Lily(_) => request.tasks.clone(),
        };
        let names = match request.tasks.as_slice() {
            [] => own.clone(),
            names => names.to_vec(),
        };
        if names.len() != own.len() {
            let problem = RunProblem::OtherCount {
                what: "tasks (--task)",
                found: names.len(),
                expected: own.len(),
            };
            return Err(TrainError::run(&request.folder, problem));
        }
        let given = |name| Given {
            name,
            folder: request.folder.clone(),
            instruction: None,
        };
        Ok(names.into_iter().map(given).collect())
    }
}

/// An adapter that has been read for a model.
struct Imported {
    method: Method,
    spec: AdapterSpec,
    /// The LoRAs, where it has some.
    experts: Option<GivenExperts<Backbone>>,
    /// Heads of an encoder's tasks, where there are any.
    heads: PathBuf,
    tasks: Vec<String>,
}

impl Imported {
    fn read(
        method: Method,
        request: &ImportRequest,
        tasks: &[Given],
        base: &Backbone,
    ) -> Result<Self, TrainError> {
        let (spec, experts) = match &method {
            Method::Poly(poly) => (poly.spec(base)?, None),
            Method::Lily(lily) => (lily.spec(base)?, None),
            Method::XLora(xlora, folders) => {
                let router = xlora.router().clone();
                let (spec, experts) = of_experts(folders, base, router, xlora.scope())?;
                (spec, Some(experts))
            }
            Method::Arrow(arrow) => {
                let folders: Vec<PathBuf> = arrow.experts.iter().map(|(_, f)| f.clone()).collect();
                let router = RouterConfig {
                    scorer: ArrowConfig.into(),
                    selection: Selection::TopK(arrow.top_k),
                    temperature: arrow.temperature,
                    ..RouterConfig::default()
                };
                let (spec, experts) = of_experts(&folders, base, router, RouterScope::Site)?;
                (spec, Some(experts))
            }
        };
        Ok(Self {
            method,
            spec,
            experts,
            heads: request.folder.join(HEADS),
            tasks: tasks.iter().map(|given| given.name.clone()).collect(),
        })
    }
}

/// The LoRAs of folders under a router, an expert for each task.
fn of_experts(
    folders: &[PathBuf],
    base: &Backbone,
    router: RouterConfig,
    scope: RouterScope,
) -> Result<(AdapterSpec, GivenExperts<Backbone>), ModelError> {
    let read = |folder: &PathBuf| PeftAdapter::open(folder)?.resolve(base);
    let adapters: Vec<ResolvedAdapter> = folders.iter().map(read).collect::<Result<_, _>>()?;
    let experts = GivenExperts::new(base, &adapters.iter().collect::<Vec<_>>())?;
    let all: Vec<String> = base.linears().into_iter().map(|(path, _)| path).collect();
    let spec = AdapterSpec {
        targets: shortest_names(&experts.paths(), &all),
        experts: ExpertCount::PerTask,
        router_scope: scope,
        bank: experts.bank(),
        router: Some(router),
        ..AdapterSpec::default()
    };
    Ok((spec, experts))
}

impl Source for Imported {
    fn recipe(&self, base: &Backbone, has_template: bool) -> Result<Recipe, TrainError> {
        let name = self.method.name();
        let citation = recipe::find(name)?.citation;
        let mut recipe = Recipe::new(name, &citation, self.spec.clone());
        of_given(&mut recipe, base, has_template);
        Ok(recipe)
    }

    fn fill(&self, mut mixture: TaskModel, _: &Loaded) -> Result<TaskModel, TrainError> {
        let model = &mut mixture.backbone;
        if let Some(experts) = &self.experts {
            experts.fill(model);
        }
        match (&self.method, &self.experts) {
            (Method::Poly(poly), _) => poly.fill(model)?,
            (Method::Lily(lily), _) => lily.fill(model)?,
            (Method::XLora(xlora, _), _) => xlora.fill(model)?,
            (Method::Arrow(_), experts) => {
                let given = experts.iter().flat_map(GivenExperts::sites);
                for ((_, site), (_, given)) in model.sites_mut().into_iter().zip(given) {
                    if let Some(router) = &mut site.router {
                        router.set_rows(directions(&given.bank));
                    }
                }
            }
        }
        self.read_heads(&self.heads, &mut mixture)?;
        Ok(with_stable_ids(mixture))
    }
}

impl Imported {
    /// Reads heads, which `export` writes beside an encoder's adapter and PEFT does not know.
    fn read_heads(&self, path: &Path, mixture: &mut TaskModel) -> Result<(), ModelError> {
        match path.is_file() {
            true => load_heads(path, &self.tasks, &mut mixture.heads),
            false => Ok(()),
        }
    }
}
