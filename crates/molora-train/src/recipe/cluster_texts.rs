//! How training texts are divided into clusters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::bundled;

/// Who reads the training texts, and how k-means divides them; how many clusters there are is a number of
/// the routers' scorer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterTexts {
    /// Folder of the sentence encoder, `bundled:NAME`, or `org/name` on the Hub; its tokens are
    /// averaged.
    pub encoder: String,
    /// Centroids are found on at most so many texts, drawn at random.
    pub texts: usize,
    /// k-means starts so many times, and the best result counts.
    pub starts: usize,
    /// At most so many steps of k-means from each start.
    pub iterations: usize,
}

impl Default for ClusterTexts {
    /// The bundled sentence encoder, which is the one of MoCLE's code.
    fn default() -> Self {
        Self {
            encoder: bundled::MODEL.into(),
            texts: 20_000,
            starts: 4,
            iterations: 100,
        }
    }
}

impl ClusterTexts {
    /// What is out of range, each with the name of its field.
    pub fn problems(&self) -> Vec<String> {
        let numbers = [
            ("texts", self.texts),
            ("starts", self.starts),
            ("iterations", self.iterations),
        ];
        let zero = numbers.into_iter().filter(|(_, value)| *value == 0);
        zero.map(|(field, _)| format!("{field} is 0, expected at least 1"))
            .collect()
    }
}
