//! What training and evaluation need from a model: its inputs, losses and parameters.

mod auxiliary;
mod inputs;
mod new_values;
mod parameters;
mod task_loss;

pub(crate) use auxiliary::{Auxiliary, sum_of};
pub use inputs::{inputs, inputs_for};
pub use molora_models::with_stable_ids;
pub use new_values::NewValues;
pub use parameters::count;
pub(crate) use parameters::{find_not_finite, ids_by_kind, set_trainable};
pub(crate) use task_loss::{row_losses, task_losses, token_losses};
