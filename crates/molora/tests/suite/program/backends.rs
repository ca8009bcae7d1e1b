//! The same training on every backend that is compiled in: `cargo xtask backends` builds two more.

use std::sync::atomic::AtomicBool;

use molora_train::base::DeviceSpec;
use molora_train::run::train;

use crate::world::{World, small, steps};

/// Losses and gradient norms of a run of `samora`, step by step.
fn numbers(device: DeviceSpec, num_steps: usize) -> Vec<(f64, f64)> {
    let world = World::new();
    let mut recipe = small("samora");
    recipe.stages[0].steps = num_steps;
    let mut request = world.request(recipe, "run");
    request.device = device;
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let steps = steps(&request.out).into_iter();
    steps.map(|step| (step.loss, step.gradient_norm)).collect()
}

fn check(device: DeviceSpec, num_steps: usize) {
    let [found, expected] = [device, DeviceSpec::Cpu].map(|device| numbers(device, num_steps));
    assert_eq!((found.len(), expected.len()), (num_steps, num_steps));
    for (step, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        let is_close = |a: f64, b: f64, tolerance: f64| (a - b).abs() <= tolerance * b.abs();
        let is_same = is_close(found.0, expected.0, 1e-4) && is_close(found.1, expected.1, 1e-3);
        assert!(
            is_same,
            "step {step} on {device}: loss and norm {found:?}, on flex {expected:?}"
        );
    }
}

/// A backend that is not compiled in has to say so, and how it is built in.
fn check_if_built(device: DeviceSpec, num_steps: usize) {
    match device.is_built() {
        true => check(device, num_steps),
        false => {
            let error = device.open().expect_err("not built in").to_string();
            assert!(error.contains(&format!("--features {device}")), "{error}");
        }
    }
}

#[test]
fn ndarray_learns_as_flex_does() {
    // Every operation by its portable definition.
    check_if_built(DeviceSpec::NdArray, 50);
}

#[test]
fn wgpu_learns_as_flex_does() {
    check_if_built(DeviceSpec::Wgpu, 20);
}
