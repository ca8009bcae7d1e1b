//! `molora export` and `molora merge`.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use molora_models::peft::MergedDtype;

use super::print;
use super::source::adapter_of;
use molora_train::base::DeviceSpec;
use molora_train::exchange::{
    Choice, ExportRequest, Exported, MergeRequest, export, merge, merge_adapter,
};
use molora_train::report::thousands;
use molora_train::store::checkpoint::HEADS;

/// File formats of adapters.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// adapter_config.json and adapter_model.safetensors, as PEFT reads them
    Peft,
}

/// Which LoRA of a run is meant.
#[derive(Debug, Args)]
struct ChoiceArgs {
    /// Take one expert alone, by the name of its task or by its number
    #[arg(long, value_name = "NAME|N", conflicts_with = "task")]
    expert: Option<String>,
    /// Fix gates and routers that go by task to this one
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
}

impl ChoiceArgs {
    fn choice(self) -> Choice {
        Choice {
            expert: self.expert,
            task: self.task,
        }
    }
}

/// Options of `molora export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Folder of a finished run
    run: PathBuf,
    /// Format of the files
    #[arg(long, value_enum, default_value_t = Format::Peft)]
    format: Format,
    #[command(flatten)]
    choice: ChoiceArgs,
    /// Name of the adapter; any but `default` is kept in a folder below of that name
    #[arg(long, default_value = "default")]
    name: String,
    /// Folder to write [default: RUN/peft, or RUN/peft-NAME for an expert or task]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training]
    #[arg(long)]
    device: Option<DeviceSpec>,
}

impl ExportArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Format::Peft = self.format;
        let choice = self.choice.choice();
        let chosen = choice.expert.as_ref().or(choice.task.as_ref());
        let folder = chosen.map_or("peft".to_owned(), |name| format!("peft-{name}"));
        let request = ExportRequest {
            out: self.out.unwrap_or_else(|| self.run.join(folder)),
            run: self.run,
            choice,
            name: self.name,
            device: self.device,
        };
        print(&exported(&export(&request)?))
    }
}

/// What was written, for people.
pub(super) fn exported(found: &Exported) -> String {
    let rank = match found.ranks {
        (least, most) if least == most => format!("rank {most}"),
        (least, most) => format!("ranks {least} to {most}"),
    };
    let (folder, modules) = (found.folder.display(), found.modules);
    let (kind, parameters) = (found.kind, thousands(found.parameters));
    let note = found.note.map(|note| format!("{note}\n"));
    format!(
        "{folder}: {kind} of {rank} on {modules} modules, {parameters} parameters{}\n{}",
        heads(found.has_heads),
        note.unwrap_or_default()
    )
}

fn heads(has_heads: bool) -> String {
    match has_heads {
        true => format!("; the heads of the tasks are in {HEADS}"),
        false => String::new(),
    }
}

/// Types of the numbers of a merged model.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Dtype {
    /// As in the base model's files, rounded to the nearest
    Source,
    /// Exact, and twice the size of a half-precision base
    F32,
    /// Rounded to the nearest; up to 65504
    F16,
    /// Rounded to the nearest; the range of f32 with 8 bits of precision
    Bf16,
}

impl From<Dtype> for MergedDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Source => Self::AsSource,
            Dtype::F32 => Self::Float32,
            Dtype::F16 => Self::Float16,
            Dtype::Bf16 => Self::BFloat16,
        }
    }
}

/// Options of `molora merge`.
#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// Folder of a finished run, or of an adapter that PEFT or `molora export` wrote
    #[arg(value_name = "RUN|ADAPTER")]
    run: PathBuf,
    /// Base model of an adapter [default: the one that its configuration names]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    choice: ChoiceArgs,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the numbers
    #[arg(long, value_enum, default_value_t = Dtype::Source)]
    dtype: Dtype,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training]
    #[arg(long)]
    device: Option<DeviceSpec>,
}

impl MergeArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let dtype = self.dtype.into();
        let (adapter, choice) = (
            adapter_of(&self.run, self.model.as_deref())?,
            self.choice.choice(),
        );
        let merged = match &adapter {
            Some(_) if choice != Choice::default() => {
                let name = self.run.display();
                bail!("{name}: is one adapter, in which there is no --expert or --task to choose");
            }
            Some(adapter) => {
                let device = self.device.unwrap_or(DeviceSpec::Cpu);
                merge_adapter(adapter, &self.out, dtype, device)?
            }
            None => merge(&MergeRequest {
                run: self.run,
                choice,
                out: self.out.clone(),
                dtype,
                device: self.device,
            })?,
        };
        print(&format!(
            "{}: a whole model with {} modules changed{}\n",
            self.out.display(),
            merged.modules,
            heads(merged.has_heads)
        ))
    }
}
