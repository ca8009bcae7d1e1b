use super::*;
use crate::core::CoreDims;
use crate::core::CoreNumbers;
use burn::tensor::Device;
use molora_kernels::random::uniform;
use molora_testkit::{FORWARD, assert_close};

fn bank(slices: Slices, num_experts: usize, device: &Device) -> ExpertBank {
    let config = BankConfig {
        slices,
        num_experts,
        rank: 2,
        ..BankConfig::default()
    };
    let mut bank = config.init(
        SiteDims {
            d_input: 5,
            d_output: 4,
        },
        Seed::new(3),
        device,
    );
    let shape = [num_experts * 2, 4];
    bank.b = Param::from_tensor(uniform(shape, 1.0, Seed::new(4), device));
    bank
}

fn input(device: &Device) -> Tensor<3> {
    uniform([2, 3, 5], 1.0, Seed::new(5), device)
}

/// The mixture written as the papers do: a loop over experts.
fn looped(bank: &ExpertBank, x: Tensor<3>, weights: Tensor<3>) -> Tensor<3> {
    let (a, b) = (bank.a_by_expert(), bank.b_by_expert());
    let one = |t: &Tensor<3>, e: usize| -> Tensor<2> {
        let e = e.min(t.dims()[0] - 1);
        t.clone().slice_dim(0, e..e + 1).squeeze_dim(0)
    };
    let terms = (0..bank.num_experts()).map(|e| {
        let delta = x
            .clone()
            .matmul(one(&a, e).unsqueeze())
            .matmul(one(&b, e).unsqueeze());
        delta.mul_scalar(bank.factor) * weights.clone().slice([0..2, 0..3, e..e + 1])
    });
    terms
        .reduce(|sum, term| sum + term)
        .expect("at least one expert")
}

#[test]
fn two_products_equal_the_loop_over_experts() {
    let device = molora_testkit::device();
    for slices in [Slices::Independent, Slices::Shared] {
        let bank = bank(slices, 3, &device);
        let weights = uniform([2, 3, 3], 1.0, Seed::new(6), &device);
        let mixed = bank.up(bank.down(input(&device), None), Some(weights.clone()));
        assert_close(
            mixed,
            looped(&bank, input(&device), weights),
            FORWARD,
            "mixture",
        );
    }
}

#[test]
fn outputs_of_experts_add_up_to_the_mixture() {
    let device = molora_testkit::device();
    for slices in [Slices::Independent, Slices::Shared] {
        let bank = bank(slices, 3, &device);
        let low = bank.down(input(&device), None);
        let width = low.dims()[2];
        let apart = bank.outputs(low.clone().reshape([6, width]));
        let sum = apart.sum_dim(1).reshape([2, 3, 4]);
        assert_close(sum, bank.up(low, None), FORWARD, "sum of outputs");
    }
}

#[test]
fn a_static_mixture_merges_into_the_weight() {
    let device = molora_testkit::device();
    for slices in [Slices::Independent, Slices::Shared] {
        let mut bank = bank(slices, 2, &device);
        let dims = CoreDims {
            slices: slices.count(2),
            experts: 2,
            rank: 2,
            tasks: 0,
        };
        let mut core = crate::core::ScaleConfig.init(dims, Seed::new(0), &device);
        core.sigma = Param::from_tensor(uniform([bank.a.dims()[1]], 1.0, Seed::new(8), &device));
        bank.core = Core::Scale(core);
        let weights = Tensor::<1>::from_data([0.25, 0.75], &device);
        let merged = input(&device).matmul(bank.weight_delta(weights.clone()).unsqueeze());
        let routed = bank.up(bank.down(input(&device), None), Some(weights.unsqueeze()));
        assert_close(merged, routed, FORWARD, "merged delta");
    }
}

#[test]
fn a_new_bank_changes_nothing() {
    let device = molora_testkit::device();
    let dims = SiteDims {
        d_input: 5,
        d_output: 4,
    };
    let bank = BankConfig::default().init(dims, Seed::new(0), &device);
    let delta = bank.up(bank.down(input(&device), None), None);
    assert_eq!(delta.abs().max().into_scalar::<f32>(), 0.0);
    assert!(bank.a.val().abs().max().into_scalar::<f32>() <= 1.0 / 5f32.sqrt());
}

#[test]
fn dropout_acts_in_training_only_and_repeats_by_seed() {
    let device = molora_testkit::device();
    let mut bank = bank(Slices::Shared, 2, &device);
    bank.dropout = 0.5;
    let code = |seed: Option<Seed>| -> Vec<f32> {
        bank.down(input(&device), seed)
            .into_data()
            .try_to_vec()
            .expect("f32")
    };
    assert_eq!(code(Some(Seed::new(1))), code(Some(Seed::new(1))));
    assert_ne!(code(Some(Seed::new(1))), code(Some(Seed::new(2))));
    assert_ne!(code(Some(Seed::new(1))), code(None));
}

/// A of 2 x 4 and its mask from the MoSLD notes' worked example, p 0.1.
#[test]
fn weight_dropout_of_the_worked_example() {
    let device = molora_testkit::device();
    let config = BankConfig {
        slices: Slices::Shared,
        rank: 2,
        weight_dropout: 0.1,
        ..BankConfig::default()
    };
    let dims = SiteDims {
        d_input: 4,
        d_output: 3,
    };
    let mut bank = config.init(dims, Seed::new(0), &device);
    bank.a = Param::from_data([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 1.0]], &device);
    let keep = Tensor::<2>::from_data([[1., 1.], [1., 0.], [0., 1.], [1., 1.]], &device);
    let x = Tensor::<3>::from_data([[[1.0, 2.0, 0.5, -1.0]]], &device);
    let low = bank.down_masked(x, keep.div_scalar(1.0 - bank.weight_dropout()));
    // [1 + 1, 0.5 - 1] / 0.9
    assert_close(low, [[[2.222222, -0.555556]]], FORWARD, "low-rank code");
}

#[test]
fn weight_dropout_acts_in_training_only_and_repeats_by_seed() {
    let device = molora_testkit::device();
    let mut bank = bank(Slices::Shared, 2, &device);
    bank.weight_dropout = 0.5;
    let seed = Seed::new(1);
    let drawn = bank.weight_factors(seed.child("weight"));
    let explicit = bank.down_masked(input(&device), drawn.clone());
    let found = bank.down(input(&device), Some(seed));
    assert_close(found, explicit.clone(), 0.0, "the drawn mask");
    let other = bank.down(input(&device), Some(Seed::new(2)));
    let gap = (other - explicit).abs().max().into_scalar::<f32>();
    assert!(gap > 0.0, "another seed drops other entries");
    let kept = bank.down(input(&device), None);
    let all = input(&device).matmul(bank.a.val().unsqueeze());
    assert_close(kept, all, FORWARD, "evaluation drops nothing");
    let drawn: Vec<f32> = drawn.into_data().try_to_vec().expect("f32");
    assert!(drawn.iter().all(|&factor| factor == 0.0 || factor == 2.0));
}

#[test]
fn a_configuration_without_weight_dropout_reads_as_zero() {
    let text = r#"{"num_experts": 3, "rank": 4, "dropout": 0.05}"#;
    let config: BankConfig = serde_json::from_str(text).expect("an older file");
    assert_eq!(config.weight_dropout, 0.0);
}

#[test]
fn names_of_earlier_files_read_as_what_they_are_called_now() {
    let read = |text: &str| serde_json::from_str::<BankConfig>(text);
    let old = read(r#"{"sharing": "shared_a", "rank_scale": true}"#).expect("an older file");
    let new = read(r#"{"slices": "shared", "core": "scale"}"#).expect("a file of today");
    assert_eq!(old, new);
    assert!(
        read(r#"{"rank_scale": false}"#)
            .expect("older")
            .core
            .is_none()
    );
    let error = read(r#"{"sharing": "independent", "slices": "shared"}"#);
    let error = error.expect_err("twice").to_string();
    assert!(error.contains("duplicate field"), "{error}");
    let error = read(r#"{"core": "scael"}"#).expect_err("misspelt");
    assert!(error.to_string().contains("unknown variant `scael`"));
}

#[test]
fn a_gaussian_start_is_as_wide_as_one_over_the_rank() {
    let device = molora_testkit::device();
    let config = BankConfig {
        start: crate::Start::Gaussian,
        rank: 10,
        ..BankConfig::default()
    };
    let dims = SiteDims {
        d_input: 500,
        d_output: 20,
    };
    let bank = config.init(dims, Seed::new(1), &device);
    let deviation = bank.a.val().square().mean().sqrt();
    assert_close(deviation, [0.1], 0.05, "standard deviation");
    assert_eq!(bank.b.val().abs().max().into_scalar::<f32>(), 0.0);
}

#[test]
fn numbers_out_of_range_are_named() {
    let check = |config: BankConfig, text: &str| {
        assert_eq!(config.validate().expect_err(text).to_string(), text);
    };
    check(
        BankConfig {
            rank: 0,
            ..Default::default()
        },
        "rank is 0, expected at least 1",
    );
    check(
        BankConfig {
            dropout: 1.0,
            ..Default::default()
        },
        "dropout is 1, expected at least 0 and less than 1",
    );
    check(
        BankConfig {
            weight_dropout: f64::NAN,
            ..Default::default()
        },
        "weight_dropout is NaN, expected at least 0 and less than 1",
    );
    let dims = SiteDims {
        d_input: 5,
        d_output: 4,
    };
    assert!(
        BankConfig {
            rank: 5,
            ..Default::default()
        }
        .validate_for(dims)
        .is_err()
    );
}

#[test]
fn cosines_are_those_of_the_weight_changes() {
    let device = molora_testkit::device();
    for slices in [Slices::Independent, Slices::Shared] {
        let bank = bank(slices, 3, &device);
        let change = |expert: usize| -> Vec<f64> {
            let mut weights = [0.0_f32; 3];
            weights[expert] = 1.0;
            let delta = bank.weight_delta(Tensor::from_floats(weights, &device));
            delta.into_data().iter::<f64>().collect()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let changes: Vec<Vec<f64>> = (0..3).map(change).collect();
        for (i, row) in bank.cosines().iter().enumerate() {
            for (j, found) in row.iter().enumerate() {
                let [a, b] = [&changes[i], &changes[j]];
                let expected = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{i} {j}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn a_fresh_bank_has_no_changes_to_compare() {
    let mut bank = bank(Slices::Shared, 2, &molora_testkit::device());
    bank.b = Param::from_tensor(bank.b.val().zeros_like());
    assert_eq!(bank.cosines(), [[0.0, 0.0], [0.0, 0.0]]);
}

/// With weights of a quarter each, experts' gradients double; the output and the weights' gradients stay.
#[test]
fn the_root_of_a_weight_multiplies_the_gradient_of_its_expert() {
    let device = molora_testkit::autodiff_device();
    let of = |gate_gradient| {
        let mut bank = bank(Slices::Shared, 3, &device);
        bank.gate_gradient = gate_gradient;
        let weights = Tensor::<3>::full([2, 3, 3], 0.25, &device).require_grad();
        let y = bank.up(bank.down(input(&device), None), Some(weights.clone()));
        let gradients = y.clone().square().sum().backward();
        let of_weights = weights.grad(&gradients).expect("reached");
        let [a, b] = [&bank.a, &bank.b].map(|matrix| matrix.val().grad(&gradients));
        let matrices = [a, b].map(|gradient| gradient.expect("reached"));
        (y, of_weights, matrices)
    };
    let (plain, to_weights, matrices) = of(GateGradient::Plain);
    let (found, found_to_weights, found_matrices) = of(GateGradient::SquareRoot);
    assert_close(found, plain, 0.0, "output");
    assert_close(found_to_weights, to_weights, FORWARD, "gradient of weights");
    for (found, plain) in found_matrices.into_iter().zip(matrices) {
        assert_close(
            found,
            plain.mul_scalar(2.0),
            FORWARD,
            "gradient of a matrix",
        );
    }
}

#[test]
fn a_root_needs_outputs_that_are_added() {
    let config = BankConfig {
        combine: crate::combine::FactorsConfig::default().into(),
        slices: Slices::Independent,
        gate_gradient: GateGradient::SquareRoot,
        num_experts: 2,
        ..BankConfig::default()
    };
    let error = config.validate().expect_err("no outputs").to_string();
    assert!(
        error.starts_with("gate_gradient = \"square_root\" needs"),
        "{error}"
    );
}
