//! The training loop: legs, steps, transforms, and what is told on the way.

mod balance;
mod checkpointed;
mod event;
mod setup;
mod step;
mod trainer;
pub(crate) mod transform;
mod validate;

pub use event::{Event, Kept, StageEvent};
pub use setup::Setup;
pub use step::{Step, StepValues};
pub use trainer::{Start, Trained, train};
