//! Finding golden cases and telling their kinds apart.

mod tensors;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use tensors::Tensors;

/// Environment variable with a folder of cases from transformers, PEFT and the authors' layers.
pub const MOLORA_GOLDEN: &str = "MOLORA_GOLDEN";

/// Environment variable with a folder of cases for mixture-of-LoRA methods, losses and merging.
pub const MOLORA_GOLDEN_METHODS: &str = "MOLORA_GOLDEN_METHODS";

/// The file that makes a folder a case.
const EXPECTED: &str = "expected.safetensors";

/// One folder of golden vectors.
#[derive(Debug, Clone)]
pub struct Case {
    /// The folder that holds `expected.safetensors`.
    pub dir: PathBuf,
    /// Name for messages: the path below the folder searched, or the folder's own name.
    pub name: String,
    /// Whether the case came with the crate, and not from a folder that the environment names.
    pub bundled: bool,
}

impl Case {
    /// The JSON file `file` of the case, `None` if there is no such file.
    ///
    /// # Panics
    /// If the file cannot be read or is no JSON.
    pub fn json(&self, file: &str) -> Option<Value> {
        let path = self.dir.join(file);
        if !path.exists() {
            return None;
        }
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// The number at `keys` of the JSON file `file`, for example `["shapes", "rank"]`.
    ///
    /// # Panics
    /// If the file, a key or the number is missing.
    pub fn number(&self, file: &str, keys: &[&str]) -> f64 {
        let document = self.json(file);
        keys.iter()
            .fold(document.as_ref(), |value, key| value?.get(key))
            .and_then(Value::as_f64)
            .unwrap_or_else(|| panic!("{}: no number at {keys:?}", self.dir.join(file).display()))
    }

    /// All tensors of `expected.safetensors`.
    ///
    /// # Panics
    /// If the file cannot be read.
    pub fn tensors(&self) -> Tensors {
        Tensors::read(&self.dir.join(EXPECTED))
    }
}

/// The golden cases to test: those below the folder that the environment variable `env` names if
/// it is set, else those below `bundled`; the folder itself may be a case too. Sorted by path.
///
/// Cargo runs a test in its crate's folder, so a relative path is also looked for from the folders
/// above, where the user typed it.
///
/// # Panics
/// If the folder does not exist or holds no case: a run that tests nothing must not pass.
pub fn cases(bundled: &Path, env: &str) -> Vec<Case> {
    match std::env::var_os(env) {
        Some(dir) => {
            let here = std::env::current_dir().unwrap_or_default();
            let dir = locate(Path::new(&dir), &here);
            cases_in(&dir, false, &format!("{env} names"))
        }
        None => cases_in(bundled, true, "the crate bundles"),
    }
}

/// `dir` as seen from `here` or, if it is not there, from the nearest folder above that has it.
fn locate(dir: &Path, here: &Path) -> PathBuf {
    let seen = here
        .ancestors()
        .map(|above| above.join(dir))
        .find(|path| path.is_dir());
    seen.unwrap_or_else(|| dir.to_path_buf())
}

/// The cases among `cases` for which `is_kind` holds, by their content and never by their name.
///
/// A folder from the environment may hold other kinds only; then nothing is returned and a line on
/// standard error says so, past the capture of the test harness.
///
/// # Panics
/// If bundled cases hold none of this kind.
pub fn of_kind(cases: Vec<Case>, kind: &str, is_kind: impl Fn(&Case) -> bool) -> Vec<Case> {
    let bundled = cases.iter().any(|case| case.bundled);
    let found: Vec<Case> = cases.into_iter().filter(|case| is_kind(case)).collect();
    assert!(
        !bundled || !found.is_empty(),
        "no bundled golden case of kind {kind}"
    );
    if found.is_empty() {
        // A lost note is no reason to fail the test.
        let _ = writeln!(
            std::io::stderr(),
            "golden: no case of kind {kind} in this folder"
        );
    }
    found
}

fn cases_in(root: &Path, bundled: bool, origin: &str) -> Vec<Case> {
    assert!(
        root.is_dir(),
        "golden folder {} that {origin} does not exist",
        root.display()
    );
    let mut dirs = Vec::new();
    collect(root, &mut dirs);
    assert!(
        !dirs.is_empty(),
        "golden folder {} that {origin} holds no {EXPECTED} at any depth",
        root.display()
    );
    dirs.sort();
    dirs.into_iter()
        .map(|dir| Case {
            name: name_of(&dir, root),
            dir,
            bundled,
        })
        .collect()
}

/// Adds `dir` and every folder below it that is a case.
fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    if dir.join(EXPECTED).is_file() {
        found.push(dir.to_path_buf());
    }
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    for entry in entries {
        let path = entry
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .path();
        if path.is_dir() {
            collect(&path, found);
        }
    }
}

fn name_of(dir: &Path, root: &Path) -> String {
    match dir.strip_prefix(root) {
        Ok(below) if !below.as_os_str().is_empty() => below.display().to_string(),
        _ => dir
            .file_name()
            .unwrap_or(dir.as_os_str())
            .to_string_lossy()
            .into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tensors::tests::write_expected;
    use tempfile::TempDir;

    /// A root with the cases `a` and `nested/b`, and a folder that is none.
    fn tree() -> TempDir {
        let root = TempDir::new().unwrap();
        for dir in ["a", "nested/b", "none"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        write_expected(&root.path().join("a"));
        write_expected(&root.path().join("nested/b"));
        fs::write(
            root.path().join("a/case.json"),
            r#"{"shapes": {"rank": 4}}"#,
        )
        .unwrap();
        root
    }

    fn names(cases: &[Case]) -> Vec<&str> {
        cases.iter().map(|case| case.name.as_str()).collect()
    }

    #[test]
    fn cases_are_found_at_any_depth_in_the_order_of_their_paths() {
        let root = tree();
        assert_eq!(
            names(&cases_in(root.path(), true, "a test has")),
            ["a", "nested/b"]
        );
    }

    #[test]
    fn the_folder_itself_may_be_the_case() {
        let root = tree();
        assert_eq!(
            names(&cases_in(&root.path().join("a"), true, "a test has")),
            ["a"]
        );
    }

    #[test]
    #[should_panic(expected = "holds no expected.safetensors")]
    fn a_folder_without_a_case_is_refused() {
        cases_in(&tree().path().join("none"), false, "a test has");
    }

    #[test]
    #[should_panic(expected = "that a test has does not exist")]
    fn a_missing_folder_is_refused() {
        cases_in(&tree().path().join("missing"), false, "a test has");
    }

    #[test]
    fn a_relative_folder_is_found_from_the_folders_above() {
        let root = tree();
        let here = root.path().join("nested/b");
        assert_eq!(locate(Path::new("a"), &here), root.path().join("a"));
        assert_eq!(
            locate(Path::new("../none"), &root.path().join("a")),
            root.path().join("a/../none")
        );
        assert_eq!(locate(Path::new("missing"), &here), Path::new("missing"));
        assert_eq!(
            locate(&root.path().join("none"), &here),
            root.path().join("none")
        );
    }

    #[test]
    fn an_unset_variable_selects_the_bundled_folder() {
        let root = tree();
        let cases = cases(root.path(), "MOLORA_GOLDEN_OF_NO_TEST");
        assert!(cases.iter().all(|case| case.bundled));
        assert_eq!(names(&cases), ["a", "nested/b"]);
    }

    #[test]
    fn kinds_are_told_by_content() {
        let root = tree();
        let cases = cases_in(root.path(), true, "a test has");
        let with_json = of_kind(cases, "json", |case| case.json("case.json").is_some());
        assert_eq!(names(&with_json), ["a"]);
        assert_eq!(with_json[0].number("case.json", &["shapes", "rank"]), 4.0);
    }

    #[test]
    fn a_foreign_folder_may_lack_a_kind() {
        let cases = cases_in(tree().path(), false, "a test has");
        assert!(of_kind(cases, "absent", |_| false).is_empty());
    }

    #[test]
    #[should_panic(expected = "no bundled golden case of kind absent")]
    fn the_bundled_folder_may_not_lack_a_kind() {
        of_kind(
            cases_in(tree().path(), true, "a test has"),
            "absent",
            |_| false,
        );
    }

    #[test]
    #[should_panic(expected = r#"no number at ["shapes", "width"]"#)]
    fn a_missing_number_is_named() {
        let root = tree();
        cases_in(root.path(), true, "a test has")[0].number("case.json", &["shapes", "width"]);
    }
}
