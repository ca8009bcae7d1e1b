//! X-LoRA's files: LoRAs in folders of their own, and the classifier that weighs them.
//!
//! Buehler and Buehler, arXiv:2402.07148. PEFT 0.21 reads the LoRAs from the paths that the configuration
//! names, calls them `0`, `1`, .. in that order, and the classifier from `adapter_model.safetensors`:
//!
//! ```text
//! base_model.internal_xlora_classifier.layers.N.weight    [units, inputs]
//! base_model.internal_xlora_classifier.layers.N.bias      [units]
//! ```
//!
//! where N counts linear layers, ReLUs and dropouts, and the last layer has a row for each expert, or with
//! `layerwise_scalings` one for each adapted layer and expert.
//!
//! PEFT's own `save_pretrained` takes the segment of a key that equals the name of another adapter for
//! that name: the classifier's layer N goes into the folder of the LoRA called N, without its number,
//! and each LoRA's folder, beside the whole base model, lacks the model's layers that are called like the
//! other LoRAs. [`XLora`] finds the classifier again, and takes the LoRAs from where PEFT does.

mod read;
mod write;

use molora_routing::normaliser::{
    IdentityConfig, ProbabilityConfig, SoftmaxConfig, SoftmaxTwiceConfig,
};
use molora_routing::{NormaliserConfig, Selection};

pub use read::XLora;
pub use write::{why_no_xlora, write_xlora};

/// What stands in front of the number of a classifier's layer.
const CLASSIFIER: &str = "base_model.internal_xlora_classifier.layers.";

/// PEFT's switches for what becomes of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Switches {
    /// `enable_softmax`: over all experts, of scores divided by the temperature.
    softmax: bool,
    /// `enable_softmax_topk`: over those that take part, of what there is by then, without temperature.
    again: bool,
}

impl Switches {
    /// The switches that do what a normaliser does behind a selection.
    fn of(normaliser: &NormaliserConfig, selection: Selection) -> Option<Self> {
        let (softmax, again) = match (normaliser, selection) {
            (NormaliserConfig::Softmax(_), Selection::Dense) => (true, false),
            (NormaliserConfig::Softmax(_), _) => (false, true),
            (NormaliserConfig::Probability(numbers), _) if numbers.floor == 0.0 => (true, false),
            (NormaliserConfig::SoftmaxTwice(_), _) => (true, true),
            (NormaliserConfig::Identity(_), _) => (false, false),
            _ => return None,
        };
        Some(Self { softmax, again })
    }

    fn normaliser(self) -> NormaliserConfig {
        match (self.softmax, self.again) {
            (true, false) => ProbabilityConfig::default().into(),
            (false, true) => SoftmaxConfig.into(),
            (true, true) => SoftmaxTwiceConfig.into(),
            (false, false) => IdentityConfig.into(),
        }
    }
}

/// The numbers of the classifier's hidden layers and of its last one among all of its layers.
fn layer_numbers(depth: usize, has_dropout: bool) -> (Vec<usize>, usize) {
    // A linear layer, a ReLU and a dropout.
    let step = if has_dropout { 3 } else { 2 };
    let hidden = depth.saturating_sub(1);
    (
        (0..hidden).map(|layer| layer * step).collect(),
        hidden * step,
    )
}
