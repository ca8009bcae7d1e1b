//! `molora generate`.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use clap::Args;
use molora_models::{BaseDtype, Finish, Sampling};
use serde_json::json;

use super::chat::Chat;
use super::download::Downloads;
use super::source::adapter_of;
use super::{STANDARD_INPUT, print_written, read_standard_input, read_utf8, say};
use molora_train::base::{DeviceSpec, base_model, write_atomically};
use molora_train::generate::{Prompt, WriteOptions, Writer, Written, parse_prompts};
use molora_train::store::{is_run, read_config};

/// Options of `molora generate`.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// Folder of a finished run, or of an adapter that PEFT or `molora export` wrote; or a model: a folder in
    /// Hugging Face layout, or org/name[@revision] on the Hub
    #[arg(value_name = "RUN|ADAPTER|MODEL")]
    source: String,
    /// Base model of an adapter [default: the one that its configuration names]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// A text to answer or to continue; may be repeated
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["prompts", "interactive"])]
    prompt: Vec<String>,
    /// File with a prompt on each line, or - for standard input: texts, or in a .jsonl file objects with
    /// "prompt" or "messages"
    #[arg(long, value_name = "FILE|-")]
    prompts: Option<PathBuf>,
    /// Read messages from the terminal, or lines from standard input, and print an answer to each that
    /// takes those before into account; /help lists commands
    #[arg(short, long, conflicts_with_all = ["prompt", "prompts", "batch", "json", "output"])]
    interactive: bool,
    /// System message, for prompts that the chat template formats
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Stop an answer in front of this text; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Task of the prompts, for a run whose gates or routers depend on the task
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Let this expert of a run answer alone, by the name of its task or by its number
    #[arg(long, value_name = "NAME|N")]
    expert: Option<String>,
    /// Most new tokens of an answer [default: 64, or 512 with --interactive]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Sampling temperature: values below 1 sharpen the distribution, values above 1 flatten it; 0 takes the
    /// most likely token
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Sample from the smallest set of tokens whose probabilities sum to P
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Sample from the K most likely tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Prompts per forward pass
    #[arg(long, value_name = "B", default_value = "8")]
    batch: NonZeroUsize,
    /// Format each prompt as a user message with the model's chat template [default: if the
    /// model has one and, for a run, was trained with it]
    #[arg(long, conflicts_with = "raw")]
    chat: bool,
    /// Do not use the chat template
    #[arg(long)]
    raw: bool,
    /// Data type of the base model's matrices: f32, bf16, q8 or q4 [default: as in training, or
    /// f32]
    #[arg(long, value_name = "TYPE")]
    base_dtype: Option<BaseDtype>,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training, or cpu]
    #[arg(long)]
    device: Option<DeviceSpec>,
    /// Print one JSON object for each prompt
    #[arg(long)]
    json: bool,
    /// Write these JSON objects to a file, one on each line, or to standard output (-)
    #[arg(long, value_name = "FILE|-")]
    output: Option<PathBuf>,
    /// Overwrite an existing output file
    #[arg(long, requires = "output")]
    force: bool,
}

impl GenerateArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let sampling = self.sampling()?;
        let prompts = self.all_prompts()?;
        self.check_output()?;
        let mut writer = self.writer()?;
        if self.expert.is_some() {
            writer.set_expert(self.expert.as_deref())?;
        }
        let options = WriteOptions {
            is_chat: self.chats(&writer)?,
            uses_template: !self.raw,
            system: self.system.clone(),
            stop: self.stop.clone(),
            max_new_tokens: self.max_new_tokens.unwrap_or(match self.interactive {
                true => 512,
                false => 64,
            }),
            sampling,
            seed: self.seed,
            batch: self.batch.get(),
        };
        if self.interactive {
            let source = &self.source;
            let chat = Chat {
                source,
                writer,
                options,
            };
            return chat.run();
        }
        let written = writer.write(&prompts, &options)?;
        if let Some(path) = self.file() {
            write_atomically(path, lines(&prompts, &written).as_bytes())?;
            say(&format!("{} answers: {}", written.len(), path.display()));
            return Ok(());
        }
        match self.json || self.output.is_some() {
            true => print_written(&lines(&prompts, &written)),
            false => print_written(&texts(&prompts, &written)),
        }
    }

    /// The output, if that is a file and not standard output.
    fn file(&self) -> Option<&Path> {
        self.output
            .as_deref()
            .filter(|path| *path != Path::new("-"))
    }

    /// Refuses an output that cannot be written, before anything is generated for it.
    fn check_output(&self) -> anyhow::Result<()> {
        let Some(path) = self.file() else {
            return Ok(());
        };
        let name = path.display();
        ensure!(
            self.force || !path.exists(),
            "{name}: it is there already; replace it with --force"
        );
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        ensure!(
            folder.is_none_or(Path::is_dir),
            "{name}: there is no such folder"
        );
        Ok(())
    }

    /// Whether the chat template frames texts: if that is wanted, else if it is usual for the model.
    fn chats(&self, writer: &Writer) -> anyhow::Result<bool> {
        let wanted = match (self.chat, self.raw) {
            (false, false) => None,
            (chat, _) => Some(chat),
        };
        let chats = writer.chats(wanted)?;
        ensure!(
            chats || self.system.is_none(),
            "{}: --system needs a chat template; put the text in front of the prompt",
            self.source
        );
        Ok(chats)
    }

    fn all_prompts(&self) -> anyhow::Result<Vec<Prompt>> {
        let mut prompts: Vec<Prompt> = self.prompt.iter().cloned().map(Prompt::Text).collect();
        let Some(path) = &self.prompts else {
            return Ok(prompts);
        };
        if path == Path::new("-") {
            let text = read_standard_input()?;
            let is_json = text.trim_start().starts_with('{');
            prompts.extend(parse_prompts(&text, Path::new(STANDARD_INPUT), is_json)?);
        } else {
            let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
            let has_ending = |name: &str| ending.as_ref().is_some_and(|ending| ending == name);
            ensure!(
                !has_ending("json"),
                "{}: its lines would be prompts as they stand; for objects with \"prompt\" or \"messages\", one on \
                 each line, call it .jsonl",
                path.display()
            );
            let text = read_utf8(path)?;
            let is_json = has_ending("jsonl");
            prompts.extend(parse_prompts(&text, path, is_json)?);
        }
        ensure!(
            !self.raw
                || !prompts
                    .iter()
                    .any(|prompt| matches!(prompt, Prompt::Chat(_))),
            "{}: --raw takes texts as they are, and has no way to write messages",
            path.display()
        );
        Ok(prompts)
    }

    fn writer(&self) -> anyhow::Result<Writer> {
        let folder = Path::new(&self.source);
        // With a bar, should the model have to come from the hub.
        let mut downloads = Downloads::new();
        let mut show = |progress: molora_train::hub::Progress<'_>| downloads.show_all(progress);
        if is_run(folder)? {
            let model = &self.model;
            ensure!(
                model.is_none(),
                "{}: --model is for the folder of an adapter",
                self.source
            );
            base_model::find(&read_config(folder)?.model, &mut show)?;
            let task = self.task.as_deref();
            return Ok(Writer::of_run(folder, task, self.base_dtype, self.device)?);
        }
        for (option, value) in [("--task", &self.task), ("--expert", &self.expert)] {
            if value.is_some() {
                bail!("{}: {option} needs a run, and this is none", self.source);
            }
        }
        let device = self.device.unwrap_or(DeviceSpec::Cpu);
        let base_dtype = self.base_dtype.unwrap_or_default();
        if let Some(adapter) = adapter_of(folder, self.model.as_deref())? {
            return Ok(Writer::of_adapter(&adapter, base_dtype, &device.open()?)?);
        }
        base_model::find(&self.source, &mut show)?;
        downloads.finish();
        Ok(Writer::open(&self.source, base_dtype, &device.open()?)?)
    }

    /// Any option of the drawing asks for it.
    fn sampling(&self) -> anyhow::Result<Option<Sampling>> {
        let (temperature, top_k, top_p) = (self.temperature, self.top_k, self.top_p);
        let is_cut = top_k.is_some() || top_p.is_some();
        if temperature == Some(0.0) {
            ensure!(
                !is_cut,
                "--temperature 0 takes the most likely token: --top-k and --top-p need one above 0"
            );
            return Ok(None);
        }
        let is_asked = temperature.is_some() || is_cut;
        Ok(is_asked.then(|| Sampling {
            temperature: temperature.unwrap_or(1.0),
            top_k,
            top_p,
            ..Sampling::default()
        }))
    }
}

/// The text alone after one prompt; after several each with its prompt.
fn texts(prompts: &[Prompt], written: &[Written]) -> String {
    if let [only] = written {
        return format!("{}\n", only.text);
    }
    let mut text = String::new();
    for (prompt, written) in prompts.iter().zip(written) {
        let (prompt, answer) = (prompt.text().trim_end(), &written.text);
        writeln!(text, "> {prompt}\n{answer}\n").expect("a String takes all");
    }
    text
}

/// `{"prompt" or "messages", "text", "tokens", "finish": "stop_token" | "stop_text" | "max_new_tokens" |
/// "context_end"}`.
fn lines(prompts: &[Prompt], written: &[Written]) -> String {
    let line = |(prompt, written): (&Prompt, &Written)| {
        let finish = match written.finish {
            Finish::StopToken => "stop_token",
            Finish::Watcher => "stop_text",
            Finish::MaxNewTokens => "max_new_tokens",
            Finish::ContextEnd => "context_end",
        };
        let (key, asked) = match prompt {
            Prompt::Text(text) => ("prompt", json!(text)),
            Prompt::Chat(chat) => ("messages", json!(chat.messages)),
        };
        let value = json!({
            key: asked, "text": written.text, "tokens": written.tokens, "finish": finish,
        });
        format!("{value}\n")
    };
    prompts.iter().zip(written).map(line).collect()
}
