//! `molora combine`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::choice::{How, Sign};
use super::export::{Dtype, exported};
use super::print;
use super::progress::Progress;
use super::signals::stop_on_signal;
use molora_train::base::DeviceSpec;
use molora_train::exchange::{self, CombineRequest, Combined, Written, combine};
use molora_train::report::task_table;

/// Options of `molora combine`.
#[derive(Debug, Args)]
pub(super) struct CombineArgs {
    /// Experts: RUN/experts/NAME, a run of one LoRA, or a folder that PEFT wrote
    #[arg(required = true, value_name = "EXPERT")]
    experts: Vec<PathBuf>,
    /// Merging method
    #[arg(long, value_enum)]
    how: How,
    /// A weight for each expert, separated by commas [default: one divided by their number; 1 for ties
    /// and dare-ties, 0.3 for task-arithmetic]
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "A,B,..",
        allow_hyphen_values = true
    )]
    weights: Option<Vec<f64>>,
    /// Share of the entries that stay [default: 0.2 for ties, 0.5 for dare, dare-ties and magnitude]
    #[arg(long, value_name = "D", allow_hyphen_values = true)]
    density: Option<f64>,
    /// How the sign of an entry is elected [default: total]
    #[arg(long, value_enum)]
    sign: Option<Sign>,
    /// Rank of the LoRA; ties, dare and magnitude then work on the deltas instead of the factors, and
    /// what they make is cut to this rank
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Write a whole model; ties, dare and magnitude then work on the deltas, and nothing is cut
    #[arg(long)]
    whole: bool,
    /// Type of the numbers of a whole model
    #[arg(long, value_enum, default_value_t = Dtype::Source)]
    dtype: Dtype,
    /// Folder of the base model in Hugging Face layout, or org/name[@revision] on the Hub [default:
    /// that of the experts]
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Folder of tasks on whose test split the result is scored; adamerging, concrete, wemoe and e-wemoe
    /// learn from the texts of their training splits, r-mtllmf from a few of their records
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Number of learning steps [default: 500 for adamerging, 1000 for concrete, 300 for wemoe and
    /// e-wemoe, 100 for r-mtllmf]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Modules that r-mtllmf leaves out besides embeddings, separated by commas: names, globs or regex:...
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    exclude: Vec<String>,
    /// Labelled records of each task that r-mtllmf trains on [default: 16]
    #[arg(long, value_name = "N")]
    shots: Option<usize>,
    /// Folder to write [default: runs/combined-HOW]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of every random draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to compute: cpu, ndarray, wgpu or cuda
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
}

impl CombineArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let request = self.request();
        let stop = stop_on_signal()?;
        let mut progress = Progress::new();
        let combined = combine(&request, &stop, &mut |event| progress.show(event))?;
        progress.finish();
        print(&closing(&request, &combined))
    }

    fn request(self) -> CombineRequest {
        let how = exchange::How::from(self.how);
        let default = || Path::new("runs").join(format!("combined-{}", how.name()));
        CombineRequest {
            out: self.out.unwrap_or_else(default),
            experts: self.experts,
            how,
            weights: self.weights,
            density: self.density,
            sign: self.sign.map(Into::into),
            rank: self.rank,
            whole: self.whole,
            dtype: self.dtype.into(),
            base: self.base,
            data: self.data,
            steps: self.steps,
            exclude: self.exclude,
            shots: self.shots,
            seed: self.seed,
            device: self.device,
        }
    }
}

/// The printed summary of a merge.
fn closing(request: &CombineRequest, combined: &Combined) -> String {
    let mut text = String::new();
    if let Some(scores) = &combined.scores {
        text += &format!("\n{}\n\n", task_table(scores, None));
    }
    if let Some((before, after)) = combined.objective {
        let what = match request.how {
            exchange::How::RMtllmf => "mean loss of the labelled records",
            _ => "mean entropy of predictions",
        };
        text += &format!("{what}: {before:.6} before, {after:.6} after\n");
    }
    for (folder, weight) in request.experts.iter().zip(&combined.weights) {
        text += &format!("{weight:7.3}  {}\n", folder.display());
    }
    text += &match &combined.written {
        Written::Lora(found) => exported(found),
        Written::Run {
            experts,
            rank,
            sites,
        } => {
            let folder = request.out.display();
            format!("{folder}: a run of {experts} experts of rank {rank} on {sites} modules\n")
        }
        Written::Whole { modules } => {
            let folder = request.out.display();
            format!("{folder}: a whole model with {modules} changed modules\n")
        }
    };
    if !combined.left_out.is_empty() {
        let tasks = combined.left_out.join(", ");
        text += &format!("several experts have a head for {tasks}: none of those was written\n");
    }
    text
}
