//! Banks that make their matrices, start or combine their experts in another way, as plain LoRAs: what PEFT
//! gets is what the model computes.

use burn::module::Param;
use burn::tensor::Tensor;
use molora_adapters::combine::{
    FactorsConfig, GridConfig, OrthogonalConfig, OutputGroupsConfig, RankGroupsConfig,
};
use molora_adapters::core::OutputGateConfig;
use molora_adapters::down::{FactoredConfig, FrozenSparseConfig};
use molora_adapters::{BankConfig, SegmentStart, Slices, Start};
use molora_models::Adaptable;
use molora_models::peft::{detach, expert, merge_into, static_mixture};

use super::write::{assert_same_logits, decoder, with_experts, written};

fn shared(bank: BankConfig) -> BankConfig {
    BankConfig {
        slices: Slices::Shared,
        ..bank
    }
}

fn banks() -> Vec<(&'static str, BankConfig)> {
    let bank = |num_experts| BankConfig {
        num_experts,
        rank: 4,
        ..BankConfig::default()
    };
    let starting = |start, num_experts| BankConfig {
        start,
        ..bank(num_experts)
    };
    let segments = SegmentStart {
        full_residual: true,
        ..SegmentStart::default()
    };
    vec![
        ("pissa", starting(Start::Pissa, 1)),
        ("olora", starting(Start::Olora, 1)),
        (
            "segments",
            starting(Start::Segments(SegmentStart::default()), 2),
        ),
        (
            "all of the segments",
            starting(Start::Segments(segments), 2),
        ),
        (
            "factored",
            BankConfig {
                down: FactoredConfig { subspace: 3 }.into(),
                ..bank(2)
            },
        ),
        (
            "frozen",
            BankConfig {
                down: FrozenSparseConfig::default().into(),
                ..bank(2)
            },
        ),
        (
            "rank groups",
            shared(BankConfig {
                combine: RankGroupsConfig { ranks: 2 }.into(),
                ..bank(3)
            }),
        ),
        (
            "output groups",
            shared(BankConfig {
                combine: OutputGroupsConfig { groups: 2 }.into(),
                ..bank(3)
            }),
        ),
        (
            "grid",
            shared(BankConfig {
                combine: GridConfig.into(),
                core: OutputGateConfig::default().into(),
                ..bank(3)
            }),
        ),
        (
            "factors",
            BankConfig {
                combine: FactorsConfig { splits: 2 }.into(),
                ..bank(3)
            },
        ),
    ]
}

#[test]
fn every_bank_of_fixed_weights_is_one_exact_adapter() {
    let base = decoder("llama");
    for (what, bank) in banks() {
        let model = with_experts(&base, &["q_proj", "down_proj"], bank);
        let adapter = static_mixture(&model).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_same_logits(&written(&base, &adapter, "default"), &model, what);
        let mut merged = model.clone();
        detach(&mut merged);
        merge_into(&mut merged, &adapter);
        assert_same_logits(&merged, &model, what);
    }
}

/// What was taken out of the layer for the others stays out.
#[test]
fn one_expert_of_every_bank_is_what_the_bank_has_of_it() {
    let base = decoder("llama");
    for (what, bank) in banks().into_iter().filter(|(_, bank)| bank.num_experts > 1) {
        let model = with_experts(&base, &["q_proj", "down_proj"], bank);
        let adapter = expert(&model, 1).unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut alone = model.clone();
        for (_, site) in alone.sites_mut() {
            site.bank = site.bank.expert(1);
        }
        assert_same_logits(&written(&base, &adapter, "default"), &alone, what);
    }
}

/// A start of the frozen weight is without effect until something trains.
#[test]
fn a_fresh_start_from_the_weight_exports_no_change() {
    let base = decoder("llama");
    for (what, bank) in banks()
        .into_iter()
        .filter(|(_, bank)| bank.start.reads_weight())
    {
        let share = 1.0 / bank.num_experts as f64;
        let mut model = base.clone();
        let spec = molora_models::AdapterSpec {
            targets: vec!["q_proj".into()],
            bank: bank.clone(),
            ..Default::default()
        };
        let (seed, device) = (
            molora_kernels::random::Seed::new(1),
            molora_testkit::device(),
        );
        model.attach(&spec, 1, seed, &device).expect("valid");
        // Equal weights of all experts, in their up-projections; c is 1 / E unless all is taken out.
        if !what.starts_with("all") {
            for (_, site) in model.sites_mut() {
                let weighed: Tensor<2> = site.bank.b.val().mul_scalar(share);
                site.bank.b = Param::from_tensor(weighed);
            }
        }
        let adapter = static_mixture(&model).expect("static");
        assert_same_logits(&written(&base, &adapter, "default"), &base, what);
    }
}

#[test]
fn outputs_that_are_made_orthogonal_are_refused() {
    let bank = BankConfig {
        combine: OrthogonalConfig::default().into(),
        num_experts: 2,
        ..BankConfig::default()
    };
    let model = with_experts(&decoder("llama"), &["q_proj"], bank);
    let error = static_mixture(&model).expect_err("not linear").to_string();
    assert!(
        error.contains("no LoRA computes what orthogonal"),
        "{error}"
    );
}
