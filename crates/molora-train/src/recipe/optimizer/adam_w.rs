//! burn's AdamW, with its state on the device of the parameters from the beginning.

use burn::optim::{AdamW, DynOptimizer, DynState, LearningRate, StateSink, StateSource};
use burn::tensor::Device;
use burn::tensor::kind::BridgeTensor;

/// AdamW whose state is read onto a device of one's own.
///
/// burn 0.22.1 reads a kept state onto its default device and moves it in the next step. The default is the
/// graphics processor wherever a backend for it is compiled in, which a run on the processor must not open.
pub(super) struct AdamWOn {
    pub(super) adam_w: AdamW,
    /// Without autodiff: nothing is differentiated through the state.
    pub(super) device: Device,
}

impl DynOptimizer for AdamWOn {
    fn step_dyn(
        &self,
        rank: usize,
        rate: LearningRate,
        tensor: BridgeTensor,
        gradient: BridgeTensor,
        state: Option<DynState>,
    ) -> (BridgeTensor, Option<DynState>) {
        self.adam_w.step_dyn(rank, rate, tensor, gradient, state)
    }

    fn to_device_dyn(&self, state: DynState, device: &Device) -> DynState {
        self.adam_w.to_device_dyn(state, device)
    }

    fn state_flatten(&self, prefix: &str, state: &DynState, out: &mut StateSink) {
        self.adam_w.state_flatten(prefix, state, out);
    }

    fn state_unflatten(
        &self,
        rank: usize,
        prefix: &str,
        source: &mut StateSource,
        _: &Device,
    ) -> Option<DynState> {
        self.adam_w
            .state_unflatten(rank, prefix, source, &self.device)
    }
}
