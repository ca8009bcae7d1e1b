//! Devices by name: the one place outside `molora-kernels` that names a backend.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{Device, Tensor};

use super::machine;
use crate::TrainError;

/// Whether the processor's settings were read.
static TUNED: Once = Once::new();

/// This process's number among the ranks of its machine.
static LOCAL_RANK: AtomicUsize = AtomicUsize::new(0);

/// How many devices are being opened.
static OPENING: AtomicUsize = AtomicUsize::new(0);

/// Whether a device is being opened right now: a panic is then how a backend says that it is not
/// there, which [`DeviceSpec::open`] returns as an error. A program whose panic hook stays silent
/// meanwhile shows its user that error alone.
pub fn is_opening_device() -> bool {
    OPENING.load(Ordering::SeqCst) > 0
}

/// A device that a run can be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The processor, through burn's `flex` backend.
    Cpu,
    /// The processor, through burn's older `ndarray` backend: a cross-check.
    NdArray,
    /// A graphics processor through WebGPU (or Vulkan or Metal, as compiled).
    Wgpu,
    /// An NVIDIA graphics processor.
    Cuda,
}

impl DeviceSpec {
    const ALL: [(&str, Self); 4] = [
        ("cpu", Self::Cpu),
        ("ndarray", Self::NdArray),
        ("wgpu", Self::Wgpu),
        ("cuda", Self::Cuda),
    ];

    /// Says which of the ranks on this machine the process is, from 0: of several graphics processors each rank opens one
    /// of its own, and ranks share them where there are fewer. For [`Self::Wgpu`] rank 0 has the one that is preferred.
    pub fn set_local_rank(rank: usize) {
        LOCAL_RANK.store(rank, Ordering::SeqCst);
    }

    /// Whether it computes in the memory of the program itself.
    pub fn is_processor(self) -> bool {
        matches!(self, Self::Cpu | Self::NdArray)
    }

    /// Opens the device and runs one small operation on it; on the processor the first time in a
    /// program also sets what suits it, see [`tune`](crate::base::machine::tune).
    ///
    /// # Errors
    /// [`TrainError::Device`] if the program was built without it or it does not answer.
    pub fn open(self) -> Result<Device, TrainError> {
        self.check()?;
        // Backends report a missing driver or adapter by panicking.
        OPENING.fetch_add(1, Ordering::SeqCst);
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let device = self.device()?;
            Tensor::<1>::ones([2], &device).sum().into_scalar::<f32>();
            Some(device)
        }));
        OPENING.fetch_sub(1, Ordering::SeqCst);
        match opened {
            Ok(Some(device)) => {
                if self == Self::Cpu {
                    TUNED.call_once(machine::tune);
                }
                Ok(device)
            }
            Ok(None) => Err(self.not_built()),
            Err(panic) => {
                let problem = format!("does not answer: {}", panic_text(&*panic));
                Err(self.refused(problem))
            }
        }
    }

    /// Checks what can be known without opening the device.
    ///
    /// # Errors
    /// [`TrainError::Device`] if the program was built without it or its driver is not there.
    pub fn check(self) -> Result<(), TrainError> {
        if !self.is_built() {
            return Err(self.not_built());
        }
        self.check_driver().map_err(|problem| self.refused(problem))
    }

    fn not_built(self) -> TrainError {
        self.refused(format!(
            "this program was built without it; build with --features {}",
            self.feature()
        ))
    }

    fn refused(self, problem: String) -> TrainError {
        TrainError::Device {
            device: self.to_string(),
            problem,
        }
    }

    /// Whether the program was built with the device's backend.
    pub fn is_built(self) -> bool {
        match self {
            Self::Cpu => cfg!(feature = "flex"),
            Self::NdArray => cfg!(feature = "ndarray"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Cuda => cfg!(feature = "cuda"),
        }
    }

    /// burn's backend of the device.
    pub fn backend(self) -> &'static str {
        self.feature()
    }

    fn feature(self) -> &'static str {
        match self {
            Self::Cpu => "flex",
            Self::NdArray => "ndarray",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }

    fn check_driver(self) -> Result<(), String> {
        let nodes = ["/dev/nvidiactl", "/dev/dxg"];
        let has_driver = || nodes.iter().any(|node| std::path::Path::new(node).exists());
        if self == Self::Cuda
            && cfg!(feature = "cuda")
            && cfg!(target_os = "linux")
            && !has_driver()
        {
            return Err("no NVIDIA driver is loaded on this machine".into());
        }
        Ok(())
    }

    fn device(self) -> Option<Device> {
        match self {
            #[cfg(feature = "flex")]
            Self::Cpu => Some(Device::flex()),
            #[cfg(feature = "ndarray")]
            #[allow(deprecated)] // kept as a cross-check as long as burn has it
            Self::NdArray => Some(Device::ndarray()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Some(wgpu_device(LOCAL_RANK.load(Ordering::SeqCst))),
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                let count = Device::enumerate(burn::tensor::DeviceType::Cuda).len();
                Some(Device::cuda(
                    LOCAL_RANK.load(Ordering::SeqCst) % count.max(1),
                ))
            }
            #[allow(unreachable_patterns)] // all of them may be compiled in
            _ => None,
        }
    }
}

/// The graphics processor of a rank: one of its own, if there are so many.
#[cfg(feature = "wgpu")]
fn wgpu_device(rank: usize) -> Device {
    use burn::tensor::DeviceKind;
    let own = || {
        let device = Device::wgpu(DeviceKind::DiscreteGpu(rank));
        Tensor::<1>::ones([2], &device).sum().into_scalar::<f32>();
        device
    };
    // The first takes what is preferred, which may be no such processor. That one is not there, a panic says.
    let found = (rank > 0).then(|| catch_unwind(own).ok()).flatten();
    found.unwrap_or_else(|| Device::wgpu(DeviceKind::DefaultDevice))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text
        .or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("no reason given");
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = Self::ALL
            .iter()
            .find(|(_, spec)| spec == self)
            .expect("every device has a name");
        f.write_str(name)
    }
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, spec)| *spec).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            format!("no device `{text}`, expected one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (name, spec) in DeviceSpec::ALL {
            assert_eq!(name.parse(), Ok(spec));
            assert_eq!(spec.to_string(), name);
        }
        assert!("gpu".parse::<DeviceSpec>().is_err());
    }

    #[test]
    fn a_device_that_was_not_built_in_is_an_error() {
        let result = DeviceSpec::Cuda.open();
        let text = result.expect_err("no driver in tests").to_string();
        assert!(
            text.starts_with("device cuda: ") && !text.contains('\n'),
            "{text}"
        );
    }
}
