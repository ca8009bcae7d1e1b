//! `molora import`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::assemble::written;
use super::print;
use super::progress::Progress;
use super::signals::stop_on_signal;
use molora_train::base::DeviceSpec;
use molora_train::exchange::{ImportRequest, import};

/// Options of `molora import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// Folder of a PolyTropon, X-LoRA, Lily or Arrow model in PEFT's format
    folder: PathBuf,
    /// Folder of the base model in Hugging Face layout, or org/name[@revision] on the Hub
    #[arg(long, value_name = "MODEL")]
    base: String,
    /// A name for each task, in the adapter's order; may be repeated [default: the adapter's names, or numbers]
    #[arg(long, value_name = "NAME")]
    task: Vec<String>,
    /// The folder of each LoRA of an X-LoRA, in the order of its classifier, where they are not where the adapter
    /// says; may be repeated
    #[arg(long, value_name = "DIR")]
    expert: Vec<PathBuf>,
    /// Folder with these tasks, on which the run is evaluated
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Folder to write [default: runs/ and the name of FOLDER]
    #[arg(long, value_name = "RUN")]
    out: Option<PathBuf>,
    /// Replace an older run in the same folder
    #[arg(long)]
    force: bool,
    /// Where to compute: cpu, ndarray, wgpu or cuda
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
}

impl ImportArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let name = self.folder.file_name().unwrap_or("imported".as_ref());
        let request = ImportRequest {
            out: self.out.unwrap_or_else(|| Path::new("runs").join(name)),
            folder: self.folder,
            base: self.base,
            tasks: self.task,
            experts: self.expert,
            data: self.data,
            force: self.force,
            device: self.device,
        };
        let stop = stop_on_signal()?;
        let mut progress = Progress::new();
        let imported = import(&request, &stop, &mut |event| progress.show(event))?;
        progress.finish();
        print(&written(&request.out, &imported))
    }
}
