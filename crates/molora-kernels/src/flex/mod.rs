//! What the fast paths for the CPU backend `flex` share: tensors as slices and matrices, the loops
//! over their rows, and functions of one number.
//!
//! The loops are plain code over slices, compiled once per instruction set by `pulp`. Nothing here
//! knows an operation.

pub(crate) mod buffer;
pub(crate) mod math;
pub(crate) mod matrix;
pub(crate) mod saved;
pub(crate) mod simd;
pub(crate) mod team;
pub(crate) mod views;

use burn::backend::{BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind};
use burn::tensor::{DType, Device, Tensor};

use self::buffer::FlexTensor;

/// Whether the fast path takes `tensor`: f32 on `flex`, and not empty. Must hold for every float
/// input of an operation: a tensor of another backend would panic in it.
pub(crate) fn supports<const D: usize>(tensor: &Tensor<D>) -> bool {
    // Devices are equal whether or not they track gradients.
    tensor.dtype() == DType::F32
        && tensor.device() == Device::flex()
        && tensor.shape().num_elements() > 0
}

/// The primitive of a tensor on `flex` whose device tracks no gradients. Small operations go this way:
/// to route them through the backends takes longer than to compute them.
pub(crate) fn untracked(tensor: DispatchTensor) -> Option<FlexTensor> {
    match tensor {
        DispatchTensor {
            kind: DispatchTensorKind::Flex(BackendTensor::Float(primitive)),
            autodiff: DispatchAutodiffContext::Disabled,
        } => Some(primitive),
        _ => None,
    }
}

/// The tensor of a primitive that [`untracked`] gave, or of one like it.
pub(crate) fn tensor<const D: usize>(primitive: FlexTensor) -> Tensor<D> {
    Tensor::from_dispatch(DispatchTensor {
        kind: DispatchTensorKind::Flex(BackendTensor::Float(primitive)),
        autodiff: DispatchAutodiffContext::Disabled,
    })
}

#[cfg(test)]
mod tests {
    use burn::tensor::FloatDType;

    use super::*;

    #[test]
    fn only_filled_f32_tensors_are_taken() {
        let device = Device::flex();
        let tensor = Tensor::<2>::ones([2, 3], &device);
        assert!(supports(&tensor));
        assert!(supports(&Tensor::<2>::ones([2, 3], &device.autodiff())));
        assert!(!supports(&tensor.clone().cast(FloatDType::F64)));
        assert!(!supports(&tensor.cast(FloatDType::BF16)));
        assert!(!supports(&Tensor::<2>::ones([0, 3], &Device::flex())));
    }
}
