//! The models that are served, and the names that they go by.
//!
//! A run is a model under its own name, and so is each of its tasks and experts: `NAME:task=TASK` and
//! `NAME:expert=EXPERT`, as vLLM lists adapters, with the run as `root` and `parent`.

use std::collections::BTreeSet;
use std::sync::Arc;

use molora_train::TrainError;
use molora_train::generate::{
    Engine, EngineOptions, EngineState, Listener, Request, Variant, Writer,
};
use molora_train::guide::TextEncoder;
use molora_train::predict::Predictor;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::worker::{Room, TextWorker, TurnWorker};

/// What a model does.
#[derive(Debug)]
pub enum Source {
    /// Writes texts.
    Writer(Box<Writer>),
    /// Turns texts into vectors.
    Encoder(Box<TextEncoder>),
    /// Puts texts into the classes of the run's tasks.
    Predictor(Box<Predictor>),
}

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Two models of one name.
    #[error("there are two models `{name}`, expected different names: write NAME=FOLDER")]
    SameName {
        /// The name.
        name: String,
    },
    /// A name that would be read as another one.
    #[error("a model cannot have the name `{name}`: it is empty, or a colon stands in it")]
    BadName {
        /// The name.
        name: String,
    },
    /// A model that the engine refuses.
    #[error(transparent)]
    Model(#[from] TrainError),
    /// A thread or a socket that cannot be had.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A model that writes.
#[derive(Debug)]
pub(crate) struct TextModel {
    pub(crate) name: String,
    pub(crate) writer: Arc<Writer>,
    /// What writes its texts, and those of other models on its base.
    worker: Arc<TextWorker>,
    /// Its number among those.
    number: usize,
    pub(crate) room: Arc<Room>,
    /// Most tokens of a prompt with its answer.
    pub(crate) max_context: usize,
}

impl TextModel {
    /// Asks for a text.
    pub(crate) fn ask(
        &self,
        request: Request,
        listener: Box<dyn Listener>,
    ) -> Result<(), ApiError> {
        self.worker.ask(self.number, request, listener)
    }

    /// What is done for it.
    pub(crate) fn state(&self) -> EngineState {
        self.worker.state(self.number)
    }

    /// The name of an expert, or its number.
    pub(crate) fn expert_name(&self, expert: usize) -> String {
        let name = self.writer.experts().get(expert);
        name.cloned().unwrap_or_else(|| expert.to_string())
    }
}

/// A model that turns texts into vectors.
#[derive(Debug)]
pub(crate) struct EmbeddingModel {
    pub(crate) worker: TurnWorker<TextEncoder>,
}

/// A run that puts texts into classes.
#[derive(Debug)]
pub(crate) struct ClassModel {
    pub(crate) tasks: Vec<String>,
    pub(crate) worker: TurnWorker<Predictor>,
}

impl ClassModel {
    fn has(&self, task: &str) -> bool {
        self.tasks.iter().any(|own| own == task)
    }
}

/// What turns texts into vectors.
#[derive(Debug)]
pub(crate) enum Vectors<'a> {
    /// An encoder as it is.
    Base(&'a EmbeddingModel),
    /// A run, and the task that its gates and routers are told.
    Run(&'a ClassModel, Option<String>),
}

#[derive(Debug)]
enum Kind {
    Text(TextModel),
    Embedding(EmbeddingModel),
    Class(ClassModel),
}

/// What stands behind the colon of a name: `task` or `expert`, and which one.
type Part<'a> = (&'a str, &'a str);

/// All models that are served.
#[derive(Debug)]
pub(crate) struct Models {
    models: Vec<(String, Kind)>,
    /// Bytes that the caches of all may come to hold.
    pub(crate) most_cache_bytes: usize,
    /// Seconds since 1970 at the start.
    created: u64,
}

impl Models {
    /// Starts a thread for each model, or for all that write on one base; `room` is how many texts each may have
    /// to write at once, those that wait included.
    pub(crate) fn start(
        sources: Vec<(String, Source)>,
        options: EngineOptions,
        room: usize,
        created: u64,
    ) -> Result<Self, ServeError> {
        let mut names = BTreeSet::new();
        let (mut models, mut writers) = (Vec::new(), Vec::new());
        for (place, (name, source)) in sources.into_iter().enumerate() {
            if name.is_empty() || name.contains(':') {
                return Err(ServeError::BadName { name });
            }
            if !names.insert(name.clone()) {
                return Err(ServeError::SameName { name });
            }
            let kind = match source {
                Source::Writer(writer) => {
                    writers.push((place, name, Arc::new(*writer)));
                    continue;
                }
                Source::Encoder(encoder) => Kind::Embedding(EmbeddingModel {
                    worker: TurnWorker::start(&name, *encoder, room)?,
                }),
                Source::Predictor(predictor) => Kind::Class(ClassModel {
                    tasks: predictor.task_names(),
                    worker: TurnWorker::start(&name, *predictor, room)?,
                }),
            };
            models.push((place, name, kind));
        }
        let mut most_cache_bytes = 0;
        for together in by_base(writers) {
            let writers = together.iter().map(|(_, _, writer)| Arc::clone(writer));
            let engine = Engine::new(writers.collect(), options)?;
            let max_context = engine.options().max_context;
            most_cache_bytes += engine.most_cache_bytes();
            let worker = TextWorker::start(&together[0].1, engine)?;
            for (number, (place, name, writer)) in together.into_iter().enumerate() {
                let model = TextModel {
                    name: name.clone(),
                    writer,
                    worker: Arc::clone(&worker),
                    number,
                    room: Room::new(room),
                    max_context,
                };
                models.push((place, name, Kind::Text(model)));
            }
        }
        models.sort_by_key(|(place, _, _)| *place);
        let models = models.into_iter().map(|(_, name, kind)| (name, kind));
        Ok(Self {
            models: models.collect(),
            most_cache_bytes,
            created,
        })
    }

    /// The models that write.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &TextModel> {
        self.models.iter().filter_map(|(_, kind)| match kind {
            Kind::Text(model) => Some(model),
            _ => None,
        })
    }

    /// The model that writes under a name, and which of its adapters.
    pub(crate) fn text(&self, name: &str) -> Result<(&TextModel, Variant), ApiError> {
        let (kind, part) = self.find(name)?;
        let Kind::Text(model) = kind else {
            let does = kind.does();
            return Err(ApiError::field(
                "model",
                format!("{name} {does}, and writes no texts"),
            ));
        };
        let place = |names: &[String], own: &str| names.iter().position(|name| name == own);
        let variant = match part {
            None => Some(Variant::default()),
            Some(("task", task)) => place(model.writer.tasks(), task).map(|task| Variant {
                task: Some(task),
                expert: None,
            }),
            Some(("expert", expert)) => {
                if let Some(why) = model.writer.why_no_expert_alone() {
                    let problem = format!("no expert of {} can write alone: {why}", model.name);
                    return Err(ApiError::field("model", problem));
                }
                place(model.writer.experts(), expert).map(|expert| Variant {
                    task: None,
                    expert: Some(expert),
                })
            }
            Some(_) => None,
        };
        let variant = variant.ok_or_else(|| ApiError::no_model(name, &self.names()))?;
        Ok((model, variant))
    }

    /// What turns texts into vectors under a name.
    pub(crate) fn vectors(&self, name: &str) -> Result<Vectors<'_>, ApiError> {
        match self.find(name)? {
            (Kind::Embedding(model), None) => Ok(Vectors::Base(model)),
            (Kind::Class(model), None) => Ok(Vectors::Run(model, None)),
            (Kind::Class(model), Some(("task", task))) if model.has(task) => {
                Ok(Vectors::Run(model, Some(task.to_owned())))
            }
            (kind @ Kind::Text(_), None) => {
                let problem = format!("{name} {}, and gives no vectors", kind.does());
                Err(ApiError::field("model", problem))
            }
            _ => Err(ApiError::no_model(name, &self.names())),
        }
    }

    /// The run that puts texts into classes under a name, and for which task.
    pub(crate) fn class(&self, name: &str) -> Result<(&ClassModel, String), ApiError> {
        let (kind, part) = self.find(name)?;
        let Kind::Class(model) = kind else {
            let problem = format!("{name} {}, and has no classes", kind.does());
            return Err(ApiError::field("model", problem));
        };
        let task = match part {
            Some(("task", task)) => model.tasks.iter().find(|name| *name == task),
            None if model.tasks.len() == 1 => model.tasks.first(),
            None => {
                let tasks = model.tasks.iter().map(|task| format!("{name}:task={task}"));
                let tasks = tasks.collect::<Vec<_>>().join(", ");
                let problem = format!("{name} has several tasks, expected one of {tasks}");
                return Err(ApiError::field("model", problem));
            }
            Some(_) => None,
        };
        let task = task.ok_or_else(|| ApiError::no_model(name, &self.names()))?;
        Ok((model, task.clone()))
    }

    /// A model by the part of a name in front of the colon, and what stands behind it.
    fn find<'a>(&self, name: &'a str) -> Result<(&Kind, Option<Part<'a>>), ApiError> {
        let (own, part) = match name.split_once(':') {
            Some((own, part)) => (own, part.split_once('=').or(Some((part, "")))),
            None => (name, None),
        };
        let found = self.models.iter().find(|(name, _)| name == own);
        let found = found.map(|(_, kind)| (kind, part));
        found.ok_or_else(|| ApiError::no_model(name, &self.names()))
    }

    /// Every name that a request can ask for.
    pub(crate) fn names(&self) -> Vec<String> {
        self.models
            .iter()
            .flat_map(|(name, kind)| kind.names(name))
            .collect()
    }

    /// What `/v1/models` says.
    pub(crate) fn list(&self) -> Value {
        let entry = |id: &str, root: &str, kind: &Kind| {
            let parent = (id != root).then_some(root);
            json!({
                "id": id, "object": "model", "created": self.created, "owned_by": "molora",
                "root": root, "parent": parent, "max_model_len": kind.max_tokens(),
            })
        };
        let data = self.models.iter().flat_map(|(name, kind)| {
            let ids = kind.names(name).into_iter();
            ids.map(move |id| entry(&id, name, kind))
        });
        json!({"object": "list", "data": data.collect::<Vec<_>>()})
    }
}

/// A writer with its place among the sources, and its name.
type Placed = (usize, String, Arc<Writer>);

/// Writers in lists of those that one engine can have.
fn by_base(writers: Vec<Placed>) -> Vec<Vec<Placed>> {
    let mut lists: Vec<Vec<Placed>> = Vec::new();
    for new in writers {
        let found = lists.iter_mut().find(|list| list[0].2.can_join(&new.2));
        match found {
            Some(list) => list.push(new),
            None => lists.push(vec![new]),
        }
    }
    lists
}

impl Kind {
    fn does(&self) -> &'static str {
        match self {
            Self::Text(_) => "writes texts",
            Self::Embedding(_) => "turns texts into vectors",
            Self::Class(_) => "puts texts into classes",
        }
    }

    fn max_tokens(&self) -> Option<usize> {
        match self {
            Self::Text(model) => Some(model.max_context),
            _ => None,
        }
    }

    fn names(&self, own: &str) -> Vec<String> {
        let (tasks, experts): (&[String], &[String]) = match self {
            Self::Text(model) if model.writer.reads_tasks() => {
                (model.writer.tasks(), model.experts())
            }
            Self::Text(model) => (&[], model.experts()),
            Self::Embedding(_) => (&[], &[]),
            Self::Class(model) => (&model.tasks, &[]),
        };
        let tasks = tasks.iter().map(|task| format!("{own}:task={task}"));
        let experts = experts
            .iter()
            .map(|expert| format!("{own}:expert={expert}"));
        [own.to_owned()]
            .into_iter()
            .chain(tasks)
            .chain(experts)
            .collect()
    }
}

impl TextModel {
    /// The experts that can write alone.
    fn experts(&self) -> &[String] {
        match self.writer.why_no_expert_alone() {
            Some(_) => &[],
            None => self.writer.experts(),
        }
    }
}
