//! The training loop: phases, steps, transforms and events.

mod balance;
mod begin;
mod checkpointed;
mod decisions;
mod event;
mod fit;
mod guard;
mod init;
mod micro_batch;
mod rehearsal;
mod setup;
mod step;
mod streaming;
mod trainer;
pub(crate) mod transform;
mod validate;
mod watch;

pub use event::{Event, Kept, StageEvent};
pub use fit::fit;
pub(crate) use init::check_init;
pub(crate) use rehearsal::{padded, rehearse};
pub use setup::Setup;
pub use step::{Step, StepValues};
pub use trainer::{Start, Trained, train};
pub(crate) use trainer::{State, go_on};
pub use watch::Found;
