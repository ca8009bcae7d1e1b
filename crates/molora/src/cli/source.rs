//! Options of every command that trains: on what, and where.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use molora_models::BaseDtype;

use super::download::Downloads;
use molora_train::base::{AdapterFolder, DeviceSpec, base_model, bundled};
use molora_train::recipe::BaseKind;
use molora_train::store::is_run;

/// A base model by a name that stays, and what kind of model it is.
pub(super) struct FoundBase {
    pub(super) model: String,
    pub(super) kind: BaseKind,
}

/// A folder as an adapter with its base model, if it is one and no run: the base that is named, or the one that
/// its configuration names.
///
/// # Errors
/// If the base model cannot be found, or one is named for what is no adapter.
pub(super) fn adapter_of(
    folder: &Path,
    model: Option<&str>,
) -> anyhow::Result<Option<AdapterFolder>> {
    if is_run(folder)? || !AdapterFolder::is(folder) {
        anyhow::ensure!(
            model.is_none(),
            "{}: --model is for the folder of an adapter, and this is none",
            folder.display()
        );
        return Ok(None);
    }
    let mut downloads = Downloads::new();
    let show = &mut |progress: molora_train::hub::Progress<'_>| downloads.show_all(progress);
    let found = AdapterFolder::find(folder, model, show)?;
    downloads.finish();
    Ok(Some(found))
}

/// Base model, tasks and device.
#[derive(Debug, Args)]
pub(super) struct SourceArgs {
    /// Folder of the base model in Hugging Face layout, or org/name[@revision] on the Hub
    /// [default: the bundled all-MiniLM-L6-v2]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Folder with one sub-folder per task, one such folder, or one file (.jsonl, .json, .csv,
    /// .parquet) [default: the bundled tasks]
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Train on these tasks only, separated by commas [default: all in the folder]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(super) tasks: Option<Vec<String>>,
    /// Data type of the frozen matrices of the base model: f32, bf16, q8 or q4
    #[arg(long, value_name = "TYPE", default_value_t)]
    pub(super) base_dtype: BaseDtype,
    /// Where to compute: cpu, ndarray, wgpu or cuda
    #[arg(long, default_value = "cpu")]
    pub(super) device: DeviceSpec,
}

impl SourceArgs {
    /// The base model: a folder, `bundled:NAME` or a name on the Hub.
    pub(super) fn model(&self) -> String {
        self.model.clone().unwrap_or_else(|| bundled::MODEL.into())
    }

    /// The base model with its kind, which a recipe's numbers depend on. `check` is called before one
    /// is downloaded for that. What else is wrong with it is said when it is read.
    ///
    /// # Errors
    /// Those of `check`, and if it cannot be downloaded.
    pub(super) fn found(
        &self,
        stop: &AtomicBool,
        check: impl FnOnce(&FoundBase) -> anyhow::Result<()>,
    ) -> anyhow::Result<FoundBase> {
        let mut base = FoundBase {
            model: self.model(),
            kind: BaseKind::default(),
        };
        let kind_of = |folder: &Path| BaseKind::of(folder).unwrap_or_default();
        let folder = bundled::folder(&base.model).unwrap_or_default();
        if folder.is_dir() || base_model::check(&base.model).is_err() {
            base.kind = kind_of(&folder);
            return Ok(base);
        }
        check(&base)?;
        let mut downloads = Downloads::new();
        let found = base_model::find(&base.model, &mut |progress| {
            downloads.show(progress);
            match stop.load(Ordering::SeqCst) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        Ok(FoundBase {
            kind: kind_of(&found.folder),
            model: found.name,
        })
    }

    /// The folder of the tasks.
    pub(super) fn data(&self) -> String {
        self.data.clone().unwrap_or_else(|| bundled::TASKS.into())
    }
}
