//! The constant factor on an adapter's delta.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::AdapterError;

/// The factor `s` by which the low-rank delta is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// `s = 1` (SAMoRA, whose scale is learned).
    Unit,
    /// `s = alpha / rank`. Hu et al., LoRA, arXiv:2106.09685, section 4.1.
    AlphaOverRank(f64),
    /// `s = alpha / sqrt(rank)`. Kalajdzievski, rsLoRA, arXiv:2312.03732, theorem 3.2.
    RankStabilized(f64),
    /// `s = sqrt(3 eta D / rank)` for inputs of width D, under which the first steps are as large as those
    /// of full fine-tuning; eta is the ratio of its learning rate to the adapter's. Fan et al., GOAT,
    /// arXiv:2502.16894, theorem 3.5.
    Aligned(f64),
}

impl Scaling {
    /// The factor for a given rank at a site of this input width.
    pub fn factor(self, rank: usize, d_input: usize) -> f64 {
        match self {
            Self::Unit => 1.0,
            Self::AlphaOverRank(alpha) => alpha / rank as f64,
            Self::RankStabilized(alpha) => alpha / (rank as f64).sqrt(),
            Self::Aligned(eta) => (3.0 * eta * d_input as f64 / rank as f64).sqrt(),
        }
    }

    /// The alpha that `alpha / rank`, or `alpha / sqrt(rank)` of the stabilised one, is written with for a
    /// given rank; `None` where it differs from site to site.
    pub fn alpha(self, rank: usize) -> Option<f64> {
        match self {
            Self::Unit => Some(rank as f64),
            Self::AlphaOverRank(alpha) | Self::RankStabilized(alpha) => Some(alpha),
            Self::Aligned(_) => None,
        }
    }

    /// Checks that alpha is finite and positive.
    ///
    /// # Errors
    /// [`AdapterError::NotPositive`] otherwise.
    pub fn validate(self) -> Result<(), AdapterError> {
        match self {
            Self::AlphaOverRank(alpha) | Self::RankStabilized(alpha) | Self::Aligned(alpha)
                if !(alpha.is_finite() && alpha > 0.0) =>
            {
                Err(AdapterError::NotPositive {
                    field: "scaling alpha",
                    value: alpha,
                })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_follow_the_papers() {
        assert_eq!(Scaling::Unit.factor(8, 4), 1.0);
        assert_eq!(Scaling::AlphaOverRank(16.0).factor(8, 4), 2.0);
        assert_eq!(Scaling::RankStabilized(16.0).factor(16, 4), 4.0);
        assert_eq!(Scaling::Aligned(0.5).factor(6, 16), 2.0);
    }

    #[test]
    fn alpha_must_be_positive() {
        assert!(Scaling::AlphaOverRank(0.0).validate().is_err());
        assert!(Scaling::RankStabilized(f64::NAN).validate().is_err());
        assert!(Scaling::Unit.validate().is_ok());
    }
}
