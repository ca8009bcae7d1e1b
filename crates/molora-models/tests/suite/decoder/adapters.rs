//! Adapters on a decoder: sites, and decisions with a cache.

use std::convert::Infallible;

use burn::tensor::Tensor;
use molora_adapters::{BankConfig, Slices};
use molora_kernels::random::{Seed, uniform};
use molora_models::{
    Adaptable, AdapterSpec, Composition, Decoder, DecoderInput, FirstPassConfig, ForwardContext,
    PoolConfig, RouterScope,
};
use molora_routing::{Granularity, LayerRule, RouterConfig, Selection};
use molora_testkit::{assert_close, device};
use serde_json::Value;

use super::world::{context, gpt2, llama, logits, model, sequence};

const TARGETS: [&str; 4] = ["q_proj", "down_proj", "c_attn.*", "c_fc"];

pub(super) fn spec(config: &Value, router: Option<RouterConfig>) -> AdapterSpec {
    let of_family = match config["model_type"] == "gpt2" {
        true => &TARGETS[2..],
        false => &TARGETS[..2],
    };
    AdapterSpec {
        targets: of_family.iter().map(|&target| target.into()).collect(),
        bank: BankConfig {
            num_experts: 3,
            rank: 2,
            ..Default::default()
        },
        router,
        ..Default::default()
    }
}

/// A model whose adapters act: fresh ones are zero.
fn adapted(config: &Value, spec: &AdapterSpec) -> Decoder {
    adapted_for(config, spec, 1)
}

/// The same for so many tasks.
pub(super) fn adapted_for(config: &Value, spec: &AdapterSpec, tasks: usize) -> Decoder {
    let (mut model, seed) = (model(config, 1), Seed::new(2));
    model
        .attach(spec, tasks, seed, &device())
        .expect("targets match");
    let visited = model.visit_tensors(|path, mut tensor| {
        if tensor.name() == "experts.lora_B" {
            let count = tensor.shape().iter().product();
            let value: Tensor<1> = uniform([count], 0.5, seed.child(path), &device());
            tensor.set(&value.into_data().try_to_vec::<f32>().expect("f32"));
        }
        Ok::<_, Infallible>(())
    });
    let Ok(()) = visited;
    model
}

pub(super) fn routers() -> Vec<AdapterSpec> {
    let granularities = [Granularity::Token, Granularity::Sequence, Granularity::Task];
    let by_site = granularities.map(|granularity| RouterConfig {
        granularity,
        ..Default::default()
    });
    let mut specs: Vec<AdapterSpec> = by_site
        .into_iter()
        .map(|router| spec(&llama(), Some(router)))
        .collect();
    for layer_rule in [LayerRule::PerLayer, LayerRule::First, LayerRule::Vote] {
        let router = RouterConfig {
            granularity: Granularity::Sequence,
            selection: Selection::Argmax,
            ..Default::default()
        };
        specs.push(AdapterSpec {
            router_scope: RouterScope::Layer,
            layer_rule,
            ..spec(&llama(), Some(router))
        });
    }
    specs.push(spec(&llama(), None));
    specs.extend(of_the_model());
    specs
}

/// Mixtures that act in feed-forward parts, and those that the whole model decides or shares.
fn of_the_model() -> Vec<AdapterSpec> {
    let top_2 = RouterConfig {
        selection: Selection::TopK(2),
        ..Default::default()
    };
    let by_sequence = RouterConfig {
        granularity: Granularity::Sequence,
        ..top_2.clone()
    };
    let with = |router: &RouterConfig, composition, router_scope| AdapterSpec {
        composition,
        router_scope,
        ..spec(&llama(), Some(router.clone()))
    };
    let mut specs = Vec::new();
    for composition in [Composition::FeedForward, Composition::FeedForwardSites] {
        specs.push(with(&top_2, composition, RouterScope::Site));
        specs.push(with(&by_sequence, composition, RouterScope::Model));
    }
    for (layerwise, value, router) in [
        (false, 0.0, &top_2),
        (true, 0.3, &top_2),
        (false, 0.3, &by_sequence),
    ] {
        let first = FirstPassConfig {
            layerwise,
            depth: if layerwise { 3 } else { 1 },
            width: 5,
            scaling_pass_value: value,
            ..Default::default()
        };
        let scope = RouterScope::FirstPass(first);
        specs.push(with(router, Composition::Site, scope));
    }
    let pool = Composition::Pool(PoolConfig::default());
    let mut pooled = with(&top_2, pool, RouterScope::Site);
    pooled.bank.slices = Slices::Shared;
    specs.push(pooled);
    specs
}

#[test]
fn sites_have_the_paths_of_the_files() {
    let paths = |config: &Value| {
        let mut model = model(config, 1);
        model
            .attach(&spec(config, None), 1, Seed::new(1), &device())
            .expect("targets match")
    };
    let layer = |index| {
        ["self_attn.q_proj", "mlp.down_proj"].map(|part| format!("model.layers.{index}.{part}"))
    };
    assert_eq!(paths(&llama()), [layer(0), layer(1)].concat());
    let layer = |index| {
        [
            "attn.c_attn.q",
            "attn.c_attn.k",
            "attn.c_attn.v",
            "mlp.c_fc",
        ]
        .map(|part| format!("transformer.h.{index}.{part}"))
    };
    assert_eq!(paths(&gpt2()), [layer(0), layer(1)].concat());
    assert_eq!(model(&llama(), 1).linears().len(), 14);
    assert_eq!(model(&gpt2(), 1).linears().len(), 12);
    let mut model = model(&llama(), 1);
    let bad = AdapterSpec {
        targets: vec!["query".into()],
        ..spec(&llama(), None)
    };
    assert!(model.attach(&bad, 1, Seed::new(1), &device()).is_err());
}

#[test]
fn a_fresh_adapter_changes_nothing_and_a_trained_one_does() {
    for config in [llama(), gpt2()] {
        let base = model(&config, 1);
        let input = DecoderInput::from_sequences(&[sequence(5, 1)], &device());
        let before = logits(&base, &input);
        let mut fresh = base.clone();
        let spec = spec(&config, Some(RouterConfig::default()));
        fresh
            .attach(&spec, 1, Seed::new(2), &device())
            .expect("targets match");
        assert_close(logits(&fresh, &input), before.clone(), 0.0, "fresh");
        let after = logits(&adapted(&config, &spec), &input);
        let difference = (after - before).abs().max().into_scalar::<f32>();
        assert!(difference > 1e-2, "{difference}");
    }
}

/// Decisions per sequence are the prompt's; without a cache, by routers that see the prompt alone.
#[test]
fn a_cache_keeps_the_decisions_of_the_prompt() {
    for spec in routers() {
        let model = adapted(&llama(), &spec);
        let (prompt, all) = (4, sequence(9, 3));
        let part = |from: usize, to: usize| {
            let rows = [all[from..to].to_vec()];
            DecoderInput::from_sequences(&rows, &device())
        };
        let tasks = Tensor::<2>::ones([1, 1], &device());
        let context = |mask: Tensor<2>| ForwardContext {
            tasks: Some(tasks.clone()),
            ..ForwardContext::new(mask)
        };
        let mut mask = Tensor::ones([1, all.len()], &device());
        if spec
            .router
            .as_ref()
            .is_some_and(|r| r.granularity == Granularity::Sequence)
        {
            let answer = Tensor::zeros([1, all.len() - prompt], &device());
            mask = mask.slice_assign([0..1, prompt..all.len()], answer);
        }
        let before = model.forward(&part(0, all.len()), &context(mask));
        let mut cache = model.cache();
        let mut outputs = Vec::new();
        for (from, to) in [(0, prompt), (prompt, prompt + 1), (prompt + 1, all.len())] {
            let input = part(from, to);
            let context = context(input.mask.clone().float());
            let output = model.forward_cached(&input, &mut cache, &context);
            assert_eq!(output.routes.len(), before.routes.len(), "{spec:?}");
            outputs.push(output.hidden);
        }
        assert_close(
            Tensor::cat(outputs, 1),
            before.hidden,
            1e-5,
            &format!("{spec:?}"),
        );
    }
}

#[test]
fn gradients_reach_the_adapters_and_only_them() {
    let device = molora_testkit::autodiff_device();
    let folder = super::world::folder(&llama(), &super::world::tensors(&llama(), 1));
    let mut model = Decoder::from_folder(folder.path(), &device).expect("a whole folder");
    let spec = spec(&llama(), Some(RouterConfig::default()));
    model
        .attach(&spec, 1, Seed::new(1), &device)
        .expect("targets match");
    let input = DecoderInput::from_sequences(&[sequence(6, 1)], &device);
    let output = model.forward(&input, &context(&input));
    let gradients = model.logits(output.hidden).square().mean().backward();
    for (path, adapter) in model.sites() {
        let gradient = adapter.bank.b.val().grad(&gradients);
        let gradient = gradient.unwrap_or_else(|| panic!("{path}: no gradient"));
        assert!(gradient.abs().max().into_scalar::<f32>() > 0.0, "{path}");
    }
    for (path, linear) in model.linears() {
        assert!(linear.weight.wide().grad(&gradients).is_none(), "{path}");
    }
}
