//! What the kernels for the CubeCL backends (WGPU, CUDA) share.

pub(crate) mod buffer;

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Tensor};

/// Whether the fast path takes `tensor`: f32 on a CubeCL backend, and not empty. Must hold for every
/// float input of an operation: a tensor of another backend would panic in it.
pub(crate) fn supports<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32
        && is_cube(tensor.device().as_dispatch())
        && tensor.shape().num_elements() > 0
}

fn is_cube(device: &DispatchDevice) -> bool {
    match device {
        DispatchDevice::Cube(_) => true,
        DispatchDevice::Autodiff(inner) => is_cube(inner),
        #[allow(unreachable_patterns)] // no other backend may be compiled in
        _ => false,
    }
}
