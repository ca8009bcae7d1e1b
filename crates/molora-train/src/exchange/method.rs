//! Runs of methods that PEFT has too, in its files.

use std::path::Path;

use molora_models::peft::{
    PeftAbout, adapter_folder, is_poly, why_no_arrow, why_no_lily, why_no_xlora, write_arrow,
    write_lily, write_poly, write_xlora,
};
use molora_models::{Adaptable, ModelError};
use molora_routing::ScorerConfig;

use super::export::{ExportRequest, Exported};
use super::lora::advice;
use super::{carry_ends, copy_heads};
use crate::TrainError;
use crate::base::base_model::absolute;
use crate::base::place::NewFolder;
use crate::error::RunProblem;
use crate::model::count;
use crate::run::Opened;
use crate::verify::{certify_method, of_run};

/// A method that PEFT has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Poly,
    XLora,
    Arrow,
    Lily,
}

impl Method {
    /// The method of a run, if PEFT has one like it; it may compute something else.
    pub(super) fn of(opened: &Opened) -> Option<Self> {
        let spec = &opened.loaded.spec;
        let scorer = spec.router.as_ref().map(|router| &router.scorer);
        if is_poly(&opened.model.backbone) {
            Some(Self::Poly)
        } else if spec.router_scope.first_pass().is_some() {
            Some(Self::XLora)
        } else if spec.composition.pool().is_some() {
            Some(Self::Lily)
        } else {
            matches!(scorer, Some(ScorerConfig::Arrow(_))).then_some(Self::Arrow)
        }
    }

    /// Writes the run's adapters, and the heads of its tasks beside them.
    ///
    /// # Errors
    /// [`TrainError::Run`] if PEFT computes something else; it then says what.
    pub(super) fn write(
        self,
        request: &ExportRequest,
        opened: &Opened,
    ) -> Result<Exported, TrainError> {
        self.check(&request.run, opened)?;
        let new = NewFolder::for_place(&request.out)?;
        let folder = adapter_folder(new.path(), &request.name)?;
        let place = adapter_folder(&request.out, &request.name)?;
        fs_err::create_dir_all(&folder)?;
        self.write_files(&folder, &place, opened)
            .map_err(|error| self.unwritable(&request.run, opened, error))?;
        carry_ends(opened, &folder)?;
        let has_heads = opened.model.heads.iter().any(Option::is_some);
        copy_heads(&request.run, &folder, has_heads)?;
        certify_method(&folder, self.kind(), of_run(opened)?)?;
        new.put_new()?;
        let rank = opened.loaded.spec.bank.rank;
        let counts = count(&opened.model);
        Ok(Exported {
            kind: self.kind(),
            folder: place,
            modules: opened.model.backbone.site_paths().len(),
            whole: Vec::new(),
            ranks: (rank, rank),
            parameters: counts.adapters + counts.routers,
            has_heads,
            note: self.note(),
        })
    }

    fn write_files(self, folder: &Path, place: &Path, opened: &Opened) -> Result<(), ModelError> {
        let (backbone, spec) = (&opened.model.backbone, &opened.loaded.spec);
        let about = PeftAbout {
            name: "default".into(),
            base_model: opened.config.base_name().into(),
            task_type: Some(backbone.task_type().into()),
        };
        match self {
            Self::Poly => write_poly(folder, backbone, &about),
            Self::XLora => {
                let place = absolute(&place.to_string_lossy());
                write_xlora(folder, place.as_ref(), backbone, spec, &about)
            }
            Self::Arrow => write_arrow(folder, backbone, spec, &opened.expert_names(), &about),
            Self::Lily => write_lily(folder, backbone, spec, &about),
        }
    }

    /// Refuses a run of which PEFT computes something else.
    fn check(self, run: &Path, opened: &Opened) -> Result<(), TrainError> {
        let spec = &opened.loaded.spec;
        let why = match self {
            _ if !spec.modules_to_save.is_empty() => Some(
                "its embeddings or head train whole (adapter.modules_to_save), which molora writes beside \
                 LoRAs alone"
                    .to_owned(),
            ),
            Self::Poly => None,
            Self::XLora => why_no_xlora(spec),
            Self::Arrow => why_no_arrow(spec).map(str::to_owned),
            Self::Lily => why_no_lily(spec).map(str::to_owned),
        };
        match why {
            None => Ok(()),
            Some(why) => Err(self.refusal(run, opened, &why)),
        }
    }

    /// What cannot be written, as a refusal of the run; a file that cannot be stays what it is.
    fn unwritable(self, run: &Path, opened: &Opened, error: ModelError) -> TrainError {
        match error {
            ModelError::Inconsistent(why) => self.refusal(run, opened, &why),
            error => error.into(),
        }
    }

    fn refusal(self, run: &Path, opened: &Opened, why: &str) -> TrainError {
        let problem = match self {
            // Its experts are in no layer, so that nothing of it is a LoRA.
            Self::Lily => RunProblem::NotOfPeft { why: why.into() },
            _ => RunProblem::NoSingleLora {
                why: RunProblem::NotOfPeft { why: why.into() }.to_string(),
                advice: advice(run, opened),
            },
        };
        TrainError::run(run, problem)
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Poly => "PolyTropon's skills",
            Self::XLora => "an X-LoRA",
            Self::Arrow => "LoRAs for PEFT's Arrow",
            Self::Lily => "a Lily",
        }
    }

    fn note(self) -> Option<&'static str> {
        match self {
            Self::Poly => Some("PEFT takes tasks by their number in the run, as task_ids"),
            Self::XLora => Some(
                "README.md says how PEFT loads it; adapter_config.json names the LoRAs by this folder's path",
            ),
            Self::Arrow => Some("README.md says how PEFT routes them"),
            Self::Lily => Some(
                "PEFT counts padding in the mean over the batch: the outputs are the same without padding",
            ),
        }
    }
}
