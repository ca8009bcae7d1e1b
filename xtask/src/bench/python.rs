//! The references in Python, in a virtual environment under the target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use xshell::Shell;

use super::measure::{run, target_folder};
use super::record::Measurement;

/// Names an interpreter that has the packages already.
const VARIABLE: &str = "MOLORA_PYTHON";

/// An interpreter with the packages of a file of `xtask/python`.
#[derive(Debug)]
pub(crate) struct Python {
    interpreter: PathBuf,
    scripts: PathBuf,
}

impl Python {
    /// The interpreter that `MOLORA_PYTHON` names, else that of a virtual environment with the packages of a file,
    /// which is made if it is not there.
    pub(crate) fn find(shell: &Shell, requirements: &str) -> Result<Self> {
        let scripts = shell.current_dir().join("xtask/python");
        let interpreter = match std::env::var_os(VARIABLE) {
            Some(given) => given.into(),
            None => environment(&target_folder(shell)?, &scripts.join(requirements))?,
        };
        Ok(Self {
            interpreter,
            scripts,
        })
    }

    /// A script of `xtask/python` that is to be run.
    pub(crate) fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.interpreter);
        command.arg(self.scripts.join(name));
        command
    }

    /// Runs a reference: a script and its arguments.
    pub(crate) fn run(&self, arguments: &[String], seconds: f64) -> Result<Measurement> {
        let (script, arguments) = arguments.split_first().context("no script")?;
        let mut command = self.script(script);
        command.args(arguments);
        command.args(["--seconds", &seconds.to_string()]);
        let printed = run(&mut command)
            .with_context(|| format!("the reference {script} was not measured"))?;
        let line = printed.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("{script} printed `{line}`"))
    }
}

/// A virtual environment with the packages, made at the first use.
fn environment(target: &Path, requirements: &Path) -> Result<PathBuf> {
    let name = requirements.file_stem().unwrap_or_default();
    let folder = target.join("bench-venv").join(name);
    let interpreter = folder.join("bin/python");
    let is_whole = folder.join("whole");
    if !is_whole.exists() {
        println!(
            "installing the references' packages into {}",
            folder.display()
        );
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))
            .context("cannot make a virtual environment")?;
        let mut install = Command::new(&interpreter);
        install.args(["-m", "pip", "install", "--quiet", "--requirement"]);
        run(install.arg(requirements)).context("cannot install the references' packages")?;
        std::fs::write(&is_whole, "")?;
    }
    Ok(interpreter)
}

/// Script and arguments of the reference of a case, if it has one.
pub(crate) fn reference(suite: &str, case: &str, decoder: &Path) -> Option<Vec<String>> {
    let text = match (suite, case) {
        ("step", "lora") => "step.py lora",
        ("step", "samora-3") => "step.py samora --experts 3",
        ("step", "samora-3-bf16") => "step.py samora --experts 3 --dtype bf16",
        ("step", "samora-8") => "step.py samora --experts 8",
        ("step", "samora-3-short") => "step.py samora --experts 3 --rows 32 --tokens 20",
        ("decode", "batch-1") => "decode.py --batch 1",
        ("decode", "batch-8") => "decode.py --batch 8",
        ("decode", "batch-1-bf16") => "decode.py --batch 1 --dtype bf16",
        ("decode", "batch-8-bf16") => "decode.py --batch 8 --dtype bf16",
        ("lm-step", case) => return language_model(case, decoder),
        _ => return None,
    };
    let mut arguments: Vec<String> = text.split(' ').map(str::to_owned).collect();
    if suite == "decode" {
        arguments.push(decoder.display().to_string());
    }
    Some(arguments)
}

/// The reference of a language model's step; the mixtures have that of LoRA, since PEFT has none of them.
fn language_model(case: &str, decoder: &Path) -> Option<Vec<String>> {
    let mut parts = case.split('-').skip(1);
    let layers = parts.next()?;
    let mut arguments = vec!["lm_step.py".to_owned(), decoder.display().to_string()];
    arguments.extend(["--layers".into(), layers.into()]);
    for part in parts {
        match part {
            "checkpointed" => arguments.push("--checkpointed".into()),
            dtype => arguments.extend(["--dtype".into(), dtype.into()]),
        }
    }
    Some(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_found_by_case() {
        let of = |suite, case| reference(suite, case, Path::new("dir"));
        let lora = of("step", "lora").expect("a reference");
        assert_eq!(lora, ["step.py", "lora"]);
        let decode = of("decode", "batch-8").expect("a reference");
        assert_eq!(decode, ["decode.py", "--batch", "8", "dir"]);
        let step = of("lm-step", "samora-all-bf16-checkpointed").expect("a reference");
        let expected = "lm_step.py dir --layers all --dtype bf16 --checkpointed";
        assert_eq!(step.join(" "), expected);
        assert_eq!(of("mix", "3-dense"), None);
    }
}
