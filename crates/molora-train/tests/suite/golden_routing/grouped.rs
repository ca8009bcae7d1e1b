//! AT-MoE with both readings of its inner level.

use burn::tensor::{Device, Int, Tensor};
use molora_adapters::GeneralExpert;
use molora_models::RouterScope;
use molora_routing::scorer::{GroupedConfig, GroupedScorer, WithinGroup, WithinScorer};
use molora_routing::{Granularity, Guidance, Scorer, ScorerConfig};
use molora_testkit::autodiff_device;

use super::site::{Site, Variant, bank_gradients, spec};
use crate::cases::cases;
use crate::common::leaf;

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
    let site = site(variant, groups, within, device);
    let (y, routed) = site.forward(Guidance::default());
    variant.check_routed(&routed);
    let group_weights = groups.iter().map(|group| {
        let weights = routed.weights.clone();
        weights.narrow(2, group[0], group.len()).sum_dim(2)
    });
    let group_weights = Tensor::cat(group_weights.collect(), 2);
    variant.check_tokens("output.group_weights", group_weights);
    let Some(gradients) = variant.check_site(&site, y) else {
        return;
    };
    let (a, b) = bank_gradients(site.bank(), &gradients);
    // The bank holds `s B`, so the gradient of `B` is `s` times that of its own.
    let b = b * scalings(variant, &molora_testkit::device());
    let routed = a.dims()[0] - 1;
    variant.check_gradient("grad.A", a.clone().narrow(0, 0, routed));
    variant.check_gradient("grad.B", b.clone().narrow(0, 0, routed));
    variant.check_gradient("grad.A_general", a.narrow(0, routed, 1).squeeze_dim::<2>(0));
    variant.check_gradient("grad.B_general", b.narrow(0, routed, 1).squeeze_dim::<2>(0));
    let Scorer::Grouped(scorer) = &site.router().scorer else {
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

/// The scaling of each expert, the general one last, `[E + 1, 1, 1]`.
fn scalings(variant: &Variant, device: &Device) -> Tensor<3> {
    let names = ["input.scaling", "input.scaling_general"];
    let parts = names.map(|name| variant.expected.tensor::<1>(name, device));
    let all = Tensor::cat(parts.to_vec(), 0);
    let experts = all.dims()[0];
    all.reshape([experts, 1, 1])
}

/// A site of the recipe whose general expert is the last one, with the case's routers.
fn site(variant: &Variant, groups: &[Vec<usize>], within: WithinGroup, device: &Device) -> Site {
    let expected = variant.expected;
    let mut spec = spec("at-moe", &expected.shape("param.A"), 1.0);
    spec.general = Some(GeneralExpert::RoutedShare(variant.number("lambda")));
    // One site is a layer of its own.
    spec.router_scope = RouterScope::Site;
    let router = spec.router.as_mut().expect("a router");
    router.scorer = ScorerConfig::Grouped(GroupedConfig {
        groups: groups.to_vec(),
        within,
        group_temperature: variant.number("tau_group"),
        within_temperature: variant.number("tau_within"),
        ..GroupedConfig::default()
    });
    if variant.text("granularity") == Some("sequence") {
        router.granularity = Granularity::Sequence;
    }
    let with_general = |name: &str| {
        let general = expected.tensor::<2>(&format!("{name}_general"), device);
        Tensor::cat(
            vec![expected.tensor::<3>(name, device), general.unsqueeze()],
            0,
        )
    };
    let b = with_general("param.B") * scalings(variant, device);
    let mut site = Site::new(expected, &spec, (with_general("param.A"), b), device);
    let Scorer::Grouped(scorer) = site.scorer_mut() else {
        panic!("a grouped scorer");
    };
    scorer.group = leaf(expected.tensor::<2>("param.W_group", device).transpose());
    let table = expected.tensor::<2>("param.W_within", device);
    scorer.within = match within {
        WithinGroup::Static => WithinScorer::Static(leaf(by_expert(table, scorer))),
        WithinGroup::Token => WithinScorer::Token(leaf(table.transpose())),
    };
    site
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
