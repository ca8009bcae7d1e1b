//! Tensors as buffers of numbers row by row.

use burn::cubecl::prelude::CubeCount;
use burn::tensor::Shape;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

/// A tensor without values, on the device and of the type of another.
pub(crate) fn empty(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), like.dtype)
}

/// A launch of `x * y * z` cubes.
pub(crate) fn count(x: usize, y: usize, z: usize) -> CubeCount {
    CubeCount::Static(x as u32, y as u32, z as u32)
}
