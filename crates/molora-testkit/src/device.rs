//! The device on which tests run.

use burn::tensor::Device;

/// The device that the environment variable `BURN_DEVICE` names, the CPU backend `flex` otherwise.
///
/// Unlike `Device::default()`, no GPU is chosen unasked: a test gives the same result on every
/// machine unless somebody asks for another backend.
///
/// # Panics
/// If `BURN_DEVICE` names a backend that is unknown or not compiled in.
pub fn device() -> Device {
    device_for(std::env::var_os("BURN_DEVICE").is_some())
}

/// As [`device`], with gradients.
pub fn autodiff_device() -> Device {
    device().autodiff()
}

fn device_for(chosen: bool) -> Device {
    if chosen {
        Device::default()
    } else {
        Device::flex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_flex_unless_chosen() {
        assert_eq!(device_for(false), Device::flex());
        assert!(!device_for(false).is_autodiff());
    }

    #[test]
    fn the_autodiff_device_tracks_gradients() {
        assert!(autodiff_device().is_autodiff());
    }
}
