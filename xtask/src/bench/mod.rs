//! `cargo xtask bench`: measures the program's parts on this machine, device by device.
//!
//! The measuring is done by the bench target `measure` of molora-train, each case in a process of
//! its own; with `--against python` a PyTorch reference of the same shape runs in turn with it, so
//! that a drift of the machine's speed hits both.

mod bars;
mod hardware;
mod llama;
mod measure;
mod python;
mod record;
mod save;
mod serve;
mod table;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use xshell::Shell;

use self::llama::Llama;
use self::measure::Measure;
use self::python::Python;
use self::record::{Measurement, Record, combine, fastest};
use crate::workspace;

/// What `cargo xtask bench` is asked for.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Where to measure; a device that is not there is skipped with the reason.
    #[arg(long, value_delimiter = ',', default_value = "flex")]
    devices: Vec<DeviceName>,
    /// What to measure; everything if not given.
    #[arg(long, value_delimiter = ',')]
    suite: Vec<Suite>,
    /// Only cases with this in their name.
    #[arg(long)]
    filter: Option<String>,
    /// Adds the results to docs/benchmarks/DATE-HARDWARE/bench.{json,md}.
    #[arg(long)]
    save: bool,
    /// Runs a reference of the same shapes in turn, and prints ratios and bars.
    #[arg(long)]
    against: Option<Peer>,
    /// How often the two take turns.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Seconds of measuring per case and round.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// A decoder in Hugging Face layout for `decode`, in place of a random one in the shape of
    /// SmolLM2-135M, and for `serve`.
    #[arg(long)]
    model: Option<PathBuf>,
    /// The program that serves, and writes files for llama.cpp [default: molora, built for release]
    #[arg(long)]
    program: Option<PathBuf>,
}

/// A backend by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeviceName {
    Flex,
    Ndarray,
    Wgpu,
    Cuda,
}

/// A group of cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Whole training steps in MiniLM's shape.
    Step,
    /// A training step of every recipe, at equal parameters.
    Methods,
    /// The gated low-rank mix, from 3 to 64 experts.
    Mix,
    /// Every operation of molora-kernels, fast against portable.
    Kernels,
    /// Training steps with more experts, and with longer sequences.
    Scale,
    /// Greedy decoding.
    Decode,
    /// Steps and decoding of every family of base models at the same sizes.
    Families,
    /// Training steps of a language model, at attention and at all linear layers.
    LmStep,
    /// Streams of `molora serve`; measured alone, and only where it is asked for.
    Serve,
}

/// What to compare with.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Peer {
    /// PyTorch, transformers and PEFT.
    Python,
    /// llama.cpp by llama-cpp-python, in decoding a model with a tokenizer (--model).
    #[value(name = "llama.cpp")]
    Llama,
}

/// What is compared with.
#[derive(Debug, Default)]
struct References {
    python: Option<Python>,
    llama: Option<Llama>,
}

impl DeviceName {
    /// What the program calls the device.
    fn flag(self) -> &'static str {
        match self {
            Self::Flex => "cpu",
            Self::Ndarray => "ndarray",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }

    /// The feature of molora-train that compiles it in, and the name in tables.
    fn feature(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Ndarray => "ndarray",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }

    /// Why it is no use to build for it: an NVIDIA driver is seen by its device node.
    fn is_absent(self) -> Option<&'static str> {
        let nodes = ["/dev/nvidiactl", "/dev/dxg"];
        let has_driver = || nodes.iter().any(|node| std::path::Path::new(node).exists());
        (self == Self::Cuda && cfg!(target_os = "linux") && !has_driver())
            .then_some("no NVIDIA driver is loaded on this machine")
    }
}

impl Suite {
    fn name(self) -> String {
        let value = self.to_possible_value().expect("no suite is skipped");
        value.get_name().to_owned()
    }
}

/// Why a device of a build with some features cannot be used, if so.
pub(crate) fn absent(shell: &Shell, device: &str, features: &str) -> Result<Option<String>> {
    measure::probe(&measure::build(shell, &["--workspace"], features)?, device)
}

/// Measures, prints, and saves if asked to.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let shell = workspace::shell()?;
    if bench.suite.contains(&Suite::Serve) {
        ensure!(
            bench.suite.len() == 1,
            "the suite `serve` is measured alone"
        );
        return serve::run(&shell, bench);
    }
    let (absent, wanted): (Vec<DeviceName>, Vec<DeviceName>) = bench
        .devices
        .iter()
        .copied()
        .partition(|device| device.is_absent().is_some());
    for device in absent {
        skip(device, device.is_absent().unwrap_or_default());
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let measure = Measure::build(&shell, &wanted, bench)?;
    let references = bench.references(&shell)?;
    let mut records = Vec::new();
    for device in wanted {
        match measure.probe(device)? {
            Some(reason) => skip(device, &reason),
            None => records.extend(bench.device(device, &measure, &references)?),
        }
    }
    println!("\n{}", table::measurements(&records));
    if let Some(methods) = table::methods(&records) {
        println!("\n{methods}");
    }
    if let Some(families) = table::families(&records) {
        println!("\n{families}");
    }
    if references.python.is_some() {
        println!("\n{}", table::ratios(&records));
    }
    if let Some(llama) = table::llama(&records) {
        println!("\n{llama}");
    }
    let verdicts = bars::judge(&records);
    if !verdicts.is_empty() {
        println!("\n{}", table::bars(&verdicts));
    }
    match bench.save && !records.is_empty() {
        true => save::add(&shell, records),
        false => Ok(()),
    }
}

fn skip(device: DeviceName, reason: &str) {
    println!("{} is skipped: {reason}", device.feature());
}

impl Bench {
    /// What is asked for, ready to be run.
    fn references(&self, shell: &Shell) -> Result<References> {
        let mut references = References::default();
        match self.against {
            None => {}
            Some(Peer::Python) => {
                references.python = Some(Python::find(shell, "requirements.txt")?);
            }
            Some(Peer::Llama) => {
                let model = self.model.as_deref();
                let model =
                    model.context("llama.cpp needs a decoder with a tokenizer: --model DIR")?;
                let program = workspace::program(shell, self.program.as_deref())?;
                references.llama = Some(Llama::of(shell, &program, model)?);
            }
        }
        Ok(references)
    }

    /// All cases on a device.
    fn device(
        &self,
        device: DeviceName,
        measure: &Measure<'_>,
        references: &References,
    ) -> Result<Vec<Record>> {
        let peak = measure.peak(device)?;
        println!("{}: matmul peak {peak:.0} GFLOP/s", device.feature());
        let bandwidth = match device {
            DeviceName::Flex => measure.bandwidth(device)?,
            // Their memory is not that of the processor.
            _ => 0.0,
        };
        println!("{}: memory peak {bandwidth:.1} GB/s", device.feature());
        let mut records = Vec::new();
        for suite in self.suites() {
            for case in measure.cases(suite)? {
                if self.filter.as_ref().is_none_or(|part| case.contains(part)) {
                    let mut record = self.case(device, suite, &case, (measure, references))?;
                    record.peak_gflops = peak;
                    record.peak_gb_per_s = bandwidth;
                    println!("{}", table::line(&record));
                    records.push(record);
                }
            }
        }
        Ok(records)
    }

    fn suites(&self) -> Vec<Suite> {
        match self.suite.is_empty() {
            true => {
                let all = Suite::value_variants().iter().copied();
                all.filter(|suite| *suite != Suite::Serve).collect()
            }
            false => self.suite.clone(),
        }
    }

    /// One case, in turn with its references if there are any.
    fn case(
        &self,
        device: DeviceName,
        suite: Suite,
        case: &str,
        (measure, references): (&Measure<'_>, &References),
    ) -> Result<Record> {
        let (name, model) = (suite.name(), measure.decoder());
        // They run on the processor too.
        let is_compared = device == DeviceName::Flex;
        let python = references.python.as_ref().filter(|_| is_compared);
        let python = python.and_then(|python| {
            let arguments = python::reference(&name, case, &model)?;
            Some((python, arguments))
        });
        let llama = references.llama.as_ref().filter(|_| is_compared);
        let llama = llama.map(|llama| (llama, llama.references(&name, case)));
        let is_alone = python.is_none() && llama.as_ref().is_none_or(|(_, of)| of.is_empty());
        let rounds = if is_alone { 1 } else { self.rounds };
        let (mut ours, mut theirs): (Vec<Measurement>, Vec<Measurement>) = Default::default();
        let mut formats = vec![Vec::new(); llama.as_ref().map_or(0, |(_, of)| of.len())];
        for _ in 0..rounds.max(1) {
            ours.push(measure.run(device, &name, case, self.seconds)?);
            if let Some((python, arguments)) = &python {
                theirs.push(python.run(arguments, self.seconds)?);
            }
            if let Some((llama, references)) = &llama {
                for (arguments, rounds) in references.iter().zip(&mut formats) {
                    rounds.push(llama.run(arguments, self.seconds)?);
                }
            }
        }
        Ok(Record {
            suite: name,
            case: case.into(),
            device: device.feature().into(),
            peak_gflops: 0.0,
            peak_gb_per_s: 0.0,
            commit: String::new(),
            ours: combine(ours).unwrap_or_default(),
            python: combine(theirs),
            llama: fastest(formats),
        })
    }
}
