//! What every operation is tested for, by the list [`OPERATIONS`](crate::OPERATIONS).

use burn::tensor::{Device, Tensor, TensorData};

use crate::OPERATIONS;
use crate::flex::simd::tests::on_every_instruction_set;
use crate::testing::{Case, values};

fn cases() -> impl Iterator<Item = &'static Case> {
    OPERATIONS.iter().copied().flatten()
}

/// The output, and the gradients of the sum of its squares.
fn evaluate(case: &Case, shape: [usize; 2]) -> Vec<TensorData> {
    let device = Device::flex().autodiff();
    let leaf = |(index, shape): (u64, [usize; 2])| {
        let data = TensorData::new(values(shape[0] * shape[1], index + 1), shape);
        Tensor::<2>::from_data(data, &device).require_grad()
    };
    let shapes = std::iter::once(shape).chain((case.others)(shape));
    let leaves: Vec<Tensor<2>> = (0..).zip(shapes).map(leaf).collect();
    let out = (case.fast)(&leaves);
    let mut data = vec![out.to_data()];
    // Zeros of every input, so that there is a gradient where the operation has none.
    let zeros = leaves.iter().map(|leaf| leaf.clone().sum() * 0.0);
    let total = zeros.fold(out.square().sum(), |total, zero| total + zero);
    let grads = total.backward();
    let grads = leaves.iter().map(|leaf| leaf.grad(&grads));
    data.extend(grads.map(|grad| grad.expect("it is tracked").into_data()));
    data
}

#[track_caller]
fn assert_same_bits(found: &[TensorData], expected: &[TensorData]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        found.assert_eq(expected, true);
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for case in cases().filter(|case| case.is_row_wise) {
        // Odd lengths on purpose.
        let results = on_every_instruction_set(|| evaluate(case, [37, 301]));
        let [expected, others @ ..] = results;
        others
            .iter()
            .for_each(|other| assert_same_bits(other, &expected));
    }
}

#[test]
fn gradients_are_the_same_bits_for_any_number_of_threads() {
    let run = |case, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.expect("threads can be started");
        pool.install(|| evaluate(case, [600, 192]))
    };
    for case in cases() {
        let expected = run(case, 1);
        for threads in [2, 3, 5] {
            assert_same_bits(&run(case, threads), &expected);
        }
    }
}

/// The names of those that save something show that it is rounded at all.
#[test]
fn what_is_saved_in_bf16_leaves_values_as_they_are_and_gradients_near() {
    let mut changed = Vec::new();
    for case in cases() {
        let expected = evaluate(case, [36, 96]);
        let found = crate::saving_in_bf16(|| evaluate(case, [36, 96]));
        assert_same_bits(&found[..1], &expected[..1]);
        if found != expected {
            changed.push(case.name);
        }
        for (found, expected) in found[1..].iter().zip(&expected[1..]) {
            let [found, expected] =
                [found, expected].map(|data| Tensor::<2>::from_data(data.clone(), &Device::flex()));
            molora_testkit::assert_close(found, expected, 2e-2, case.name);
        }
    }
    for name in ["gelu", "gelu_tanh", "layer_norm", "rms_norm", "silu_gate"] {
        assert!(changed.contains(&name), "{name} is not among {changed:?}");
    }
    let attends = |name: &&str| name.starts_with("attention");
    assert!(changed.iter().any(attends), "attention, of {changed:?}");
}

/// Rows of ordinary numbers, each with one number of another kind somewhere.
fn with_one_of(kind: f32, [rows, cols]: [usize; 2]) -> Tensor<2> {
    let mut numbers = values(rows * cols, 7);
    for row in 1..rows {
        numbers[row * cols + row * 5 % cols] = kind;
    }
    Tensor::from_data(
        TensorData::new(numbers, [rows, cols]),
        &Device::flex().autodiff(),
    )
}

/// Denormals are no zeros, infinities stay what they are, and NaN is not lost, as in the definitions.
#[test]
fn numbers_of_every_kind_go_where_the_definitions_send_them() {
    let kinds = [
        1e-40,
        -f32::from_bits(1),
        f32::MIN_POSITIVE,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    let shape = [20, 33];
    for (kind, case) in kinds.into_iter().flat_map(|k| cases().map(move |c| (k, c))) {
        let Some(plain) = case.plain else { continue };
        let x = with_one_of(kind, shape);
        let others = (case.others)(shape).into_iter();
        let others = others.map(|shape| Tensor::ones(shape, &x.device()));
        let inputs: Vec<Tensor<2>> = std::iter::once(x.clone()).chain(others).collect();
        let [found, expected] = [case.fast, plain].map(|run| {
            let out = run(&inputs).into_data();
            out.try_to_vec::<f32>().expect("f32")
        });
        for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
            let is_same = found == expected
                || found.is_nan() && expected.is_nan()
                || (found - expected).abs() <= 4e-6 * expected.abs().max(1.0);
            let name = case.name;
            assert!(
                is_same,
                "{name} with {kind:e} at {index}: {found:e}, not {expected:e}"
            );
        }
    }
}

#[test]
fn a_denormal_is_not_taken_for_zero() {
    let tiny = [1e-40, -1e-40, f32::from_bits(3), -f32::from_bits(1)];
    let x = Tensor::<2>::from_floats([tiny], &Device::flex());
    for case in cases() {
        let Some((run, factor)) = case.tiny else {
            continue;
        };
        let out = run(x.clone()).into_data().try_to_vec::<f32>().expect("f32");
        for (out, x) in out.into_iter().zip(tiny) {
            // Half of the least number, and what its sum with another may lose.
            let error = (f64::from(out) - factor * f64::from(x)).abs();
            assert!(
                error <= 2.0 * f64::from(f32::from_bits(1)),
                "{}: {out:e} of {x:e}",
                case.name
            );
        }
    }
}
