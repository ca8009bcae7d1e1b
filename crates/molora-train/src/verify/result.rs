//! What was found, as a value and in words.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use super::FileState;
use crate::eval::ProbeOutput;
use crate::store::FolderKind;

/// Outputs that differ by no larger share than this of the largest value are those of the same model on
/// another machine or backend.
pub const TOLERANCE: f64 = 1e-4;

/// Names that are shown of many.
const SHOWN: usize = 20;

/// What a folder is, beside its manifest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verified {
    /// The folder.
    pub folder: PathBuf,
    /// What it holds.
    pub kind: FolderKind,
    /// Version of molora that wrote the manifest.
    pub molora_version: String,
    /// Version of burn that the probe was computed with.
    pub burn_version: String,
    /// Name of the device that it was computed on.
    pub device: String,
    /// The files.
    pub files: FileState,
    /// The base model.
    pub base: BaseState,
    /// The probe.
    pub probe: ProbeState,
}

/// What became of the base model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BaseState {
    /// Every file is the same.
    Same {
        /// Its name.
        name: String,
    },
    /// Some are others.
    Changed {
        /// Its name.
        name: String,
        /// These, in words.
        files: Vec<String>,
    },
    /// It is not here.
    NotFound {
        /// Its name.
        name: String,
        /// Why not.
        why: String,
    },
}

/// What the probe gives now.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ProbeState {
    /// Every bit of every output is the same.
    BitEqual {
        /// Number of outputs.
        outputs: usize,
    },
    /// No output differs by more than [`TOLERANCE`].
    Close {
        /// Number of outputs.
        outputs: usize,
        /// The largest difference as a share of the largest value.
        largest: f64,
    },
    /// Some outputs are others.
    Differs {
        /// These, the first one of the pass first.
        outputs: Vec<ChangedOutput>,
    },
    /// It could not be computed.
    NotComputed {
        /// The reason.
        why: String,
    },
    /// The manifest has none.
    None {
        /// The reason.
        why: String,
    },
}

/// An output that is another one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChangedOutput {
    /// What it is.
    pub name: String,
    /// The difference as a share of the largest value; none if it has another shape or is not there.
    pub difference: Option<f64>,
}

impl ProbeState {
    /// Compares outputs with those of a manifest.
    pub(super) fn of(then: &[ProbeOutput], now: &[ProbeOutput]) -> Self {
        let (mut changed, mut largest, mut is_equal) = (Vec::new(), 0.0_f64, true);
        for index in 0..then.len().max(now.len()) {
            let (was, is) = (then.get(index), now.get(index));
            let difference = match (was, is) {
                (Some(was), Some(is)) if (&was.name, &was.shape) == (&is.name, &is.shape) => {
                    is_equal &= was.sha256 == is.sha256;
                    Some(was.sketch.relative(&is.sketch))
                }
                _ => None,
            };
            largest = largest.max(difference.unwrap_or(f64::INFINITY));
            if difference.is_none_or(|difference| difference > TOLERANCE) {
                let name = was
                    .or(is)
                    .map(|output| output.name.clone())
                    .unwrap_or_default();
                changed.push(ChangedOutput { name, difference });
            }
        }
        let outputs = then.len();
        match changed.is_empty() {
            true if is_equal => Self::BitEqual { outputs },
            true => Self::Close { outputs, largest },
            false => Self::Differs { outputs: changed },
        }
    }

    /// Whether the model computes what it did, or nothing was recorded.
    fn is_well(&self) -> bool {
        !matches!(self, Self::Differs { .. } | Self::NotComputed { .. })
    }
}

impl Verified {
    /// Whether everything is as the manifest says; a whole model does not need its base.
    pub fn is_well(&self) -> bool {
        let is_free = self.kind == FolderKind::Model;
        let has_base = is_free || matches!(self.base, BaseState::Same { .. });
        self.files.is_same() && has_base && self.probe.is_well()
    }

    /// What was found, in lines.
    pub fn text(&self) -> String {
        let kind = match self.kind {
            FolderKind::Run => "a run",
            FolderKind::Adapter => "an adapter",
            FolderKind::Model => "a whole model",
        };
        let (molora, burn, device) = (&self.molora_version, &self.burn_version, &self.device);
        let mut text = format!("{kind}, by molora {molora} with burn {burn} on {device}\n");
        self.add_files(&mut text);
        let base = match &self.base {
            BaseState::Same { name } => format!("{name} is the same"),
            BaseState::Changed { name, files } => {
                format!("{name} is another one: {} changed", files.join(", "))
            }
            BaseState::NotFound { why, .. } => format!("not found: {why}"),
        };
        writeln!(text, "base model: {base}").expect("a String takes all");
        self.add_probe(&mut text);
        text
    }

    fn add_files(&self, text: &mut String) {
        let files = &self.files;
        writeln!(text, "files: {} as they were", files.same).expect("a String takes all");
        for (path, tensors) in &files.changed {
            writeln!(text, "  changed: {path}").expect("a String takes all");
            for tensor in tensors.iter().take(SHOWN) {
                let what = match (&tensor.what, tensor.difference, tensor.relative) {
                    (Some(what), ..) => what.clone(),
                    (_, Some(far), Some(share)) => {
                        let share = share * 100.0;
                        format!("differs by about {far:.3e} in all, {share:.3} % of its length")
                    }
                    (_, far, _) => format!("differs by about {:.3e} in all", far.unwrap_or(0.0)),
                };
                writeln!(text, "    {}: {what}", tensor.name).expect("a String takes all");
            }
            if let Some(rest) = tensors.len().checked_sub(SHOWN).filter(|rest| *rest > 0) {
                writeln!(text, "    and {rest} more").expect("a String takes all");
            }
        }
        for (what, paths) in [("missing", &files.missing), ("extra", &files.extra)] {
            for path in paths {
                writeln!(text, "  {what}: {path}").expect("a String takes all");
            }
        }
    }

    fn add_probe(&self, text: &mut String) {
        let probe = match &self.probe {
            ProbeState::BitEqual { outputs } => format!("{outputs} outputs, every bit the same"),
            ProbeState::Close { outputs, largest } => format!(
                "{outputs} outputs, the same within {TOLERANCE:e} of the largest value ({largest:.1e})"
            ),
            ProbeState::Differs { outputs } => format!("{} outputs differ", outputs.len()),
            ProbeState::NotComputed { why } => format!("not computed: {why}"),
            ProbeState::None { why } => format!("none was recorded: {why}"),
        };
        writeln!(text, "probe: {probe}").expect("a String takes all");
        if let ProbeState::Differs { outputs } = &self.probe {
            for output in outputs.iter().take(SHOWN) {
                let far = match output.difference {
                    Some(far) => format!("by {far:.1e} of the largest value"),
                    None => "another shape, or not there".into(),
                };
                writeln!(text, "  {}: {far}", output.name).expect("a String takes all");
            }
            if let Some(rest) = outputs.len().checked_sub(SHOWN).filter(|rest| *rest > 0) {
                writeln!(text, "  and {rest} more").expect("a String takes all");
            }
        }
    }
}
