//! Which of PEFT's methods a folder holds.

use std::path::Path;

use super::ArrowFolder;
use crate::checkpoint::ConfigFile;
use crate::{AdapterFiles, ModelError};

/// A method of PEFT that molora reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeftKind {
    /// One or several LoRAs.
    Lora,
    /// PolyTropon.
    Poly,
    /// X-LoRA.
    XLora,
    /// Lily.
    Lily,
    /// LoRAs under Arrow's router.
    Arrow,
}

impl PeftKind {
    /// The method of a folder.
    ///
    /// # Errors
    /// A missing or broken configuration, or one of another method.
    pub fn of(folder: &Path) -> Result<Self, ModelError> {
        if ArrowFolder::is_in(folder) {
            return Ok(Self::Arrow);
        }
        let file = ConfigFile::open(&AdapterFiles::in_folder(folder).config)?;
        Ok(match file.text("peft_type")? {
            Some("LORA") => Self::Lora,
            Some("POLY") => Self::Poly,
            Some("XLORA") => Self::XLora,
            Some("LILY") => Self::Lily,
            _ => {
                let expected = "\"LORA\", \"POLY\", \"XLORA\" or \"LILY\"";
                return Err(file.unsupported("peft_type", expected));
            }
        })
    }
}
