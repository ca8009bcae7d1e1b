//! llama.cpp as a reference of decoding, by llama-cpp-python on files of the same weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use super::measure::{run, target_folder};
use super::python::Python;
use super::record::Measurement;

/// llama.cpp and its files of a model.
#[derive(Debug)]
pub(crate) struct Llama {
    python: Python,
    folder: PathBuf,
}

impl Llama {
    /// Lets molora write the file of a model in f32, and llama.cpp the files of its other formats.
    pub(crate) fn of(shell: &Shell, program: &Path, model: &Path) -> Result<Self> {
        let python = Python::find(shell, "llama.txt")?;
        let folder = target_folder(shell)?.join("bench-models/llama");
        shell.remove_path(&folder)?;
        shell.create_dir(&folder)?;
        let file = |format: &str| folder.join(format!("{format}.gguf"));
        let source = file("f32");
        cmd!(
            shell,
            "{program} export {model} --format gguf --dtype f32 --out {source}"
        )
        .run()?;
        for format in ["f16", "bf16", "q8_0", "q4_0"] {
            let mut quantize = python.script("quantize.py");
            quantize.arg(&source).arg(format).arg(file(format));
            run(&mut quantize).with_context(|| format!("the model in {format}"))?;
        }
        Ok(Self { python, folder })
    }

    /// What a case is compared with: script and arguments for each of llama.cpp's formats of that size.
    pub(crate) fn references(&self, suite: &str, case: &str) -> Vec<Vec<String>> {
        let arguments = |format: &str| {
            let mut arguments = reference(suite, case)?;
            let file = self.folder.join(format!("{format}.gguf"));
            arguments.extend([file.display().to_string(), "--name".into(), format.into()]);
            Some(arguments)
        };
        formats(case)
            .iter()
            .filter_map(|of| arguments(of))
            .collect()
    }

    /// Runs a reference.
    pub(crate) fn run(&self, arguments: &[String], seconds: f64) -> Result<Measurement> {
        self.python.run(arguments, seconds)
    }
}

/// llama.cpp's formats of the size of a case's weights.
fn formats(case: &str) -> &'static [&'static str] {
    match case.rsplit('-').next() {
        Some("bf16") => &["bf16", "f16"],
        Some("q8") => &["q8_0"],
        Some("q4") => &["q4_0"],
        _ => &["f32"],
    }
}

/// Script and arguments for a case, but for the file; none where llama.cpp has no such thing.
fn reference(suite: &str, case: &str) -> Option<Vec<String>> {
    let mut parts = case.split('-');
    let option = match (suite, parts.next()?) {
        ("decode", "batch") => "--batch",
        ("decode", "prompt") => "--prompt",
        _ => return None,
    };
    let arguments = ["llama.py", option, parts.next()?];
    Some(arguments.map(str::to_owned).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_found_by_case() {
        let of = |case| reference("decode", case);
        assert_eq!(
            of("batch-8-bf16").expect("a reference"),
            ["llama.py", "--batch", "8"]
        );
        assert_eq!(
            of("prompt-512").expect("a reference"),
            ["llama.py", "--prompt", "512"]
        );
        assert_eq!(of("samora-3-q4"), None);
        assert_eq!(reference("step", "lora"), None);
        assert_eq!(formats("batch-8-bf16"), ["bf16", "f16"]);
        assert_eq!(formats("prompt-512-q4"), ["q4_0"]);
        assert_eq!(formats("batch-1"), ["f32"]);
    }
}
