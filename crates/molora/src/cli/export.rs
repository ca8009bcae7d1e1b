//! `molora export` and `molora merge`.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use molora_models::peft::MergedDtype;

use super::download::Downloads;
use super::print;
use super::source::adapter_of;
use molora_train::base::{DeviceSpec, base_model};
use molora_train::exchange::{
    ExportRequest, Exported, GgufRequest, GgufSource, GgufWritten, LoraSelector, MergeRequest,
    TransformersRequest, TransformersWritten, export, export_gguf, export_transformers, merge,
    merge_adapter,
};
use molora_train::hub::Progress;
use molora_train::report::thousands;
use molora_train::store::HEADS;
use molora_train::store::is_run;

/// File formats of adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// adapter_config.json and adapter_model.safetensors, as PEFT reads them
    Peft,
    /// One file for llama.cpp and Ollama: a LoRA, or a whole model
    Gguf,
    /// A whole model with its mixture, for transformers with trust_remote_code=True
    Transformers,
}

/// Which LoRA of a run is meant.
#[derive(Debug, Args)]
struct SelectorArgs {
    /// Take one expert alone, by the name of its task or by its number
    #[arg(long, value_name = "NAME|N", conflicts_with = "task")]
    expert: Option<String>,
    /// Fix gates and routers that depend on the task to this one; with --format transformers the task of
    /// inputs that none is given for
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
}

impl SelectorArgs {
    fn choice(self) -> LoraSelector {
        LoraSelector {
            expert: self.expert,
            task: self.task,
        }
    }
}

/// Options of `molora export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Folder of a finished run; with --format gguf also that of an adapter that PEFT or `molora export` wrote,
    /// or a whole model (a folder or org/name on the Hub)
    #[arg(value_name = "RUN|ADAPTER|MODEL")]
    run: PathBuf,
    /// Folder or file to write, as --out
    #[arg(value_name = "DIR|FILE", conflicts_with = "out")]
    place: Option<PathBuf>,
    /// Format of the files
    #[arg(long, value_enum, default_value_t = Format::Peft)]
    format: Format,
    #[command(flatten)]
    choice: SelectorArgs,
    /// Name of the adapter; any but `default` is written to a subfolder of that name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// For an adapter with --format gguf: its base model [default: the one that its configuration names]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// With --format gguf: type of the numbers of matrices [default: f32 for a LoRA, as in its files for a model]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Folder to write [default: RUN/peft, or RUN/peft-NAME for an expert or task, or RUN/transformers]; with
    /// --format gguf the file [default: RUN/lora.gguf, or RUN/lora-NAME.gguf]
    #[arg(long, value_name = "DIR|FILE")]
    out: Option<PathBuf>,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training]
    #[arg(long)]
    device: Option<DeviceSpec>,
}

impl ExportArgs {
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        self.out = self.out.or(self.place.take());
        if self.format == Format::Gguf {
            return self.run_gguf();
        }
        if self.model.is_some() || self.dtype.is_some() {
            bail!("--model and --dtype are for --format gguf");
        }
        if self.format == Format::Transformers {
            return self.run_transformers();
        }
        let choice = self.choice.choice();
        let chosen = choice.expert.as_ref().or(choice.task.as_ref());
        let folder = chosen.map_or("peft".to_owned(), |name| format!("peft-{name}"));
        let request = ExportRequest {
            out: self.out.unwrap_or_else(|| self.run.join(folder)),
            run: self.run,
            choice,
            name: self.name.unwrap_or_else(|| "default".into()),
            device: self.device,
        };
        print(&exported(&export(&request)?))
    }

    fn run_transformers(self) -> anyhow::Result<()> {
        if self.name.is_some() {
            bail!("--name is for --format peft: a model is called by --out");
        }
        if self.choice.expert.is_some() {
            bail!(
                "--expert is for --format peft and gguf: with --format transformers all experts are written"
            );
        }
        let request = TransformersRequest {
            out: self.out.unwrap_or_else(|| self.run.join("transformers")),
            run: self.run,
            task: self.choice.task,
            device: self.device,
        };
        let written = export_transformers(&request)?;
        print(&whole_mixture(&request, written))
    }

    fn run_gguf(self) -> anyhow::Result<()> {
        let (folder, choice) = (self.run, self.choice.choice());
        if self.name.is_some() {
            bail!("--name is for --format peft: a GGUF file is called by --out");
        }
        let chosen = choice.expert.as_ref().or(choice.task.as_ref());
        let file = chosen.map_or("lora.gguf".to_owned(), |name| format!("lora-{name}.gguf"));
        let default = || folder.join(file);
        let adapter = adapter_of(&folder, self.model.as_deref())?;
        let is_run = adapter.is_none() && is_run(&folder)?;
        if !is_run && choice != LoraSelector::default() {
            let name = folder.display();
            bail!("{name}: is no run, in which there is an --expert or --task to choose");
        }
        let (source, out) = match adapter {
            Some(adapter) => (
                GgufSource::Adapter(adapter),
                self.out.unwrap_or_else(default),
            ),
            None if is_run => {
                let out = self.out.unwrap_or_else(default);
                (GgufSource::Run { folder, choice }, out)
            }
            None => {
                let Some(out) = self.out else {
                    bail!(
                        "{}: is a whole model: give the file to write with --out",
                        folder.display()
                    );
                };
                let mut downloads = Downloads::new();
                let show = &mut |progress: Progress<'_>| downloads.show_all(progress);
                let base = base_model::find(&folder.to_string_lossy(), show)?;
                downloads.finish();
                (GgufSource::Model(base), out)
            }
        };
        let (dtype, device) = (self.dtype.map(Into::into), self.device);
        let request = GgufRequest {
            source,
            out,
            dtype,
            device,
        };
        print(&match export_gguf(&request)? {
            GgufWritten::Lora(found) => exported(&found),
            GgufWritten::Model { tokens } => {
                let out = request.out.display();
                format!("{out}: a whole model with {} tokens\n", thousands(tokens))
            }
        })
    }
}

/// The printed summary of an export.
pub(super) fn exported(found: &Exported) -> String {
    let rank = match found.ranks {
        (least, most) if least == most => format!("rank {most}"),
        (least, most) => format!("ranks {least} to {most}"),
    };
    let (folder, modules) = (found.folder.display(), found.modules);
    let (kind, parameters) = (found.kind, thousands(found.parameters));
    let note = found.note.map(|note| format!("{note}\n"));
    let whole = match found.whole.as_slice() {
        [] => String::new(),
        paths => format!(" and {} whole", paths.join(", ")),
    };
    format!(
        "{folder}: {kind} of {rank} on {modules} modules{whole}, {parameters} parameters{}\n{}",
        heads(found.has_heads),
        note.unwrap_or_default()
    )
}

/// The printed summary of an export for transformers.
fn whole_mixture(request: &TransformersRequest, written: TransformersWritten) -> String {
    let (out, modules) = (request.out.display(), written.modules);
    let parameters = thousands(written.parameters);
    let heads = match written.heads {
        0 => String::new(),
        count => {
            format!("; heads of {count} tasks: AutoModelForSequenceClassification, with task=NAME")
        }
    };
    let texts = match written.reads_texts {
        true => "its routers go by what texts are about: give the model text_vectors\n",
        false => "",
    };
    format!(
        "{out}: a whole model for transformers with trust_remote_code=True, mixtures on {modules} modules, \
         {parameters} parameters{heads}\n{texts}"
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
    choice: SelectorArgs,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Data type of the weights
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
            Some(_) if choice != LoraSelector::default() => {
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
