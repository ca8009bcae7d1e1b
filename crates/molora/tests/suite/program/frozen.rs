//! What may change in training and what may not.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use molora_kernels::random::Seed;
use molora_models::{Backbone, ParameterKind, TaskHead, TaskModel};
use molora_train::base::DeviceSpec;
use molora_train::data::{TextTokenizer, load_tasks, task_names, tokenize_tasks};
use molora_train::recipe;
use molora_train::recipe::{Recipe, phases};
use molora_train::train::{Setup, Start, train};

use crate::world::{LAYERS, Tensors, World, read_tensors, small};

/// The adapter file of a run of `recipe`, and that of its first step with a rate of nearly nothing:
/// the initial values.
fn before_and_after(recipe: &Recipe) -> (Tensors, Tensors) {
    let world = World::new();
    let mut start = recipe.clone();
    for stage in &mut start.stages {
        stage.steps = 1;
        stage.optimizer.learning_rate = 1e-37;
        let rates = stage.optimizer.learning_rates.values_mut();
        rates.for_each(|rate| *rate = 1e-37);
    }
    let [before, after] = [(start, "start"), (recipe.clone(), "run")].map(|(recipe, out)| {
        let run = world.train(&recipe, out);
        let mut tensors = read_tensors(&run.join("adapter_model.safetensors"));
        tensors.extend(read_tensors(&run.join("heads.safetensors")));
        tensors
    });
    (before, after)
}

/// What a tensor of an adapter's or the heads' file is for.
pub(crate) fn kind(name: &str) -> ParameterKind {
    match name {
        name if name.contains(".experts.") => ParameterKind::Adapters,
        name if name.contains(".router.") => ParameterKind::Routers,
        name if name.contains(".gate.") => ParameterKind::Gates,
        _ => ParameterKind::Heads,
    }
}

#[test]
fn only_the_kinds_of_a_stage_change() {
    use ParameterKind::{Adapters, Gates, Heads, Routers};
    for trainable in [
        vec![Heads],
        vec![Adapters, Heads],
        vec![Routers, Gates],
        vec![Adapters, Routers, Gates, Heads],
    ] {
        let mut recipe = small("samora");
        recipe.stages[0].trainable.clone_from(&trainable);
        let (before, after) = before_and_after(&recipe);
        assert_eq!(before.len(), after.len());
        let mut changed: Vec<ParameterKind> = Vec::new();
        for (name, (_, values)) in &after {
            let is_same = before[name].1 == *values;
            assert!(
                is_same || trainable.contains(&kind(name)),
                "{name} with {trainable:?}"
            );
            if !is_same && !changed.contains(&kind(name)) {
                changed.push(kind(name));
            }
        }
        changed.sort();
        // With all B still zero, routers and gates have nothing to tell apart.
        let expected = match trainable.contains(&Routers) && !trainable.contains(&Adapters) {
            true => vec![Routers],
            false => trainable,
        };
        assert_eq!(changed, expected);
    }
}

/// Every tensor of the base model, by its path.
#[derive(Default)]
struct Base {
    kinds: BTreeMap<ParamId, ParameterKind>,
    path: Vec<String>,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Base {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        if !self.kinds.contains_key(&param.id) {
            let values = param.val().into_data().iter::<f32>().collect();
            self.found.insert(path, values);
        }
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
}

fn values_of_base(model: &TaskModel) -> BTreeMap<String, Vec<f32>> {
    let mut visitor = Base {
        kinds: model.kinds(),
        ..Base::default()
    };
    model.visit(&mut visitor);
    visitor.found
}

#[test]
fn the_base_stays_as_it_was_read() {
    for name in recipe::names() {
        let mut recipe = small(name);
        if name == "at-moe" {
            let all = ["answer", "pets", "weather"].map(String::from);
            *recipe.adapter.task_groups_mut().expect("it has groups") =
                [("all".into(), all.to_vec())].into();
        }
        base_stays(&recipe);
    }
}

fn base_stays(recipe: &Recipe) {
    let world = World::new();
    let device = DeviceSpec::Cpu.open().expect("the processor").autodiff();
    let tokenizer = TextTokenizer::from_folder(&world.path("model")).expect("a tokenizer");
    let tasks = load_tasks(&world.path("data"), None).expect("valid tasks");
    let tasks = tokenize_tasks(&tasks, &tokenizer, recipe.data.max_length).expect("texts");
    let base = Backbone::from_folder(&world.path("model"), &device).expect("a model");
    let names = task_names(&tasks);
    let spec = recipe.resolve(&base, &names).expect("a valid recipe");
    let phases = phases(&recipe.name, &recipe.stages, &names, 0..names.len()).expect("valid");
    let seed = Seed::new(0);
    let heads: Vec<_> = tasks
        .iter()
        .map(|task| {
            Some(TaskHead::new(
                base.width(),
                task.labels.len(),
                seed,
                &device,
            ))
        })
        .collect();
    let fresh = TaskModel {
        backbone: base.clone(),
        heads,
    };
    let expected = values_of_base(&fresh);
    std::fs::create_dir(world.path("run")).expect("a new folder");
    let setup = Setup {
        recipe,
        stages: &recipe.stages,
        phases: &phases,
        spec: &spec,
        base: (&base, "model"),
        tasks: &tasks,
        seed,
        device: &device,
        collective: &molora_train::collective::Local,
        folder: &world.path("run"),
        stop: &AtomicBool::new(false),
        until: None,
        keeps_end: false,
        init: None,
    };
    let trained = train(&setup, Start::Fresh(fresh.heads), &mut |_| {}).expect("a run");
    let found = values_of_base(&trained.model);
    // Three tables, a norm, and per layer six weights with biases and two norms.
    assert_eq!(found.len(), 3 + 2 + LAYERS * (6 * 2 + 2 * 2));
    assert!(
        found == expected,
        "{}: a tensor of the base changed",
        recipe.name
    );
}
