//! The bench target `measure` of molora-train: building it, and running its cases.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;
use xshell::{Shell, cmd};

use super::record::Measurement;
use super::{Bench, DeviceName, Suite};

/// Seconds that each shape of the matmul peak is measured for.
const PEAK_SECONDS: f64 = 0.5;

/// The built program, and where its models are.
#[derive(Debug)]
pub(crate) struct Measure<'a> {
    program: PathBuf,
    models: PathBuf,
    model: Option<&'a Path>,
}

impl<'a> Measure<'a> {
    /// Builds it for some devices, and lets it write its models.
    pub(crate) fn build(shell: &Shell, devices: &[DeviceName], bench: &'a Bench) -> Result<Self> {
        let features: Vec<_> = devices.iter().map(|device| device.feature()).collect();
        let program = build(shell, &["-p", "molora-train"], &features.join(","))?;
        let models = target_folder(shell)?.join("bench-models");
        run(Command::new(&program).arg("models").arg(&models))?;
        Ok(Self {
            program,
            models,
            model: bench.model.as_deref(),
        })
    }

    /// Why a device cannot be used, if so.
    pub(crate) fn probe(&self, device: DeviceName) -> Result<Option<String>> {
        probe(&self.program, device.flag())
    }

    /// The cases of a suite.
    pub(crate) fn cases(&self, suite: Suite) -> Result<Vec<String>> {
        self.list(&suite.name())
    }

    fn list(&self, suite: &str) -> Result<Vec<String>> {
        let listed = run(Command::new(&self.program).args(["list", suite]))?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// The device's best f32 matmul in GFLOP/s.
    pub(crate) fn peak(&self, device: DeviceName) -> Result<f64> {
        let mut peak = 0.0_f64;
        for case in self.list("matmul")? {
            let measured = self.run(device, "matmul", &case, PEAK_SECONDS)?;
            // A peak is what was reached, whatever else ran on the machine meanwhile.
            let gflops = measured.gflops.unwrap_or(0.0);
            peak = peak.max(gflops * measured.median_ms / measured.best_ms);
        }
        Ok(peak)
    }

    /// What the device reads from its memory at best, in GB/s.
    pub(crate) fn bandwidth(&self, device: DeviceName) -> Result<f64> {
        let mut peak = 0.0_f64;
        for case in self.list("memory")? {
            let measured = self.run(device, "memory", &case, PEAK_SECONDS)?;
            let rate = measured.gb_per_s.unwrap_or(0.0);
            peak = peak.max(rate * measured.median_ms / measured.best_ms);
        }
        Ok(peak)
    }

    /// Folder of the decoder that is measured.
    pub(crate) fn decoder(&self) -> PathBuf {
        let random = || self.models.join("smollm2");
        self.model.map_or_else(random, Path::to_owned)
    }

    /// Measures a case.
    pub(crate) fn run(
        &self,
        device: DeviceName,
        suite: &str,
        case: &str,
        seconds: f64,
    ) -> Result<Measurement> {
        let mut command = Command::new(&self.program);
        command.args(["run", suite, case, "--device", device.flag()]);
        command.arg("--models").arg(&self.models);
        command.args(["--seconds", &seconds.to_string()]);
        if let Some(model) = self.model {
            command.arg("--model").arg(model);
        }
        let line = run(&mut command).with_context(|| format!("{suite}/{case} was not measured"))?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// Builds the program within a choice of packages and with features of theirs.
pub(crate) fn build(shell: &Shell, packages: &[&str], features: &str) -> Result<PathBuf> {
    let messages = cmd!(
        shell,
        "cargo build --release {packages...} --bench measure --features {features}
         --message-format json-render-diagnostics"
    );
    executable(&messages.read()?)
}

/// Why a device cannot be used, if so.
pub(crate) fn probe(program: &Path, device: &str) -> Result<Option<String>> {
    let output = output(Command::new(program).args(["probe", device]))?;
    Ok((!output.status.success()).then(|| reason(&output)))
}

/// The folder that everything is built in.
pub(crate) fn target_folder(shell: &Shell) -> Result<PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(shell.current_dir())
        .no_deps()
        .exec()?;
    Ok(metadata.target_directory.into())
}

/// The program among cargo's messages.
fn executable(messages: &str) -> Result<PathBuf> {
    let messages = Message::parse_stream(messages.as_bytes());
    let built = messages.filter_map(|message| match message {
        Ok(Message::CompilerArtifact(artifact)) if artifact.target.name == "measure" => {
            artifact.executable
        }
        _ => None,
    });
    let program = built.last().context("cargo names no program `measure`")?;
    Ok(program.into())
}

fn output(command: &mut Command) -> Result<Output> {
    let name = command.get_program().display().to_string();
    command
        .output()
        .with_context(|| format!("cannot run {name}"))
}

/// What a program prints, or an error with what it says of the problem.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{}", reason(&output));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The error of a program that failed, by what it said: the line with its name for Rust, the last
/// one for Python.
fn reason(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let reason = reason_in(&text).unwrap_or("no reason given");
    format!("{reason} ({})", output.status)
}

fn reason_in(text: &str) -> Option<&str> {
    let named = text.lines().find_map(|line| line.strip_prefix("Error: "));
    named.or_else(|| text.lines().rfind(|line| !line.trim().is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line() {
        let rust = "warning\nError: device wgpu: no adapter\n\nStack backtrace:\n 0: x\n";
        assert_eq!(reason_in(rust), Some("device wgpu: no adapter"));
        let python = "Traceback:\n  File\nImportError: no torch\n\n";
        assert_eq!(reason_in(python), Some("ImportError: no torch"));
        assert_eq!(reason_in("\n"), None);
    }

    #[test]
    fn a_program_that_cargo_does_not_name_is_an_error() {
        let error = executable("{\"reason\":\"build-finished\",\"success\":true}\n");
        assert!(error.expect_err("none").to_string().contains("`measure`"));
    }
}
