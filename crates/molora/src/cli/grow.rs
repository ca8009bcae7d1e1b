//! `molora add-expert` and `molora remove-expert`.

use std::path::PathBuf;

use clap::Args;

use super::print;
use super::progress::Progress;
use super::signals::stop_on_signal;
use super::train::closing;
use molora_train::base::DeviceSpec;
use molora_train::grow::{AddRequest, Removed, add_expert, remove_expert};

/// Options of `molora add-expert`.
#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Folder of a finished run
    run: PathBuf,
    /// Task that the run gets, with an expert where the method gives it one
    #[arg(long, value_name = "NAME")]
    task: String,
    /// Folder with the task's folder [default: the run's own]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Group that the expert is added to, or a new one, where the recipe has groups
    /// [default: the group in the task's task.json]
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training]
    #[arg(long)]
    device: Option<DeviceSpec>,
}

impl AddArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let stop = stop_on_signal()?;
        let mut progress = Progress::new();
        let request = AddRequest {
            run: self.run,
            task: self.task,
            data: self.data,
            group: self.group,
            device: self.device,
        };
        let finished = add_expert(&request, &stop, &mut |event| progress.show(event))?;
        progress.finish();
        print(&closing(&request.run, &finished))
    }
}

/// Options of `molora remove-expert`.
#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Folder of a finished run
    run: PathBuf,
    /// Task whose expert is removed; where experts were trained together, the one added last
    #[arg(long, value_name = "NAME")]
    task: String,
    /// Where to evaluate again: cpu, ndarray, wgpu or cuda [default: as in training]
    #[arg(long)]
    device: Option<DeviceSpec>,
}

impl RemoveArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut progress = Progress::new();
        let (run, task) = (&self.run, &self.task);
        let removed = remove_expert(run, task, self.device, &mut |event| progress.show(event))?;
        progress.finish();
        match removed {
            Removed::Rebuilt(finished) => print(&closing(run, &finished)),
            Removed::Restored => print(&format!(
                "{} is again what it was before {task} was added\n",
                run.display()
            )),
        }
    }
}
