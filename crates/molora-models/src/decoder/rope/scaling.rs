//! Changes of rotary positions for texts longer than those of pretraining.

use std::f64::consts::TAU;

use crate::ModelError;
use crate::checkpoint::ConfigFile;

/// A change of the frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Slow ones are divided by `factor`, fast ones are kept, those between are interpolated: Llama
    /// 3.1 (Grattafiori et al., arXiv:2407.21783, section 3.4.2) as in its published code.
    Llama3 {
        /// The divisor of slow frequencies.
        factor: f64,
        /// Frequencies that turn at most this often in `original_max_tokens` are slow.
        low_freq_factor: f64,
        /// Frequencies that turn at least this often in `original_max_tokens` are fast.
        high_freq_factor: f64,
        /// Longest text of pretraining, in tokens.
        original_max_tokens: usize,
    },
    /// YaRN (Peng et al., arXiv:2309.00071, section 3): as `Llama3`, with an interpolation that is
    /// linear in the number of the pair instead of the number of turns, and a factor on queries and keys.
    Yarn {
        /// The divisor of slow frequencies.
        factor: f64,
        /// Pairs up to this number keep their frequency.
        first: f64,
        /// Pairs from this number on are slow.
        last: f64,
        /// Factor on the turned queries and keys, `0.1 ln(factor) + 1` if the file has no other.
        attention_factor: f64,
    },
    /// NTK-aware scaling by the length L of the pass, where that exceeds `max_tokens`: the base `theta`
    /// becomes `theta * (factor * L / max_tokens - factor + 1)^(W / (W - 2))` for a width W (Peng et al.,
    /// arXiv:2309.00071, section 3.3 and appendix B.1, "dynamic NTK").
    Dynamic {
        /// The stretch at a length of `2 * max_tokens`, less one.
        factor: f64,
        /// Longest text of pretraining, in tokens.
        max_tokens: usize,
    },
    /// A divisor for each pair, of one list up to a length of `original_max_tokens` and of another
    /// beyond (LongRoPE, Ding et al., arXiv:2402.13753; Phi-3, arXiv:2404.14219).
    LongRope {
        /// The divisors up to that length.
        short: Vec<f64>,
        /// The divisors beyond it.
        long: Vec<f64>,
        /// Longest text of pretraining, in tokens.
        original_max_tokens: usize,
        /// Factor on the turned queries and keys of all lengths.
        attention_factor: f64,
    },
}

/// The rotary positions that scalings are about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain {
    pub(super) theta: f64,
    /// Numbers of a head that turn.
    pub(super) width: usize,
    /// Longest text of pretraining, where the family keeps it outside of the object of the scaling.
    pub(super) original_max_tokens: Option<usize>,
}

const MAX: &str = "max_position_embeddings";
const ORIGINAL: &str = "original_max_position_embeddings";

impl RopeScaling {
    /// Reads the scaling that an object `rope` of a file describes.
    pub(super) fn from_config(
        rope: &ConfigFile,
        file: &ConfigFile,
        plain: Plain,
        long_rope_names: &[&str],
    ) -> Result<Self, ModelError> {
        // `type` is the older name; files that were saved again hold both.
        let (new, old) = (rope.text("rope_type")?, rope.text("type")?);
        let is_long = |name: &str| name == "longrope" || long_rope_names.contains(&name);
        if let (Some(new), Some(old)) = (new, old)
            && new != old
            && !(is_long(new) && is_long(old))
        {
            let text = format!("is \"{new}\", but type beside it is \"{old}\"");
            return Err(rope.problem("rope_type", &text));
        }
        let field = if new.is_some() { "rope_type" } else { "type" };
        match rope.text(field)?.unwrap_or("default") {
            name if long_rope_names.contains(&name) => Self::long_rope(rope, file, plain),
            "default" => Ok(Self::Default),
            "linear" => Ok(Self::Linear {
                factor: rope.number("factor")?,
            }),
            "llama3" => Self::llama3(rope, file, plain),
            "yarn" => Self::yarn(rope, file, plain),
            "dynamic" => Self::dynamic(rope, file, plain),
            "longrope" => Self::long_rope(rope, file, plain),
            _ => {
                let types = "default, linear, llama3, yarn, dynamic or longrope";
                Err(rope.unsupported(field, types))
            }
        }
    }

    fn llama3(rope: &ConfigFile, file: &ConfigFile, plain: Plain) -> Result<Self, ModelError> {
        let (low, high) = (
            rope.number("low_freq_factor")?,
            rope.number("high_freq_factor")?,
        );
        if low >= high {
            let expected = format!("more than low_freq_factor {low}");
            return Err(rope.unsupported("high_freq_factor", &expected));
        }
        Ok(Self::Llama3 {
            factor: rope.number("factor")?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_tokens: original(rope, file, plain)?,
        })
    }

    fn yarn(rope: &ConfigFile, file: &ConfigFile, plain: Plain) -> Result<Self, ModelError> {
        let original = original(rope, file, plain)?;
        let factor = factor(rope, file, original)?;
        let (fast, slow) = (
            rope.optional_number("beta_fast")?.unwrap_or(32.0),
            rope.optional_number("beta_slow")?.unwrap_or(1.0),
        );
        // The number of the pair that turns so often in a text of pretraining.
        let width = plain.width as f64;
        let pair =
            |turns: f64| width * (original as f64 / (turns * TAU)).ln() / (2.0 * plain.theta.ln());
        let (mut first, mut last) = (pair(fast), pair(slow));
        if rope.flag("truncate", true)? {
            (first, last) = (first.floor(), last.ceil());
        }
        let own = rope.optional_number("attention_factor")?;
        let scales = (
            rope.optional_number("mscale")?,
            rope.optional_number("mscale_all_dim")?,
        );
        let grown = |scale: f64| match factor > 1.0 {
            true => 0.1 * scale * factor.ln() + 1.0,
            false => 1.0,
        };
        let attention_factor = match (own, scales) {
            (Some(own), _) => own,
            (None, (Some(scale), Some(of_all))) => grown(scale) / grown(of_all),
            _ => grown(1.0),
        };
        Ok(Self::Yarn {
            factor,
            first: first.max(0.0),
            last: last.min(width - 1.0),
            attention_factor,
        })
    }

    fn dynamic(rope: &ConfigFile, file: &ConfigFile, plain: Plain) -> Result<Self, ModelError> {
        if plain.width <= 2 {
            let text = format!(
                "is \"dynamic\", which {} turned numbers of a head are too few for",
                plain.width
            );
            return Err(rope.problem("rope_type", &text));
        }
        Ok(Self::Dynamic {
            factor: rope.number("factor")?,
            max_tokens: file.size(MAX)?,
        })
    }

    fn long_rope(rope: &ConfigFile, file: &ConfigFile, plain: Plain) -> Result<Self, ModelError> {
        let original = original(rope, file, plain)?;
        let factor = factor(rope, file, original)?;
        let grown = match factor > 1.0 {
            true => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
            false => 1.0,
        };
        let pairs = plain.width.div_ceil(2);
        Ok(Self::LongRope {
            short: rope.numbers("short_factor", pairs)?,
            long: rope.numbers("long_factor", pairs)?,
            original_max_tokens: original,
            attention_factor: rope.optional_number("attention_factor")?.unwrap_or(grown),
        })
    }

    /// What of the length of a pass changes the frequencies: equal numbers mean equal frequencies. None if
    /// the length changes nothing.
    pub(super) fn stage(&self, length: usize) -> Option<usize> {
        match self {
            Self::Dynamic { max_tokens, .. } => Some(length.max(*max_tokens)),
            Self::LongRope {
                original_max_tokens,
                ..
            } => Some(usize::from(length > *original_max_tokens)),
            _ => None,
        }
    }

    /// Radians per token of each pair, in a pass of `length` tokens.
    pub(super) fn frequencies(&self, plain: Plain, length: usize) -> Vec<f64> {
        let width = plain.width as f64;
        let theta = match *self {
            Self::Dynamic { factor, max_tokens } => {
                let times = length.max(max_tokens) as f64 / max_tokens as f64;
                plain.theta * (factor * times - (factor - 1.0)).powf(width / (width - 2.0))
            }
            _ => plain.theta,
        };
        let pairs = (0..plain.width).step_by(2).enumerate();
        let frequency =
            |(pair, at): (usize, usize)| self.apply(theta.powf(-(at as f64) / width), pair, length);
        pairs.map(frequency).collect()
    }

    /// Factor on cosines and sines.
    pub(super) fn attention_factor(&self) -> f64 {
        match *self {
            Self::Yarn {
                attention_factor, ..
            }
            | Self::LongRope {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        }
    }

    fn apply(&self, frequency: f64, pair: usize, length: usize) -> f64 {
        match self {
            Self::Default | Self::Dynamic { .. } => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_tokens: original,
            } => {
                let turns = *original as f64 * frequency / TAU;
                let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - share) * frequency / factor + share * frequency
            }
            Self::Yarn {
                factor,
                first,
                last,
                ..
            } => {
                // Wider than nothing.
                let range = if first == last { 0.001 } else { last - first };
                let slow = ((pair as f64 - first) / range).clamp(0.0, 1.0);
                slow * frequency / factor + (1.0 - slow) * frequency
            }
            Self::LongRope {
                short,
                long,
                original_max_tokens,
                ..
            } => {
                let divisors = if length > *original_max_tokens {
                    long
                } else {
                    short
                };
                frequency / divisors[pair]
            }
        }
    }
}

/// Longest text of pretraining: the family's own field, or the object's, or the model's longest text.
fn original(rope: &ConfigFile, file: &ConfigFile, plain: Plain) -> Result<usize, ModelError> {
    let own = rope.optional_size(ORIGINAL)?;
    let outer = file.optional_size(ORIGINAL)?;
    match plain.original_max_tokens.or(own).or(outer) {
        Some(tokens) => Ok(tokens),
        None => file.size(MAX),
    }
}

/// How many times longer texts become.
fn factor(rope: &ConfigFile, file: &ConfigFile, original: usize) -> Result<f64, ModelError> {
    match rope.optional_number("factor")? {
        Some(factor) => Ok(factor),
        None => Ok(file.size(MAX)? as f64 / original as f64),
    }
}
