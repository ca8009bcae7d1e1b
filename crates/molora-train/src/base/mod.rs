//! What a run is based on: base models by name, devices, what was measured of the machine, and files.

mod adapter;
pub mod base_model;
pub mod bundled;
mod device;
pub(crate) mod digest;
mod embedded;
pub(crate) mod files;
pub mod machine;
pub(crate) mod place;
pub(crate) mod sketch;
mod stop;

pub use adapter::AdapterFolder;
pub use device::{DeviceSpec, is_opening_device};
pub use place::write_atomically;
pub use sketch::Sketch;
pub(crate) use stop::{chat_stop_tokens, stop_tokens, write_stop_tokens};
