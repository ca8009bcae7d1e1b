//! How many experts there are, and where.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many experts the sites have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExpertCount {
    /// `bank.num_experts` at every site.
    #[default]
    Same,
    /// One for each task, in the order of the tasks.
    PerTask,
    /// A number for each group of layers. The model's layers are divided into as many consecutive
    /// groups as there are entries: as evenly as possible, and earlier groups get the larger share
    /// (MoSLD's and MoLA's 2-4-6-8).
    ByLayer(Vec<usize>),
}

impl ExpertCount {
    /// Whether nothing departs from `bank.num_experts`.
    pub fn is_same(&self) -> bool {
        *self == Self::Same
    }

    /// The numbers by group of layers; none if all layers have the same.
    pub fn by_layer(&self) -> &[usize] {
        match self {
            Self::ByLayer(counts) => counts,
            Self::Same | Self::PerTask => &[],
        }
    }

    /// The number of a layer's own, if layers differ.
    ///
    /// # Panics
    /// If `layer` is not below `num_layers`, or there are more entries than layers.
    pub(super) fn at_layer(&self, layer: usize, num_layers: usize) -> Option<usize> {
        let counts = self.by_layer();
        let groups = counts.len();
        assert!(
            layer < num_layers && groups <= num_layers,
            "layer {layer} and {groups} entries for {num_layers} layers"
        );
        let share = num_layers.checked_div(groups)?;
        // The first `larger` groups have `share + 1` layers, the others `share`.
        let larger = num_layers % groups;
        let in_larger = larger * (share + 1);
        let group = match layer < in_larger {
            true => layer / (share + 1),
            false => larger + (layer - in_larger) / share,
        };
        Some(counts[group])
    }
}
