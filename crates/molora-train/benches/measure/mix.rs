//! Forward and backward of the gated low-rank mix alone: every expert, or the two selected; on some
//! numbers of experts by the portable definition too.

use anyhow::Result;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use molora_kernels::{LowRankMix, low_rank_mix, portable};

use crate::World;
use crate::clock::{Measured, time};

const EXPERTS: [usize; 7] = [3, 4, 8, 12, 16, 32, 64];
const SELECTIONS: [&str; 2] = ["dense", "top-2"];
const WITH_PORTABLE: [usize; 3] = [3, 8, 64];
const PORTABLE: &str = "-portable";
const TOKENS: usize = 1024;
const WIDTH: usize = 384;
const RANK: usize = 8;

/// A definition of the mix.
type Mix = fn(Option<Tensor<3>>, LowRankMix) -> Tensor<3>;

pub(crate) fn cases() -> Vec<String> {
    let of = |ending: &'static str| {
        move |experts| SELECTIONS.map(|selection| format!("{experts}-{selection}{ending}"))
    };
    let portable = WITH_PORTABLE.into_iter().flat_map(of(PORTABLE));
    EXPERTS
        .into_iter()
        .flat_map(of(""))
        .chain(portable)
        .collect()
}

pub(crate) fn run(case: &str, world: &World) -> Option<Result<Measured>> {
    cases().iter().find(|name| *name == case)?;
    let (case, mix): (_, Mix) = match case.strip_suffix(PORTABLE) {
        Some(case) => (case, portable::low_rank_mix),
        None => (case, low_rank_mix),
    };
    let (experts, selection) = case.split_once('-')?;
    let selected = (selection == "top-2").then_some(2);
    Some(measure(mix, experts.parse().ok()?, selected, world))
}

fn measure(mix: Mix, experts: usize, selected: Option<usize>, world: &World) -> Result<Measured> {
    let device = world.device.clone().autodiff();
    let base = random([1, TOKENS, WIDTH], &world.device);
    let low = random([1, TOKENS, RANK], &device).require_grad();
    let b = random([experts * RANK, WIDTH], &device).require_grad();
    let weights = weights(experts, selected, &device).require_grad();
    let upstream = random([1, TOKENS, WIDTH], &device);
    let measured = time(world.effort, &world.device, || {
        let operands = LowRankMix {
            low: low.clone(),
            weights: Some(weights.clone()),
            is_selection: selected.is_some(),
            rank_scale: None,
            factor: 2.0,
            b: b.clone(),
        };
        // A base of its own, to be changed in place as in a model.
        let mixed = mix(Some(base.clone() * 1.0), operands);
        drop((mixed * upstream.clone()).sum().backward());
        Ok(())
    })?;
    let active = selected.unwrap_or(experts);
    Ok(Measured {
        tokens: Some(TOKENS as f64),
        flops: Some(6.0 * (TOKENS * active * RANK * WIDTH) as f64),
        ..measured
    })
}

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// Weights `[1, tokens, experts]`: of each token equal for its two selected experts, or all.
fn weights(experts: usize, selected: Option<usize>, device: &Device) -> Tensor<3> {
    let weight = |index: usize| {
        let (token, expert) = (index / experts, index % experts);
        let first = token * 7 % experts;
        match selected {
            None => 1.0 / experts as f32,
            Some(_) if expert == first || expert == (first + 1) % experts => 0.5,
            Some(_) => 0.0,
        }
    };
    let values: Vec<f32> = (0..TOKENS * experts).map(weight).collect();
    Tensor::from_data(TensorData::new(values, [1, TOKENS, experts]), device)
}
