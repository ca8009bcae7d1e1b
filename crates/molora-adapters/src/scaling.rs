//! The constant factor on an adapter's delta.

use serde::{Deserialize, Serialize};

use crate::AdapterError;

/// The factor `s` by which the low-rank delta is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// `s = 1` (SAMoRA, whose scale is learned).
    Unit,
    /// `s = alpha / rank`. Hu et al., LoRA, arXiv:2106.09685, section 4.1.
    AlphaOverRank(f64),
    /// `s = alpha / sqrt(rank)`. Kalajdzievski, rsLoRA, arXiv:2312.03732, theorem 3.2.
    RankStabilized(f64),
}

impl Scaling {
    /// The factor for a given rank.
    pub fn factor(self, rank: usize) -> f64 {
        match self {
            Self::Unit => 1.0,
            Self::AlphaOverRank(alpha) => alpha / rank as f64,
            Self::RankStabilized(alpha) => alpha / (rank as f64).sqrt(),
        }
    }

    /// Checks that alpha is finite and positive.
    ///
    /// # Errors
    /// [`AdapterError::NotPositive`] otherwise.
    pub fn validate(self) -> Result<(), AdapterError> {
        match self {
            Self::AlphaOverRank(alpha) | Self::RankStabilized(alpha)
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
        assert_eq!(Scaling::Unit.factor(8), 1.0);
        assert_eq!(Scaling::AlphaOverRank(16.0).factor(8), 2.0);
        assert_eq!(Scaling::RankStabilized(16.0).factor(16), 4.0);
    }

    #[test]
    fn alpha_must_be_positive() {
        assert!(Scaling::AlphaOverRank(0.0).validate().is_err());
        assert!(Scaling::RankStabilized(f64::NAN).validate().is_err());
        assert!(Scaling::Unit.validate().is_ok());
    }
}
