//! Options of every command that trains: on what, and where.

use clap::Args;
use molora_models::BaseDtype;

use molora_train::base::{DeviceSpec, bundled};

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
    /// Type in which the frozen matrices of the base model are kept: f32, bf16, q8 or q4
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

    /// The folder of the tasks.
    pub(super) fn data(&self) -> String {
        self.data.clone().unwrap_or_else(|| bundled::TASKS.into())
    }
}
