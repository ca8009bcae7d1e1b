//! Whole training steps as the program takes them: forward, backward, clipping, AdamW.

use anyhow::{Context, Result};
use molora_kernels::random::{Seed, unit};
use molora_models::{Adaptable, AdapterSpec, Backbone, BaseDtype, TaskHead, TaskModel};
use molora_routing::Selection;
use molora_train::data::{Batch, Example, Target};
use molora_train::model::with_stable_ids;
use molora_train::recipe;
use molora_train::recipe::{Recipe, StageConfig};
use molora_train::train::Step;

use crate::World;
use crate::clock::{Measured, time};
use crate::model::{MINILM, MiniLm};

/// Tasks of the run, all rows of a batch being of one as in training.
pub(crate) const TASKS: usize = 8;
pub(crate) const CLASSES: usize = 4;

/// Rows and tokens of a batch, where a case does not say otherwise.
pub(crate) const ROWS: usize = 16;
pub(crate) const TOKENS: usize = 64;

/// A recipe at a size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    name: &'static str,
    recipe: &'static str,
    experts: usize,
    top_k: Option<usize>,
    rows: usize,
    tokens: usize,
    dtype: BaseDtype,
}

const fn samora(name: &'static str, experts: usize, top_k: Option<usize>) -> Case {
    Case {
        name,
        recipe: "samora",
        experts,
        top_k,
        rows: ROWS,
        tokens: TOKENS,
        dtype: BaseDtype::F32,
    }
}

const fn long(name: &'static str, tokens: usize) -> Case {
    Case {
        rows: 1024 / tokens,
        tokens,
        ..samora(name, 3, None)
    }
}

pub(crate) const STEP: [Case; 5] = [
    Case {
        recipe: "lora",
        ..samora("lora", 1, None)
    },
    samora("samora-3", 3, None),
    Case {
        dtype: BaseDtype::Bf16,
        ..samora("samora-3-bf16", 3, None)
    },
    samora("samora-8", 8, None),
    // The mean batch of the eight classification tasks in docs/benchmarks.
    Case {
        rows: 32,
        tokens: 20,
        ..samora("samora-3-short", 3, None)
    },
];

pub(crate) const SCALE: [Case; 9] = [
    samora("experts-3", 3, Some(2)),
    samora("experts-8", 8, Some(2)),
    samora("experts-16", 16, Some(2)),
    samora("experts-32", 32, Some(2)),
    samora("experts-64", 64, Some(2)),
    long("sequence-64", 64),
    long("sequence-128", 128),
    long("sequence-256", 256),
    long("sequence-512", 512),
];

pub(crate) fn names(cases: &[Case]) -> Vec<String> {
    cases.iter().map(|case| case.name.to_owned()).collect()
}

pub(crate) fn run(cases: &[Case], case: &str, world: &World) -> Option<Result<Measured>> {
    let case = cases.iter().find(|known| known.name == case)?;
    Some(case.measure(world))
}

impl Case {
    fn recipe(&self) -> Result<Recipe> {
        let mut recipe = recipe::find(self.recipe).context("no such recipe")?;
        recipe.adapter.bank.num_experts = self.experts;
        if let (Some(k), Some(router)) = (self.top_k, &mut recipe.adapter.router) {
            router.selection = Selection::TopK(k);
        }
        Ok(recipe)
    }

    fn measure(&self, world: &World) -> Result<Measured> {
        let device = world.device.clone().autodiff();
        let recipe = self.recipe()?;
        let stage = StageConfig::joint(1000);
        let folder = world.models.join(MINILM);
        let mut backbone = Backbone::from_folder_as(&folder, self.dtype, &device)?;
        backbone.attach(&recipe.adapter, TASKS, Seed::new(0), &device)?;
        let head = |task: usize| {
            let seed = Seed::new(1).index(task as u64);
            Some(TaskHead::new(MiniLm::WIDTH, CLASSES, seed, &device))
        };
        let heads = (0..TASKS).map(head).collect();
        let mut model = with_stable_ids(stage.apply(TaskModel { backbone, heads }));
        let mut optimizer = stage.optimizer.init(&model);
        let (batch, mut number) = (batch(self.rows, self.tokens), 0);
        let measured = time(world.effort, &world.device, || {
            let step = Step {
                objective: stage.objective(&recipe.objective),
                ..Step::new(&recipe.adapter, &stage, Seed::new(2).index(number), &device)
            };
            let (next, values) = step.run(model.clone(), &mut optimizer, &batch)?;
            anyhow::ensure!(values.loss.is_finite(), "the loss is {}", values.loss);
            (model, number) = (next, number + 1);
            Ok(())
        })?;
        Ok(Measured {
            dtype: self.dtype,
            tokens: Some((self.rows * self.tokens) as f64),
            flops: Some(self.flops(&recipe.adapter)),
            ..measured
        })
    }

    /// What the matrix products of a step need. The frozen base has no weight gradient, and nothing
    /// flows back beyond the first layer's sites, whose inputs depend on no parameter.
    fn flops(&self, spec: &AdapterSpec) -> f64 {
        let (d, inner, layers) = (MiniLm::WIDTH, MiniLm::INNER, MiniLm::LAYERS);
        let n = self.rows * self.tokens;
        let weights = 4 * d * d + 2 * d * inner;
        let base = 2 * n * (2 * layers * weights - 3 * d * d);
        // Scores and mixed values: two products forward, four backward.
        let attention = 6 * 2 * n * self.tokens * d * layers;
        let code = spec.bank.rank * self.top_k.unwrap_or(self.experts);
        let sites = layers * spec.targets.len();
        let down = 2 * n * d * spec.bank.rank * (3 * sites - 3);
        let up = 2 * n * d * code * 3 * sites;
        (base + attention + down + up) as f64
    }
}

/// Random tokens without padding.
pub(crate) fn batch(rows: usize, tokens: usize) -> Batch {
    let mut generator = Seed::new(3).generator();
    let mut draw = |below: f64| (unit(&mut generator) * below) as usize;
    let mut example = || Example {
        ids: (0..tokens).map(|_| draw(30_000.0) as u32).collect(),
        type_ids: vec![0; tokens],
        task: 0,
        target: Target::Class(draw(CLASSES as f64)),
    };
    let examples: Vec<Example> = (0..rows).map(|_| example()).collect();
    Batch::from_examples(&examples.iter().collect::<Vec<_>>())
}
