//! Training steps of a language model in the shape of SmolLM2-135M, with a loss at every token.

use anyhow::{Context, Result, ensure};
use molora_kernels::random::{Seed, unit};
use molora_models::{Adaptable, AdapterSpec, Backbone, BaseDtype, TaskModel};
use molora_train::data::{Batch, Example, Target};
use molora_train::model::with_stable_ids;
use molora_train::recipe::{self, Recipe, StageConfig};
use molora_train::train::Step;

use crate::World;
use crate::clock::{Measured, time};
use crate::model::SMOLLM2;

/// Rows and tokens of a batch.
const ROWS: usize = 8;
const TOKENS: usize = 256;
const RANK: usize = 8;
/// Number of tasks, all rows being of the first.
const TASKS: usize = 2;

/// A recipe at some layers of a base.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Case {
    recipe: &'static str,
    /// All linear layers, not those of attention alone.
    is_all: bool,
    dtype: BaseDtype,
    is_checkpointed: bool,
}

fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [BaseDtype::F32, BaseDtype::Bf16] {
        for is_all in [false, true] {
            for recipe in ["lora", "samora"] {
                for is_checkpointed in [false, true] {
                    cases.push(Case {
                        recipe,
                        is_all,
                        dtype,
                        is_checkpointed,
                    });
                }
            }
        }
    }
    cases
}

impl Case {
    fn name(&self) -> String {
        let layers = if self.is_all { "all" } else { "attention" };
        let mut name = format!("{}-{layers}", self.recipe);
        if self.dtype != BaseDtype::F32 {
            name += &format!("-{}", self.dtype);
        }
        if self.is_checkpointed {
            name += "-checkpointed";
        }
        name
    }

    fn recipe(&self) -> Result<Recipe> {
        let mut recipe = recipe::find(self.recipe).context("no such recipe")?;
        recipe.adapter.bank.rank = RANK;
        let attention = ["q_proj", "k_proj", "v_proj", "o_proj"];
        recipe.adapter.targets = match self.is_all {
            true => vec!["all-linear".into()],
            false => attention.map(String::from).to_vec(),
        };
        Ok(recipe)
    }

    fn measure(&self, world: &World) -> Result<Measured> {
        let device = world.device.clone().autodiff();
        let recipe = self.recipe()?;
        let stage = StageConfig {
            gradient_checkpointing: self.is_checkpointed,
            ..StageConfig::joint(1000)
        };
        let folder = world.model.clone();
        let folder = folder.unwrap_or_else(|| world.models.join(SMOLLM2));
        let mut backbone = Backbone::from_folder_as(&folder, self.dtype, &device)?;
        backbone.attach(&recipe.adapter, TASKS, Seed::new(0), &device)?;
        let batch = batch(backbone.vocab_size());
        let heads = (0..TASKS).map(|_| None).collect();
        let mut model = with_stable_ids(stage.apply(TaskModel { backbone, heads }));
        let flops = flops(&model, &recipe.adapter);
        let mut optimizer = stage.optimizer.init(&model);
        let mut number = 0;
        let measured = time(world.effort, &world.device, || {
            let step = Step {
                objective: stage.objective(&recipe.objective),
                ..Step::new(&recipe.adapter, &stage, Seed::new(2).index(number), &device)
            };
            let (next, values) = step.run(model.clone(), &mut optimizer, &batch)?;
            ensure!(values.loss.is_finite(), "the loss is {}", values.loss);
            (model, number) = (next, number + 1);
            Ok(())
        })?;
        Ok(Measured {
            dtype: self.dtype,
            tokens: Some((ROWS * TOKENS) as f64),
            flops: Some(flops),
            ..measured
        })
    }
}

pub(crate) fn cases() -> Vec<String> {
    all().iter().map(Case::name).collect()
}

pub(crate) fn run(case: &str, world: &World) -> Option<Result<Measured>> {
    let known = all().into_iter().find(|known| known.name() == case)?;
    Some(known.measure(world))
}

/// What the matrix products of a step need: the base's forward and to its inputs, attention over what comes before, and the
/// adapters' forward and in both directions back. What is computed once more to save memory is not counted.
fn flops(model: &TaskModel, spec: &AdapterSpec) -> f64 {
    let tokens = (ROWS * TOKENS) as f64;
    let backbone = &model.backbone;
    let width = backbone.width();
    let (mut base, mut adapters) = ((width * backbone.vocab_size()) as f64, 0.0);
    for (_, linear) in backbone.linears() {
        let dims = linear.dims();
        base += (dims.d_input * dims.d_output) as f64;
        if linear.adapter.is_some() {
            let code = spec.bank.rank * spec.bank.num_experts;
            adapters += (dims.d_input * spec.bank.rank + dims.d_output * code) as f64;
        }
    }
    let layers = model.num_blocks().unwrap_or_default();
    // Half of the pairs of tokens, in scores and in sums, forward and twice back.
    let attention = 6.0 * (layers * width * TOKENS) as f64;
    tokens * (4.0 * base + 6.0 * adapters + attention)
}

/// Random tokens without padding; all of them are scored.
fn batch(vocabulary: usize) -> Batch {
    let mut generator = Seed::new(3).generator();
    let mut draw = || (unit(&mut generator) * vocabulary as f64) as u32;
    let examples: Vec<Example> = (0..ROWS)
        .map(|_| Example {
            ids: (0..TOKENS).map(|_| draw()).collect(),
            type_ids: vec![0; TOKENS],
            task: 0,
            target: Target::Answer(vec![true; TOKENS]),
        })
        .collect();
    Batch::from_examples(&examples.iter().collect::<Vec<_>>())
}
