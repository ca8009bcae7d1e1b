//! `molora serve`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use molora_models::{Backbone, BaseDtype};
use molora_serve::{Options, Server, Source};
use molora_train::base::{AdapterFolder, DeviceSpec, base_model};
use molora_train::generate::{EngineOptions, Writer};
use molora_train::guide::TextEncoder;
use molora_train::predict::Predictor;
use molora_train::recipe::BaseKind;
use molora_train::store::{is_run, read_config};

use super::download::Downloads;
use super::say;
use super::source::adapter_of;

/// Tokens of prompts that are read between two tokens of the texts that are written.
const PIECE: usize = 256;

/// Options of `molora serve`.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// What to serve, each under the name of its folder or under NAME: folders of finished runs, of adapters
    /// that PEFT or `molora export` wrote, or models: folders in Hugging Face layout, or org/name[@revision]
    /// on the Hub
    #[arg(value_name = "[NAME=]RUN|ADAPTER|MODEL", required = true)]
    sources: Vec<String>,
    /// Base model of adapters [default: the one that their configuration names]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Address to listen at. Beyond this machine anybody who reaches it can ask, unless there is a key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen at; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// File with the key that every request has to bring (Authorization: Bearer KEY)
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Texts that are written at once by all models on one base; others wait
    #[arg(long, value_name = "N", default_value = "16")]
    max_rows: NonZeroUsize,
    /// Most tokens of a prompt with its answer, within what the model can
    #[arg(long, value_name = "N", default_value = "2048")]
    max_context: NonZeroUsize,
    /// Texts that may wait for a model; more are refused with status 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_waiting: usize,
    /// Seconds that requests may go on after Ctrl-C or SIGTERM; a second signal ends them at once
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u64,
    /// Type in which the matrices of base models are kept: f32, bf16, q8 or q4 [default: as in training,
    /// or f32]
    #[arg(long, value_name = "TYPE")]
    base_dtype: Option<BaseDtype>,
    /// Where to compute: cpu, ndarray, wgpu or cuda [default: as in training, or cpu]
    #[arg(long)]
    device: Option<DeviceSpec>,
}

impl ServeArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let key = self.api_key_file.as_deref().map(key_of).transpose()?;
        let is_open = key.is_none();
        let is_adapter = |source: &String| AdapterFolder::is(Path::new(named(source).1));
        ensure!(
            self.model.is_none() || self.sources.iter().any(is_adapter),
            "--model is for the folder of an adapter, and there is none"
        );
        let mut models: Vec<(String, Source)> = Vec::new();
        for source in &self.sources {
            let (name, source) = named(source);
            let model = self.open(source, &models)?;
            models.push((name.map_or_else(|| name_of(source), str::to_owned), model));
        }
        let options = Options {
            engine: EngineOptions {
                max_rows: self.max_rows.get(),
                max_context: self.max_context.get(),
                piece: PIECE,
            },
            max_waiting: self.max_waiting,
            key,
            grace: Duration::from_secs(self.grace),
        };
        let server = Server::new(models, options)?;
        plan(server.most_cache_bytes())?;
        let names = server.names().join(", ");
        let ready = |address: SocketAddr| {
            if is_open && !is_loopback(address.ip()) {
                say(&format!(
                    "anybody who reaches {address} can ask: there is no --api-key-file"
                ));
            }
            say(&format!("serving {names} at http://{address}/v1"));
        };
        let place = format!("{}:{}", self.host, self.port);
        server
            .serve((&self.host, self.port), ready)
            .with_context(|| format!("{place}: nothing can listen there"))
    }

    /// Reads what is to be served: what writes, else an encoder, which has classes if it is a run.
    /// All that write on one base model share its weights.
    fn open(&self, source: &str, others: &[(String, Source)]) -> anyhow::Result<Source> {
        let folder = Path::new(source);
        let mut downloads = Downloads::new();
        let mut show = |progress: molora_train::hub::Progress<'_>| downloads.show_all(progress);
        let others = others.iter().filter_map(|(_, other)| match other {
            Source::Writer(writer) => Some(&**writer),
            _ => None,
        });
        let others: Vec<&Writer> = others.collect();
        if is_run(folder)? {
            let base = base_model::find(&read_config(folder)?.model, &mut show)?;
            if BaseKind::of(&base.folder)? == BaseKind::Encoder {
                let predictor = Predictor::of_any_task(folder, self.device)?;
                return Ok(Source::Predictor(Box::new(predictor)));
            }
            let types = (self.base_dtype, self.device);
            let writer = Writer::of_run_beside(folder, None, types, &others)?;
            if writer.has_own_templates() {
                say(&format!(
                    "{source}: prompts are read as they are sent, without the run's data.writing.template"
                ));
            }
            return Ok(Source::Writer(Box::new(writer)));
        }
        let device = self.device.unwrap_or(DeviceSpec::Cpu);
        let base_dtype = self.base_dtype.unwrap_or_default();
        let model = self.model.as_deref().filter(|_| AdapterFolder::is(folder));
        if let Some(adapter) = adapter_of(folder, model)? {
            let writer = Writer::of_adapter_beside(&adapter, base_dtype, &device.open()?, &others)?;
            return Ok(Source::Writer(Box::new(writer)));
        }
        let base = base_model::find(source, &mut show)?;
        downloads.finish();
        if !Backbone::writes_in(&base.folder)? {
            let encoder = TextEncoder::open(source, &device.open()?)?;
            return Ok(Source::Encoder(Box::new(encoder)));
        }
        let writer = Writer::open_beside(source, base_dtype, &device.open()?, &others)?;
        Ok(Source::Writer(Box::new(writer)))
    }
}

/// A source with the name in front of it, if there is one.
fn named(source: &str) -> (Option<&str>, &str) {
    match source.split_once('=') {
        Some((name, rest)) if !Path::new(source).exists() && !name.contains('/') => {
            (Some(name), rest)
        }
        _ => (None, source),
    }
}

/// The name of a folder, or of a model on the Hub.
fn name_of(source: &str) -> String {
    let folder = Path::new(source).canonicalize();
    let name = folder
        .ok()
        .and_then(|folder| Some(folder.file_name()?.to_str()?.to_owned()));
    // A colon stands in front of a task or an expert.
    name.unwrap_or_else(|| source.to_owned()).replace(':', "-")
}

/// The key in a file, without the end of its line.
fn key_of(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let key = text.trim_end_matches(['\r', '\n']);
    let is_good = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    ensure!(
        is_good,
        "{}: it holds no key, expected one line of visible ASCII characters",
        path.display()
    );
    Ok(key.to_owned())
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Says how much memory caches may take, and refuses what the machine has not.
fn plan(bytes: usize) -> anyhow::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let gigabytes = |bytes: usize| bytes as f64 / 1e9;
    let wanted = gigabytes(bytes);
    say(&format!("keys and values take up to {wanted:.2} GB"));
    if let Some(free) = free_bytes().filter(|&free| free < bytes) {
        let free = gigabytes(free);
        anyhow::bail!(
            "keys and values may take {wanted:.2} GB, and {free:.2} GB are free: lower --max-rows or \
             --max-context"
        );
    }
    Ok(())
}

/// Memory that is free on this machine, where the system says so.
fn free_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_stand_in_front_of_a_source() {
        assert_eq!(named("mine=run"), (Some("mine"), "run"));
        assert_eq!(named("runs/a=b"), (None, "runs/a=b"));
        assert_eq!(named("org/name@main"), (None, "org/name@main"));
        assert_eq!(name_of("bundled:tiny"), "bundled-tiny");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("my-run");
        std::fs::create_dir(&path).expect("a new folder");
        assert_eq!(name_of(path.to_str().expect("UTF-8")), "my-run");
    }

    #[test]
    fn keys_are_one_visible_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let key = |text: &str| {
            std::fs::write(&path, text).expect("writable");
            key_of(&path).ok()
        };
        assert_eq!(key("secret\n").as_deref(), Some("secret"));
        assert_eq!(key("\n"), None);
        assert_eq!(key("two\nlines\n"), None);
        assert_eq!(key("with space"), None);
        assert!(is_loopback("::ffff:127.0.0.1".parse().expect("an address")));
        assert!(!is_loopback("0.0.0.0".parse().expect("an address")));
    }
}
