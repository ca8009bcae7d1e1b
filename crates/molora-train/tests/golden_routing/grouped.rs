//! AT-MoE with both readings of its inner level.

use burn::tensor::{Device, Int, Tensor};
use molora_adapters::ExpertBank;
use molora_kernels::random::Seed;
use molora_routing::{
    Granularity, GroupedConfig, GroupedScorer, Router, RouterConfig, Scorer, ScorerConfig,
    WithinGroup, WithinScorer,
};
use molora_testkit::autodiff_device;

use crate::site::{Site, Variant, bank, bank_gradients, cases, leaf};

#[test]
fn golden_methods_at_moe_token() {
    at_moe("at_moe_token", WithinGroup::Token);
}

#[test]
fn golden_methods_at_moe_static() {
    at_moe("at_moe_static", WithinGroup::Static);
}

fn at_moe(name: &str, within: WithinGroup) {
    let device = autodiff_device();
    for case in cases(name) {
        let (document, expected) = (case.json("case.json").expect("found by it"), case.tensors());
        let sizes = document["hyper"]["group_sizes"].as_array().expect("sizes");
        let mut next = 0;
        let mut groups = Vec::new();
        for size in sizes {
            let size = size.as_u64().expect("a size") as usize;
            groups.push((next..next + size).collect());
            next += size;
        }
        for variant in Variant::all(&document, &expected) {
            check(&variant, &groups, within, &device);
        }
    }
}

fn check(variant: &Variant, groups: &[Vec<usize>], within: WithinGroup, device: &Device) {
    let site = Site::new(variant.expected, 1.0, device);
    let router = router(variant, groups, within, device);
    let routed = router.route(&site.route_input());
    variant.check_routed(&routed);
    let group_weights = groups.iter().map(|group| {
        let weights = routed.weights.clone();
        weights.narrow(2, group[0], group.len()).sum_dim(2)
    });
    let group_weights = Tensor::cat(group_weights.collect(), 2);
    variant.check_tokens("output.group_weights", group_weights);

    let general = general(variant, device);
    let lambda = variant.number("lambda");
    let scaling = variant.expected.tensor::<1>("input.scaling", device);
    let mixture = site.mixture(routed.weights * scaling.unsqueeze());
    let fallback = general.up(general.down(site.x.clone(), None), None);
    let y = site.base() + mixture.mul_scalar(lambda) + fallback.mul_scalar(1.0 - lambda);
    let Some(gradients) = variant.check_site(&site, y) else {
        return;
    };
    let (a, b) = bank_gradients(&general, &gradients);
    variant.check_gradient("grad.A_general", a.squeeze_dim::<2>(0));
    variant.check_gradient("grad.B_general", b.squeeze_dim::<2>(0));
    let Scorer::Grouped(scorer) = &router.scorer else {
        panic!("a grouped scorer");
    };
    let to_group = scorer.group.val().grad(&gradients).expect("tracked");
    variant.check_gradient("grad.W_group", to_group.transpose());
    let to_within = match &scorer.within {
        WithinScorer::Static(scores) => {
            in_slots(scores.val().grad(&gradients).expect("tracked"), scorer)
        }
        WithinScorer::Token(weight) => weight.val().grad(&gradients).expect("tracked").transpose(),
    };
    variant.check_gradient("grad.W_within", to_within);
}

fn router(
    variant: &Variant,
    groups: &[Vec<usize>],
    within: WithinGroup,
    device: &Device,
) -> Router {
    let config = RouterConfig {
        scorer: ScorerConfig::Grouped(GroupedConfig {
            groups: groups.to_vec(),
            within,
            group_temperature: variant.number("tau_group"),
            within_temperature: variant.number("tau_within"),
        }),
        granularity: match variant.text("granularity") {
            Some("sequence") => Granularity::Sequence,
            _ => Granularity::Token,
        },
        ..RouterConfig::default()
    };
    let group = variant.expected.tensor::<2>("param.W_group", device);
    let num_experts = groups.iter().map(Vec::len).sum();
    config.validate(num_experts).expect("the case's groups");
    let mut router = config.init(group.dims()[0], num_experts, 0, Seed::new(0), device);
    let Scorer::Grouped(scorer) = &mut router.scorer else {
        panic!("a grouped scorer");
    };
    scorer.group = leaf(group.transpose());
    let table = variant.expected.tensor::<2>("param.W_within", device);
    scorer.within = match within {
        WithinGroup::Static => WithinScorer::Static(leaf(by_expert(table, scorer))),
        WithinGroup::Token => WithinScorer::Token(leaf(table.transpose())),
    };
    router
}

/// The slot of each expert in the case's table `[G, largest group]`, read row by row.
fn slots(scorer: &GroupedScorer) -> Vec<i64> {
    let largest = scorer.groups().iter().map(Vec::len).max().expect("groups");
    let groups = scorer.groups().iter().enumerate();
    groups
        .flat_map(|(g, group)| (0..group.len()).map(move |slot| (g * largest + slot) as i64))
        .collect()
}

/// The case's table as one number per expert.
fn by_expert(table: Tensor<2>, scorer: &GroupedScorer) -> Tensor<1> {
    let slots = Tensor::<1, Int>::from_data(slots(scorer).as_slice(), &table.device());
    table.flatten::<1>(0, 1).select(0, slots)
}

/// One number per expert as the case's table; 0 in unused slots.
fn in_slots(values: Tensor<1>, scorer: &GroupedScorer) -> Tensor<2> {
    let groups = scorer.groups().len();
    let largest = scorer.groups().iter().map(Vec::len).max().expect("groups");
    let values = values.into_data().try_to_vec::<f32>().expect("f32");
    let mut table = vec![0.0_f32; groups * largest];
    for (slot, value) in slots(scorer).into_iter().zip(values) {
        table[slot as usize] = value;
    }
    let table = Tensor::<1>::from_floats(table.as_slice(), &molora_testkit::device());
    table.reshape([groups, largest])
}

/// The LoRA that was trained on all data, as a bank of one.
fn general(variant: &Variant, device: &Device) -> ExpertBank {
    let matrix = |name| variant.expected.tensor::<2>(name, device);
    let scaling = variant.expected.floats("input.scaling_general")[0];
    let a = matrix("param.A_general").unsqueeze();
    bank(a, matrix("param.B_general").unsqueeze(), f64::from(scaling))
}
