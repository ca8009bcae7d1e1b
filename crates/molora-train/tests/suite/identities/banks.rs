//! Banks that are others at the ends of their ranges.

use burn::module::Param;
use burn::tensor::Tensor;
use molora_adapters::combine::{OutputGroupsConfig, RankGroupsConfig};
use molora_adapters::down::{DenseConfig, Down, FactoredConfig};
use molora_adapters::{Combine, CoreConfig, Slices};
use molora_models::{Adaptable, AdapterSpec, Bert, Composition};
use molora_routing::scorer::UniformConfig;
use molora_routing::{RouterConfig, Selection};
use molora_testkit::{GRADIENT, assert_close};
use proptest::prelude::*;

use super::small::{Rows, Shape, base, device, fresh, random, set_experts, shapes, spec};

fn assert_same(found: &Bert, expected: &Bert, shape: Shape, what: &str) {
    let rows = Rows::new(shape);
    let (found, expected) = (rows.forward(found).0, rows.forward(expected).0);
    assert_close(rows.real(&found), rows.real(&expected), GRADIENT, what);
}

/// Values depend on a parameter's place alone, so that both models have the same.
fn assert_same_values(one: &AdapterSpec, other: &AdapterSpec, shape: Shape, what: &str) {
    let [one, other] = [one, other].map(|spec| random(spec, shape.seed));
    assert_same(&one, &other, shape, what);
}

fn with(spec: &AdapterSpec, change: impl Fn(&mut AdapterSpec)) -> AdapterSpec {
    let mut changed = spec.clone();
    change(&mut changed);
    changed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn malora_with_the_identity_as_coefficients_is_hydralora(shape in shapes()) {
        let malora = with(&spec("malora", shape), |spec| {
            spec.bank.down = FactoredConfig { subspace: shape.rank }.into();
        });
        let hydralora = with(&malora, |spec| {
            spec.bank.down = DenseConfig.into();
            spec.bank.slices = Slices::Shared;
        });
        let mut model = random(&malora, shape.seed);
        for (_, site) in model.sites_mut() {
            let Down::Factored(down) = &mut site.bank.down else {
                panic!("a factored A");
            };
            let eye = Tensor::<2>::eye(shape.rank, &device());
            down.coefficients = Param::from_tensor(eye.repeat_dim(1, shape.experts));
        }
        assert_same(&model, &random(&hydralora, shape.seed), shape, "hidden");
    }

    #[test]
    fn mode_with_one_group_is_hydralora(shape in shapes()) {
        let mode = with(&spec("mode", shape), |spec| {
            spec.bank.combine = RankGroupsConfig { ranks: 0 }.into();
        });
        let hydralora = with(&mode, |spec| spec.bank.combine = Combine::default());
        assert_same_values(&mode, &hydralora, shape, "hidden");
    }

    #[test]
    fn mode_with_one_expert_is_lora(shape in shapes()) {
        let mode = with(&spec("mode", shape), |spec| set_experts(spec, 1));
        let lora = with(&mode, |spec| {
            spec.bank.combine = Combine::default();
            spec.router = None;
        });
        assert_same_values(&mode, &lora, shape, "hidden");
    }

    #[test]
    fn mtlora_with_one_group_is_hydralora(shape in shapes()) {
        let mtlora = with(&spec("mtlora", shape), |spec| {
            spec.bank.combine = OutputGroupsConfig { groups: 1 }.into();
        });
        let hydralora = with(&mtlora, |spec| spec.bank.combine = Combine::default());
        assert_same_values(&mtlora, &hydralora, shape, "hidden");
    }

    /// Whichever of its two ways the product of blocks takes: blocks of one output, and of four.
    #[test]
    fn mtlora_with_the_same_weights_in_all_groups_is_hydralora(
        shape in shapes(), groups in prop::sample::select(vec![2_usize, 4, 8]),
    ) {
        let mtlora = with(&spec("mtlora", shape), |spec| {
            spec.bank.combine = OutputGroupsConfig { groups }.into();
            spec.targets = vec!["query".into()];
            spec.composition = Composition::Site;
            let router = spec.router.as_mut().expect("a router");
            router.scorer = UniformConfig.into();
        });
        let hydralora = with(&mtlora, |spec| spec.bank.combine = Combine::default());
        assert_same_values(&mtlora, &hydralora, shape, "hidden");
    }

    #[test]
    fn flylora_with_all_ranks_is_lora(shape in shapes()) {
        let flylora = with(&spec("flylora", shape), |spec| {
            let router = spec.router.as_mut().expect("a router");
            router.selection = Selection::TopK(shape.experts);
        });
        let lora = with(&flylora, |spec| spec.router = None);
        assert_same_values(&flylora, &lora, shape, "hidden");
    }

    /// Whatever its logits, the only skill has the weight 1.
    #[test]
    fn poly_and_mhr_with_one_skill_are_lora(
        name in prop::sample::select(vec!["poly", "mhr"]), shape in shapes(),
    ) {
        let poly = with(&spec(name, shape), |spec| set_experts(spec, 1));
        let lora = with(&poly, |spec| {
            spec.bank.combine = Combine::default();
            spec.router = None;
        });
        assert_same_values(&poly, &lora, shape, name);
    }

    #[test]
    fn a_grid_of_one_column_is_a_lora_of_rank_one(shape in shapes()) {
        let shape = Shape { rank: 1, ..shape };
        let grid = with(&spec("mor1e", shape), |spec| {
            set_experts(spec, 1);
            spec.bank.core = CoreConfig::default();
            spec.router = None;
        });
        let lora = with(&grid, |spec| spec.bank.combine = Combine::default());
        assert_same_values(&grid, &lora, shape, "hidden");
    }

    #[test]
    fn goat_with_equal_weights_starts_as_the_base(shape in shapes()) {
        let goat = with(&spec("goat", shape), |spec| {
            spec.router = Some(RouterConfig {
                scorer: UniformConfig.into(),
                ..RouterConfig::default()
            });
        });
        assert_same(&fresh(&goat, shape.seed), &base(shape.seed), shape, "hidden");
    }

    #[test]
    fn pissa_and_olora_start_as_the_base(
        name in prop::sample::select(vec!["pissa", "olora"]), shape in shapes(),
    ) {
        let model = fresh(&spec(name, shape), shape.seed);
        assert_same(&model, &base(shape.seed), shape, name);
    }
}
