//! `molora` where nothing of the repository is: the tasks are in the program, the model comes from the Hub.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use super::program::{bundled_hub, folder};
use super::server::{COMMIT, Server};

const MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// The hub with the bundled model under its own name.
fn hub() -> Server {
    let server = bundled_hub();
    server.hub().model = Some(MODEL);
    server
}

/// A folder with nothing but the program and a small task.
fn installed() -> TempDir {
    let folder = folder();
    fs::copy(env!("CARGO_BIN_EXE_molora"), folder.path().join("molora")).expect("copied");
    folder
}

fn molora(server: &Server, folder: &Path, offline: &str, arguments: &str) -> Output {
    let mut command = Command::new(folder.join("molora"));
    for variable in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .env("MOLORA_DATASETS", "")
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .env("HF_ENDPOINT", &server.endpoint)
        .env("HF_HOME", server.home())
        .env("HF_HUB_OFFLINE", offline)
        .output()
        .expect("the program starts")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_first_command_works_anywhere_and_then_without_a_network() {
    let (server, folder) = (hub(), installed());
    let train = "train lora --data data --steps 2 --out run";
    let output = molora(&server, folder.path(), "0", train);
    assert!(output.status.success(), "{}", errors(&output));
    let config = fs::read_to_string(folder.path().join("run/run.toml")).expect("written");
    let expected = format!("model = \"hub:{MODEL}@{COMMIT}\"");
    assert!(config.contains(&expected), "{config}");

    let asked = server.requests("").len();
    for offline in ["0", "1"] {
        let output = molora(
            &server,
            folder.path(),
            offline,
            &format!("{train}-{offline}"),
        );
        assert!(output.status.success(), "{}", errors(&output));
    }
    assert_eq!(server.requests("").len(), asked, "the copy is taken");

    let list = molora(&server, folder.path(), "1", "list");
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(
        list.status.success() && text.contains("banking77"),
        "{text}"
    );
}

#[test]
fn without_a_network_one_line_says_how_to_get_the_model() {
    let (server, folder) = (hub(), installed());
    let output = molora(
        &server,
        folder.path(),
        "1",
        "train lora --steps 1 --out run",
    );
    let error = errors(&output);
    assert!(!output.status.success());
    let line = error.lines().last().unwrap_or_default();
    assert!(
        line.contains("bundled:all-MiniLM-L6-v2: is not beside this program"),
        "{error}"
    );
    assert!(line.contains("run this once with a network"), "{error}");
}

#[test]
fn another_model_of_that_name_is_refused() {
    let (server, folder) = (hub(), installed());
    let mut weights = server.hub().files["model.safetensors"].clone();
    *weights.last_mut().expect("not empty") ^= 1;
    server.put("model.safetensors", &weights);
    let output = molora(
        &server,
        folder.path(),
        "0",
        "train lora --steps 1 --out run",
    );
    assert!(!output.status.success());
    assert!(
        errors(&output).contains("expected 53aa51172d"),
        "{}",
        errors(&output)
    );
    assert!(!folder.path().join("run/run.toml").exists());
}
