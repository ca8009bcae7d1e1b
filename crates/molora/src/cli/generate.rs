//! `molora generate`.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use molora_models::{Finish, Sampling};
use serde_json::json;

use super::download::Downloads;
use super::print_written;
use molora_train::base::{DeviceSpec, base_model};
use molora_train::generate::{WriteOptions, Writer, Written};
use molora_train::store::{is_run, read_config};

/// Options of `molora generate`.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// Folder of a finished run, or a model: a folder in Hugging Face layout, or
    /// org/name[@revision] on the Hub
    #[arg(value_name = "RUN|MODEL")]
    source: String,
    /// A text to go on with; may be repeated
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts")]
    prompt: Vec<String>,
    /// File with a prompt on each line
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// The task that the prompts are of, for a run whose gates or routers go by task
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Most new tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,
    /// Draw tokens; below 1 likely ones get likelier. 0 takes the likeliest
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Draw from the fewest tokens whose probabilities sum to this
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Draw from so many likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Prompts in one pass
    #[arg(long, value_name = "B", default_value = "8")]
    batch: NonZeroUsize,
    /// Frame each prompt as a user's message by the model's chat template [default:
    /// if it has one and, for a run, the tasks were asked by it]
    #[arg(long, conflicts_with = "raw")]
    chat: bool,
    /// Take each prompt as it is
    #[arg(long)]
    raw: bool,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training, or cpu]
    #[arg(long)]
    device: Option<DeviceSpec>,
    /// Print one JSON object for each prompt
    #[arg(long)]
    json: bool,
}

impl GenerateArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let prompts = self.all_prompts()?;
        let writer = self.writer()?;
        let wanted = match (self.chat, self.raw) {
            (false, false) => None,
            (chat, _) => Some(chat),
        };
        let options = WriteOptions {
            is_chat: writer.chats(wanted)?,
            max_new_tokens: self.max_new_tokens,
            sampling: self.sampling(),
            seed: self.seed,
            batch: self.batch.get(),
        };
        let written = writer.write(&prompts, &options)?;
        match self.json {
            true => print_written(&lines(&prompts, &written)),
            false => print_written(&texts(&prompts, &written)),
        }
    }

    fn all_prompts(&self) -> anyhow::Result<Vec<String>> {
        let mut prompts = self.prompt.clone();
        if let Some(path) = &self.prompts {
            let name = path.display();
            let text = std::fs::read_to_string(path).with_context(|| name.to_string())?;
            for (number, line) in text.lines().enumerate() {
                if line.trim().is_empty() {
                    bail!(
                        "{name}:{}: the line is empty, expected a prompt",
                        number + 1
                    );
                }
                prompts.push(line.to_owned());
            }
            if prompts.is_empty() {
                bail!("{name}: there is no prompt");
            }
        }
        Ok(prompts)
    }

    fn writer(&self) -> anyhow::Result<Writer> {
        let folder = Path::new(&self.source);
        // With a bar, should the model have to come from the hub.
        let mut downloads = Downloads::new();
        let mut show = |progress: molora_train::hub::Progress<'_>| downloads.show_all(progress);
        if is_run(folder)? {
            base_model::find(&read_config(folder)?.model, &mut show)?;
            return Ok(Writer::of_run(folder, self.task.as_deref(), self.device)?);
        }
        if self.task.is_some() {
            bail!("{}: --task needs a run, and this is a model", self.source);
        }
        base_model::find(&self.source, &mut show)?;
        downloads.finish();
        let device = self.device.unwrap_or(DeviceSpec::Cpu).open()?;
        Ok(Writer::open(&self.source, &device)?)
    }

    /// Any option of the drawing asks for it.
    fn sampling(&self) -> Option<Sampling> {
        let (temperature, top_k, top_p) = (self.temperature, self.top_k, self.top_p);
        let is_greedy = temperature == Some(0.0);
        let is_asked = temperature.is_some() || top_k.is_some() || top_p.is_some();
        (is_asked && !is_greedy).then(|| Sampling {
            temperature: temperature.unwrap_or(1.0),
            top_k,
            top_p,
        })
    }
}

/// The text alone after one prompt; after several each with its prompt.
fn texts(prompts: &[String], written: &[Written]) -> String {
    if let [only] = written {
        return format!("{}\n", only.text);
    }
    let mut text = String::new();
    for (prompt, written) in prompts.iter().zip(written) {
        let (prompt, answer) = (prompt.trim_end(), &written.text);
        writeln!(text, "> {prompt}\n{answer}\n").expect("a String takes all");
    }
    text
}

/// `{"prompt", "text", "tokens", "finish": "stop_token" | "max_new_tokens" | "context_end"}`.
fn lines(prompts: &[String], written: &[Written]) -> String {
    let line = |(prompt, written): (&String, &Written)| {
        let finish = match written.finish {
            Finish::StopToken => "stop_token",
            Finish::MaxNewTokens => "max_new_tokens",
            Finish::ContextEnd => "context_end",
        };
        let value = json!({
            "prompt": prompt, "text": written.text, "tokens": written.tokens, "finish": finish,
        });
        format!("{value}\n")
    };
    prompts.iter().zip(written).map(line).collect()
}
