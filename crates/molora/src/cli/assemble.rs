//! `molora assemble`.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use super::choice::RouterChoice;
use super::print;
use super::progress::Progress;
use super::signals::stop_on_signal;
use super::train::closing;
use molora_train::base::DeviceSpec;
use molora_train::exchange::{self, AssembleRequest, Assembled, Given, assemble};

/// Options of `molora assemble`.
#[derive(Debug, Args)]
pub(super) struct AssembleArgs {
    /// Folder of the base model in Hugging Face layout, or org/name[@revision] on the Hub
    #[arg(long, value_name = "MODEL")]
    base: String,
    /// An adapter that PEFT wrote, with the name that its expert gets; may be repeated
    #[arg(long, value_name = "NAME=DIR", required = true, value_parser = pair)]
    expert: Vec<(String, String)>,
    /// What weighs the experts
    #[arg(long, value_enum)]
    router: RouterChoice,
    /// Number of experts for each token [default: 3 for arrow, 2 for phatgoose and glider]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// What an expert is for, in a sentence that glider compares with the query; may be repeated
    /// [default: the instruction of the task of that name in --data]
    #[arg(long, value_name = "NAME=TEXT", value_parser = pair)]
    instruction: Vec<(String, String)>,
    /// Folder with a task for each expert, on which the run is evaluated
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Train the routers for so many steps on the tasks in --data
    #[arg(long, value_name = "N", default_value_t = 0)]
    steps: usize,
    /// Folder to write [default: runs/assembled-ROUTER]
    #[arg(long, value_name = "RUN")]
    out: Option<PathBuf>,
    /// Replace an older run in the same folder
    #[arg(long)]
    force: bool,
    /// Seed of every random draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to compute: cpu, ndarray, wgpu or cuda
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
}

/// `NAME=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.into(), value.into()))
        }
        _ => Err("expected NAME=VALUE".into()),
    }
}

impl AssembleArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let request = self.request()?;
        let stop = stop_on_signal()?;
        let mut progress = Progress::new();
        let assembled = assemble(&request, &stop, &mut |event| progress.show(event))?;
        progress.finish();
        print(&written(&request.out, &assembled))
    }

    fn request(self) -> anyhow::Result<AssembleRequest> {
        let router = exchange::RouterChoice::from(self.router);
        let default = || Path::new("runs").join(format!("assembled-{}", router.name()));
        let names: Vec<&str> = self.expert.iter().map(|(name, _)| &name[..]).collect();
        for (place, (name, _)) in self.instruction.iter().enumerate() {
            let before = &self.instruction[..place];
            if before.iter().any(|(other, _)| other == name) {
                bail!("--instruction {name}: is given twice");
            }
            if !names.contains(&&name[..]) {
                let names = names.join(", ");
                bail!("--instruction {name}: no expert is called so; there are: {names}");
            }
        }
        let instruction = |name: &String| {
            let mut texts = self.instruction.iter();
            let text = texts.find(|(other, _)| other == name);
            text.map(|(_, text)| text.clone())
        };
        let given = |(name, folder): &(String, String)| Given {
            name: name.clone(),
            folder: folder.into(),
            instruction: instruction(name),
        };
        Ok(AssembleRequest {
            experts: self.expert.iter().map(given).collect(),
            out: self.out.clone().unwrap_or_else(default),
            base: self.base,
            router,
            top_k: self.top_k,
            data: self.data,
            steps: self.steps,
            force: self.force,
            seed: self.seed,
            device: self.device,
        })
    }
}

pub(super) fn written(folder: &Path, assembled: &Assembled) -> String {
    let Assembled {
        sites,
        rank,
        experts,
        finished,
    } = assembled;
    let scores = finished.as_ref().map(|finished| closing(folder, finished));
    format!(
        "{}{}: {experts} experts of rank {rank} on {sites} modules\n",
        scores.unwrap_or_default(),
        folder.display()
    )
}
