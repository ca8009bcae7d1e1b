//! Every part of every axis, and every recipe, through all that is done with parameters: listing,
//! saving and loading, another order, growing and shrinking, and one expert alone.
//!
//! A new part is tried here without a further line: the lists of the axes are what is walked.

use std::collections::BTreeSet;
use std::convert::Infallible;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use molora_adapters::combine::GridConfig;
use molora_adapters::core::CoreConfig;
use molora_adapters::{
    Combine, DownConfig, GateConfig, GateGradient, GeneralExpert, Scaling, SegmentStart, Slices,
    Start,
};
use molora_kernels::random::Seed;
use molora_models::{
    Adaptable, AdapterSpec, Bert, Composition, FirstPassConfig, PoolConfig, PoolWeights,
    RouterScope, load_adapter, save_adapter,
};
use molora_parts::{Axis, Origins, fill};
use molora_routing::normaliser::NormaliserConfig;
use molora_routing::scorer::{Reads, ScorerConfig};
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection, expert_labels};
use molora_testkit::{GRADIENT, assert_close};
use molora_train::recipe;

use super::small::{Rows, Shape, base, copy_experts, device, fit, random, reordered, spec};

const SHAPE: Shape = Shape {
    seed: 5,
    rank: 2,
    experts: 3,
    batch: 3,
    tokens: 5,
};

/// A mixture of three experts with one choice on one axis, for every choice of every axis, and the
/// mixtures of all recipes.
fn specs() -> Vec<(String, AdapterSpec)> {
    let with = |change: &dyn Fn(&mut AdapterSpec, &mut RouterConfig)| {
        let mut spec = AdapterSpec::default();
        (spec.bank.rank, spec.bank.num_experts) = (SHAPE.rank, SHAPE.experts);
        let mut router = RouterConfig::default();
        change(&mut spec, &mut router);
        spec.router = Some(router);
        spec
    };
    let mut specs = Vec::new();
    for scorer in ScorerConfig::all() {
        let spec = with(&|spec, router| {
            router.scorer = with_groups(scorer.clone());
            match scorer.reads() {
                Reads::Tasks => router.granularity = Granularity::Task,
                Reads::Codes => router.route_from = RouteFrom::LowRank,
                Reads::Clusters => router.granularity = Granularity::Sequence,
                Reads::FeaturesAndColumns => {
                    spec.bank.slices = Slices::Shared;
                    spec.bank.combine = GridConfig.into();
                }
                Reads::Features | Reads::FeaturesAndTasks => {}
            }
        });
        specs.push((format!("scorer {}", scorer.name()), spec));
    }
    for normaliser in NormaliserConfig::all() {
        let spec = with(&|_, router| router.normaliser = normaliser.clone());
        specs.push((format!("normaliser {}", normaliser.name()), spec));
    }
    for core in CoreConfig::all() {
        for slices in [Slices::Independent, Slices::Shared] {
            let spec = with(&|spec, _| {
                spec.bank.core = core.clone();
                spec.bank.slices = slices;
            });
            specs.push((format!("core {} {slices:?}", core.name()), spec));
        }
    }
    for down in DownConfig::all() {
        let spec = with(&|spec, _| spec.bank.down = down.clone());
        specs.push((format!("down {}", down.name()), spec));
    }
    for combine in Combine::all() {
        let spec = with(&|spec, router| {
            spec.bank.combine = combine.clone();
            if combine.needs_shared_slice() {
                spec.bank.slices = Slices::Shared;
            }
            if combine.reads_inputs() {
                router.granularity = Granularity::Task;
            }
        });
        specs.push((format!("combine {}", combine.name()), spec));
    }
    let by_task = |router: &mut RouterConfig| router.granularity = Granularity::Task;
    specs.push(("task embedding".into(), with(&|_, router| by_task(router))));
    let gate = GateConfig {
        bias: true,
        ..GateConfig::default()
    };
    let gated = with(&|spec, _| spec.gate = Some(gate.clone()));
    specs.push(("gate".into(), gated));
    let generals = [
        GeneralExpert::RoutedShare(0.7),
        GeneralExpert::Rest,
        GeneralExpert::RestOfSquared,
    ];
    for general in generals {
        let spec = with(&|spec, _| spec.general = Some(general));
        specs.push((format!("general expert {general:?}"), spec));
    }
    for selection in [Selection::StraightThrough, Selection::StraightThroughDense] {
        let spec = with(&|_, router| router.selection = selection);
        specs.push((format!("selection {selection:?}"), spec));
    }
    let segments = SegmentStart::default();
    for (name, start) in [
        ("gaussian", Start::Gaussian),
        ("segments", Start::Segments(segments)),
    ] {
        let spec = with(&|spec, _| spec.bank.start = start);
        specs.push((format!("start {name}"), spec));
    }
    let aligned = with(&|spec, _| spec.bank.scaling = Scaling::Aligned(1.0));
    specs.push(("scaling aligned".into(), aligned));
    let rooted = with(&|spec, _| spec.bank.gate_gradient = GateGradient::SquareRoot);
    specs.push(("gate gradient".into(), rooted));
    specs.iter_mut().for_each(|(_, spec)| fit(spec));
    specs.extend(compositions());
    specs.extend(recipe::names().map(|name| (format!("recipe {name}"), spec(name, SHAPE))));
    specs
}

/// The same without mixtures whose experts are parts of one: they neither change places nor stand alone.
fn of_equal_experts() -> Vec<(String, AdapterSpec)> {
    let mut specs = specs();
    specs.retain(|(_, spec)| spec.bank.costs().is_none());
    specs
}

/// Every place where a mixture may act, and every part of a model that may decide.
fn compositions() -> Vec<(String, AdapterSpec)> {
    let with = |composition: Composition, router_scope: RouterScope| {
        let mut spec = AdapterSpec {
            targets: vec!["all-linear".into()],
            composition,
            router_scope,
            router: Some(RouterConfig::default()),
            ..AdapterSpec::default()
        };
        (spec.bank.rank, spec.bank.num_experts) = (SHAPE.rank, SHAPE.experts);
        if composition.pool().is_some() {
            spec.bank.slices = Slices::Shared;
        }
        (format!("{composition:?} {router_scope:?}"), spec)
    };
    let first = |layerwise, depth| {
        RouterScope::FirstPass(FirstPassConfig {
            layerwise,
            depth,
            width: 3,
            scaling_pass_value: 0.2,
            ..FirstPassConfig::default()
        })
    };
    let pool = |weights| Composition::Pool(PoolConfig { stride: 2, weights });
    vec![
        with(Composition::FeedForward, RouterScope::Site),
        with(Composition::FeedForward, RouterScope::Model),
        with(Composition::FeedForwardSites, RouterScope::Site),
        with(Composition::FeedForwardSites, RouterScope::Model),
        with(Composition::Block, RouterScope::Site),
        with(Composition::Site, RouterScope::Layer),
        with(Composition::Site, first(false, 1)),
        with(Composition::Site, first(false, 3)),
        with(Composition::Site, first(true, 2)),
        with(pool(PoolWeights::PerToken), RouterScope::Site),
        with(pool(PoolWeights::Released), RouterScope::Site),
        with(pool(PoolWeights::SummedLogits), RouterScope::Site),
    ]
}

/// Groups of one and of two experts, for a scorer that knows groups.
fn with_groups(mut scorer: ScorerConfig) -> ScorerConfig {
    if let Some(groups) = scorer.task_groups() {
        *groups = [("a", vec!["x"]), ("b", vec!["y", "z"])]
            .map(|(group, tasks)| (group.into(), tasks.into_iter().map(String::from).collect()))
            .into();
        let tasks = ["y", "x", "z"].map(String::from);
        scorer.for_tasks(&tasks).expect("groups of these tasks");
    }
    scorer
}

/// The base model with fresh adapters, into which values are to be put.
fn attached(spec: &AdapterSpec) -> Bert {
    let mut model = base(SHAPE.seed);
    let (tasks, seed) = (4, Seed::new(9));
    model.attach(spec, tasks, seed, &device()).expect("valid");
    model
}

fn hidden(model: &Bert) -> Tensor<2> {
    let rows = Rows::new(SHAPE);
    rows.real(&rows.forward(model).0)
}

/// Number and name of every parameter below a module.
#[derive(Default)]
struct Found(BTreeSet<ParamId>);

impl ModuleVisitor for Found {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.insert(param.id);
    }
}

/// The numbers of all parameters of adapters and routers, as the modules have them and as their
/// lists say.
fn numbers(model: &mut Bert) -> (BTreeSet<ParamId>, BTreeSet<ParamId>) {
    let (mut found, mut listed) = (Found::default(), BTreeSet::new());
    model
        .sites()
        .iter()
        .for_each(|(_, site)| site.visit(&mut found));
    let layers = model.layer_routers();
    layers.iter().for_each(|(_, layer)| layer.visit(&mut found));
    model.part().iter().for_each(|part| part.visit(&mut found));
    let pooled = model.pooled_mut();
    pooled.iter().for_each(|(_, site)| site.visit(&mut found));
    let mut names = BTreeSet::new();
    let visited = model.visit_tensors(|path, tensor| {
        assert!(
            names.insert(format!("{path}.{}", tensor.name())),
            "{names:?}"
        );
        listed.insert(tensor.id());
        Ok::<_, Infallible>(())
    });
    let Ok(()) = visited;
    (found.0, listed)
}

#[test]
fn a_part_lists_all_of_its_tensors() {
    for (name, spec) in specs() {
        let (found, listed) = numbers(&mut random(&spec, 1));
        assert_eq!(
            found, listed,
            "{name}: parameters, and those that are listed"
        );
    }
}

#[test]
fn what_was_saved_is_what_is_loaded() {
    for (name, spec) in specs() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let model = random(&spec, SHAPE.seed);
        save_adapter(folder.path(), &model, &spec, "base").expect("writable");
        let mut read = attached(&spec);
        load_adapter(folder.path(), &mut read, &spec).expect("its own files");
        assert_close(hidden(&read), hidden(&model), 0.0, &name);
    }
}

#[test]
fn the_order_of_experts_is_a_matter_of_names() {
    let order = |experts: usize| -> Vec<usize> {
        let routed = experts.min(SHAPE.experts);
        (0..routed)
            .map(|i| (i + 1) % routed)
            .chain(routed..experts)
            .collect()
    };
    for (name, spec) in of_equal_experts() {
        // Layers with numbers of experts of their own are turned one by one in `experts.rs`.
        let is_single = spec.router.is_none() && spec.bank.num_experts == 1;
        if !spec.experts.by_layer().is_empty() || is_single {
            continue;
        }
        let model = random(&spec, SHAPE.seed);
        let mut turned = random(&reordered(&spec, &order(SHAPE.experts)), SHAPE.seed);
        copy_experts(&model, &mut turned, order);
        assert_close(hidden(&turned), hidden(&model), GRADIENT, &name);
    }
}

/// Values of all tensors by name.
fn values(model: &Bert) -> Vec<(String, Vec<f32>)> {
    let mut values = Vec::new();
    let visited = model.clone().visit_tensors(|path, tensor| {
        values.push((format!("{path}.{}", tensor.name()), tensor.values()));
        Ok::<_, Infallible>(())
    });
    let Ok(()) = visited;
    values
}

/// Fills the tensors of one model with those of another, site by site and layer by layer.
fn fill_all(to: &mut Bert, from: &Bert, origins: &Origins) {
    let sites = from.sites();
    for ((_, to), (_, from)) in to.sites_mut().into_iter().zip(sites) {
        // Beside mixed feed-forward parts there are sites of one expert, which no other joins.
        let is_same = to.bank.num_experts() == from.bank.num_experts();
        let none = Origins::default();
        let origins = if is_same { &none } else { origins };
        fill(to.tensors(), &from.clone().tensors(), origins);
    }
    let layers = from.layer_routers();
    for ((_, to), (_, from)) in to.layer_routers_mut().into_iter().zip(layers) {
        fill(to.router.tensors(), &from.router.clone().tensors(), origins);
    }
    if let (Some(to), Some(from)) = (to.part_mut(), from.part()) {
        let mut from = from.clone();
        for ((_, to), (_, from)) in to.tensors().into_iter().zip(from.tensors()) {
            fill(to, &from, origins);
        }
    }
    let mut from = from.clone();
    for ((_, to), (_, from)) in to.pooled_mut().into_iter().zip(from.pooled_mut()) {
        if let (Some(to), Some(from)) = (&mut to.router, &mut from.router) {
            fill(to.tensors(), &from.tensors(), origins);
        }
    }
}

/// The specification with one more expert, in the first group where there are groups.
fn larger(spec: &AdapterSpec) -> AdapterSpec {
    let mut larger = spec.clone();
    let new = larger.bank.num_experts;
    larger.bank.num_experts += 1;
    let scorer = larger.router.as_mut().map(|router| &mut router.scorer);
    if let Some(ScorerConfig::Grouped(grouped)) = scorer {
        grouped.groups[0].push(new);
    }
    larger
}

#[test]
fn an_expert_that_joins_and_leaves_changes_no_bit_of_the_others() {
    for (name, spec) in of_equal_experts() {
        // The general expert is the last one of its bank: program tests grow it. What experts started
        // as depends on how many there are.
        let is_fixed = spec.general.is_some() || spec.bank.start.reads_weight();
        if !spec.experts.by_layer().is_empty() || is_fixed {
            continue;
        }
        let experts = spec.bank.num_experts;
        let model = random(&spec, SHAPE.seed);
        let mut grown = attached(&larger(&spec));
        let places: Vec<_> = (0..experts).map(Some).chain([None]).collect();
        fill_all(
            &mut grown,
            &model,
            &Origins::default().with(Axis::Expert, places),
        );
        let mut back = attached(&spec);
        let places = (0..experts).map(Some).collect();
        fill_all(
            &mut back,
            &grown,
            &Origins::default().with(Axis::Expert, places),
        );
        assert_eq!(values(&back), values(&model), "{name}");
        assert_close(hidden(&back), hidden(&model), 0.0, &name);
    }
}

#[test]
fn one_expert_alone_is_what_the_mixture_has_of_it() {
    for (name, spec) in of_equal_experts() {
        if !spec.experts.by_layer().is_empty() || spec.router.is_none() || spec.general.is_some() {
            continue;
        }
        let model = random(&spec, SHAPE.seed);
        let mut single = spec.clone();
        (single.router, single.bank.num_experts) = (None, 1);
        let mut alone = random(&single, SHAPE.seed);
        copy_experts(&model, &mut alone, |_| vec![1]);
        let mut rows = Rows::new(SHAPE);
        let expected = rows.real(&rows.forward(&alone).0);
        let labels = vec![Some(1); SHAPE.batch];
        let labels = expert_labels(&labels, spec.bank.num_experts, &device()).expect("in range");
        rows.guidance.labels = Some(labels);
        let found = rows.real(&rows.forward(&model).0);
        assert_close(found, expected, GRADIENT, &name);
    }
}
