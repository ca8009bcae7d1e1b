//! f32 matmuls of large square and tall shapes, by the frozen linear of molora-kernels.

use anyhow::Result;
use burn::tensor::{Distribution, Tensor};

use crate::World;
use crate::clock::{Measured, time};

/// Rows, inner width, columns: square ones, and those of the models that the bench has.
const SHAPES: [[usize; 3]; 6] = [
    [1024, 1024, 1024],
    [2048, 2048, 2048],
    [1024, 384, 384],
    [1024, 384, 1536],
    [1024, 1536, 384],
    [8192, 768, 768],
];

fn name([rows, inner, cols]: [usize; 3]) -> String {
    format!("{rows}x{inner}x{cols}")
}

pub(crate) fn cases() -> Vec<String> {
    SHAPES.map(name).to_vec()
}

pub(crate) fn run(case: &str, world: &World) -> Option<Result<Measured>> {
    let shape = SHAPES.into_iter().find(|shape| name(*shape) == case)?;
    Some(measure(shape, world))
}

fn measure([rows, inner, cols]: [usize; 3], world: &World) -> Result<Measured> {
    let random = |shape: [usize; 2]| {
        let distribution = Distribution::Uniform(-1.0, 1.0);
        Tensor::<2>::random(shape, distribution, &world.device)
    };
    let (x, weight) = (random([rows, inner]), random([inner, cols]));
    let measured = time(world.effort, &world.device, || {
        drop(molora_kernels::linear(x.clone(), weight.clone(), None));
        Ok(())
    })?;
    Ok(Measured {
        flops: Some(2.0 * (rows * inner * cols) as f64),
        ..measured
    })
}
