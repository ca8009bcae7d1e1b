//! What a run ran on.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use xshell::{Shell, cmd};

/// Extensions of the instruction set that change what is reached, by Linux' names.
const FEATURES: [&str; 7] = [
    "avx2",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
    "bf16",
    "sve",
];

/// The machine and the software.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) features: Vec<String>,
    pub(crate) memory_gib: Option<f64>,
    pub(crate) burn: String,
    pub(crate) rustc: String,
    /// Of the run, by UTC.
    pub(crate) date: String,
}

impl Setting {
    pub(crate) fn of_this_machine(shell: &Shell) -> Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = field(&memory, "MemTotal").and_then(|text| text.strip_suffix(" kB"));
        let gib = kib.and_then(|kib| kib.parse::<f64>().ok());
        let flags = field(&info, "flags").or_else(|| field(&info, "Features"));
        let flags: Vec<&str> = flags.unwrap_or_default().split(' ').collect();
        let has = |name: &&str| flags.contains(name);
        Ok(Self {
            processor: field(&info, "model name")
                .unwrap_or(std::env::consts::ARCH)
                .into(),
            cores: std::thread::available_parallelism()?.get(),
            features: FEATURES
                .into_iter()
                .filter(has)
                .map(str::to_owned)
                .collect(),
            memory_gib: gib.map(|kib| (kib / 1024.0 / 1024.0).round()),
            burn: burn_version(shell)?,
            rustc: cmd!(shell, "rustc --version").quiet().read()?,
            date: cmd!(shell, "date -u +%Y-%m-%d").quiet().read()?,
        })
    }

    /// Name of the folder of its results.
    pub(crate) fn folder(&self) -> String {
        format!(
            "{}-{}-{}-cores",
            self.date,
            slug(&self.processor),
            self.cores
        )
    }
}

/// The commit that is measured, marked if files differ from it: other files than results, so that
/// several runs can be saved one after another.
pub(crate) fn commit(shell: &Shell) -> Result<String> {
    let commit = cmd!(shell, "git rev-parse --short HEAD").quiet().read()?;
    let others = ["--", ".", ":!docs/benchmarks"];
    let status = cmd!(
        shell,
        "git status --porcelain --untracked-files=no {others...}"
    );
    let is_clean = status.quiet().read()?.is_empty();
    Ok(if is_clean {
        commit
    } else {
        format!("{commit}-dirty")
    })
}

fn burn_version(shell: &Shell) -> Result<String> {
    let lock = shell.read_file("Cargo.lock")?;
    let entry = lock.split("[[package]]").find_map(|package| {
        let rest = package
            .trim_start()
            .strip_prefix("name = \"burn\"\nversion = \"")?;
        rest.split('"').next()
    });
    Ok(entry.context("Cargo.lock has no burn")?.to_owned())
}

/// The first value of a `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// A processor's name as part of a folder's: without its maker and without clock rates.
fn slug(processor: &str) -> String {
    let name = processor
        .to_lowercase()
        .replace("(r)", "")
        .replace("(tm)", "");
    let name = name.split('@').next().unwrap_or_default();
    let is_noise = |word: &&str| ["amd", "intel", "cpu", "processor", "apple"].contains(word);
    let words = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty() && !is_noise(word));
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_named_by_processors() {
        assert_eq!(slug("AMD EPYC"), "epyc");
        let xeon = "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz";
        assert_eq!(slug(xeon), "xeon-platinum-8481c");
    }

    #[test]
    fn fields_are_found() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2\n";
        assert_eq!(field(text, "model name"), Some("AMD EPYC"));
        assert_eq!(field(text, "flags"), Some("fpu avx2"));
        assert_eq!(field(text, "Features"), None);
    }

    #[test]
    fn this_machine_has_a_setting() {
        let shell = crate::workspace::shell().expect("a workspace");
        let setting = Setting::of_this_machine(&shell).expect("a setting");
        assert!(setting.burn.starts_with("0."), "{setting:?}");
        assert!(setting.folder().ends_with("-cores"), "{setting:?}");
    }
}
