//! `molora verify`.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use super::progress::Progress;
use super::{print, print_written};
use molora_train::base::DeviceSpec;
use molora_train::verify::{VerifyRequest, verify};

/// Options of `molora verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Folder of a finished run, or one that export, merge, combine or distill wrote
    #[arg(value_name = "RUN|EXPORT")]
    folder: PathBuf,
    /// Base model of an export [default: the one that its manifest names]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Where to compute the probe: cpu, ndarray, wgpu or cuda [default: as when it was recorded]
    #[arg(long)]
    device: Option<DeviceSpec>,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

impl VerifyArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let request = VerifyRequest {
            folder: self.folder,
            model: self.model,
            device: self.device,
        };
        let mut progress = Progress::new();
        let found = verify(&request, &mut |event| progress.show(event))?;
        progress.finish();
        match self.json {
            true => print_written(&format!("{}\n", serde_json::to_string(&found)?))?,
            false => print(&found.text())?,
        }
        if !found.is_well() {
            bail!(
                "{}: is not what its manifest.json says",
                request.folder.display()
            );
        }
        Ok(())
    }
}
