//! What the routers of a run are given beside the text: its task, its cluster, an expert that is chosen for
//! them.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use molora_adapters::task_selector;
use molora_models::{AdapterSpec, ForwardContext, ModelError, RouterScope};
use molora_routing::{Guidance, RouterConfig, expert_labels};

use super::Prompt;
use super::engine::Variant;
use crate::data::Split;
use crate::error::{RunProblem, TrainError};
use crate::guide::{Clusters, Guide, Instructions, TextEncoder, clusters_of};
use crate::run::{Opened, expert_number, task_number};

/// What the routers of a run read beside the text.
#[derive(Debug)]
pub(super) struct Mixture {
    run: PathBuf,
    /// Names of the tasks.
    pub(super) tasks: Vec<String>,
    /// The task that texts are of.
    pub(super) task: Option<usize>,
    /// Whether it makes a difference which one that is.
    pub(super) reads_tasks: bool,
    /// Names of the experts, or their numbers; or why none of them can answer alone.
    pub(super) experts: Result<Vec<String>, &'static str>,
    /// Why an expert that is chosen would not be what it is without the others.
    inexact: Option<&'static str>,
    /// The expert that answers alone.
    expert: Option<usize>,
    instructions: Option<Instructions>,
    /// Compares prompts with the instructions, as long as no task is known.
    encoder: Option<TextEncoder>,
    clusters: Option<(Clusters, TextEncoder)>,
    device: Device,
}

impl Mixture {
    /// Of a run that was read, for texts of a task.
    ///
    /// # Errors
    /// A task that the run has not, or a text encoder that cannot be read.
    pub(super) fn of(
        run: PathBuf,
        opened: &mut Opened,
        task: Option<&str>,
    ) -> Result<Self, TrainError> {
        let (spec, device) = (&opened.loaded.spec, opened.loaded.device.clone());
        let names = opened.expert_names();
        let count = spec.bank.choices();
        // A general expert stands beside all others, and is none to choose.
        let name = |number: usize| names.get(number).cloned();
        let name = |number: usize| name(number).unwrap_or_else(|| number.to_string());
        let experts = match why_none_alone(spec) {
            None => Ok((0..count).map(name).collect()),
            Some(why) => Err(why),
        };
        let tasks = opened.config.tasks.iter().map(|task| task.name.clone());
        let clusters = opened.clusters.take();
        let with_encoder = |clusters: Clusters| {
            let encoder = clusters.text_encoder(&device)?;
            Ok::<_, TrainError>((clusters, encoder))
        };
        let mut mixture = Self {
            run,
            tasks: tasks.collect(),
            task: None,
            reads_tasks: spec.reads_tasks() || opened.instructions.is_some(),
            experts,
            inexact: why_inexact(spec),
            expert: None,
            instructions: opened.instructions.take(),
            encoder: None,
            clusters: clusters.map(with_encoder).transpose()?,
            device,
        };
        mixture.set_task(task)?;
        Ok(mixture)
    }

    /// See [`Writer::set_task`](super::Writer::set_task).
    pub(super) fn set_task(&mut self, name: Option<&str>) -> Result<(), TrainError> {
        let names = self.tasks.iter().map(String::as_str);
        let task = name.map(|name| task_number(&self.run, names, name));
        let task = task.transpose()?;
        // The query is the task's instruction, or else the prompt.
        if let (None, None, Some(instructions)) = (task, &self.encoder, &self.instructions) {
            self.encoder = Some(instructions.text_encoder(&self.device)?);
        }
        self.task = task;
        Ok(())
    }

    /// See [`Writer::set_expert`](super::Writer::set_expert).
    pub(super) fn set_expert(&mut self, name: Option<&str>) -> Result<(), TrainError> {
        let number = |name| match &self.experts {
            Ok(experts) => {
                let is_number = |(number, name): (usize, &String)| *name == number.to_string();
                let names = match experts.iter().enumerate().all(is_number) {
                    true => &[],
                    false => &experts[..],
                };
                expert_number(&self.run, (names, experts.len()), name)
            }
            Err(why) => {
                let problem = RunProblem::NoExpertAlone { why };
                Err(TrainError::run(&self.run, problem))
            }
        };
        self.expert = name.map(number).transpose()?;
        Ok(())
    }

    /// Puts what the routers read of prompts into the context of a pass.
    pub(super) fn guide(
        &self,
        prompts: &[Prompt],
        context: &mut ForwardContext,
    ) -> Result<(), TrainError> {
        let texts: Vec<&str> = prompts.iter().map(Prompt::text).collect();
        let variant = Variant {
            task: self.task,
            expert: self.expert,
        };
        self.guide_as(&texts, variant, context)
    }

    /// Why no expert that is chosen is exactly what it is without the others, if so.
    pub(super) fn why_none_exactly(&self) -> Option<&'static str> {
        self.experts.as_ref().err().copied().or(self.inexact)
    }

    /// Puts what the routers read of texts into the context of a pass, for a task and an expert of the
    /// caller's.
    pub(super) fn guide_as(
        &self,
        texts: &[&str],
        variant: Variant,
        context: &mut ForwardContext,
    ) -> Result<(), TrainError> {
        let tasks = vec![variant.task; texts.len()];
        context.tasks = Some(task_selector(&tasks, self.tasks.len(), &self.device)?);
        if let Some(instructions) = &self.instructions {
            context.guidance = self.by_instructions(texts, variant.task, instructions)?;
        }
        if let Some((clusters, encoder)) = &self.clusters {
            let places = clusters.of_texts(texts, encoder)?;
            let places: Vec<_> = places.iter().collect();
            context.guidance = clusters_of(&places, clusters.clusters, &self.device);
        }
        context.guidance.labels = self.labels(texts.len(), variant.expert)?;
        Ok(())
    }

    /// The rows that give each text the expert that answers alone.
    fn labels(&self, texts: usize, expert: Option<usize>) -> Result<Option<Tensor<2>>, TrainError> {
        let (Some(expert), Ok(names)) = (expert, &self.experts) else {
            return Ok(None);
        };
        let labels = expert_labels(&vec![Some(expert); texts], names.len(), &self.device);
        Ok(Some(labels.map_err(ModelError::from)?))
    }

    /// The experts' scores by what texts are about.
    fn by_instructions(
        &self,
        texts: &[&str],
        task: Option<usize>,
        instructions: &Instructions,
    ) -> Result<Guidance, TrainError> {
        let rows: Vec<usize> = (0..texts.len()).collect();
        let queries = match (task, &self.encoder) {
            (Some(task), _) => vec![instructions.experts[task].vector.clone(); texts.len()],
            (None, Some(encoder)) => encoder.embed(texts)?,
            (None, None) => return Ok(Guidance::default()),
        };
        let scores = instructions.scores(&queries, &self.device);
        Ok(Guide::ByTask(scores).of(&rows, &[], Split::Test, &self.device))
    }
}

/// What a weight of 1 for one expert does not make equal to the expert alone, if anything.
fn why_inexact(spec: &AdapterSpec) -> Option<&'static str> {
    let factor = match &spec.router_scope {
        RouterScope::FirstPass(first) => first.global_weight,
        _ => 1.0,
    };
    if spec.gate.is_some() {
        Some("its gates scale experts by task")
    } else if spec.general.is_some() {
        Some("a general expert takes part in every answer")
    } else if spec.dora {
        Some("its magnitudes are those of all experts together")
    } else if factor != 1.0 {
        Some("a factor acts on all weights behind its first pass")
    } else {
        None
    }
}

/// Why routers cannot be told to take one expert.
fn why_none_alone(spec: &AdapterSpec) -> Option<&'static str> {
    let counts = spec.experts.by_layer();
    let Some(router) = &spec.router else {
        return Some("the run has no routers that choose one");
    };
    let decides = |router: &RouterConfig| router.scorer.decides();
    if decides(router) {
        Some("its routers choose pairs of vectors, and not experts")
    } else if spec.bank.groups() > 1 || router.normaliser.is_joint() {
        Some("its routers choose parts of experts, each by itself")
    } else if counts.iter().any(|&count| count != counts[0]) {
        Some("its layers have different numbers of experts")
    } else {
        None
    }
}
