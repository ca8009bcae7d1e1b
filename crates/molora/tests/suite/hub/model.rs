//! Whole downloads: which files, where they go, and that they come once.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use molora_train::hub::{Progress, Snapshot, fetch};

use super::server::{COMMIT, Server, go_on, id};

const INDEX: &str = "model.safetensors.index.json";

/// Names of what is in a folder, sorted.
fn entries(folder: &Path) -> Vec<String> {
    let read = fs::read_dir(folder).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<String> = read
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The snapshot holds these files as the hub has them, and nothing else.
fn assert_holds(server: &Server, snapshot: &Snapshot, files: &[&str]) {
    assert_eq!(snapshot.commit, COMMIT);
    assert_eq!(entries(&snapshot.folder), files);
    for &file in files {
        let found = fs::read(snapshot.folder.join(file)).expect("readable");
        assert!(found == server.hub().files[file], "{file}");
    }
}

#[test]
fn the_model_and_nothing_else() {
    let server = Server::new();
    let snapshot = server.fetch().expect("a whole model");
    let files = ["config.json", "model.safetensors", "tokenizer.json"];
    assert_holds(&server, &snapshot, &files);
    let repo = server.home().join("hub/models--org--name");
    assert_eq!(snapshot.folder, repo.join("snapshots").join(COMMIT));
    let main = fs::read_to_string(repo.join("refs/main")).expect("the revision");
    assert_eq!(main, COMMIT);
    let blobs = files.map(|file| format!("etag-of-{file}"));
    assert_eq!(entries(&repo.join("blobs")), blobs);
    let description = server.requests("/api/");
    let path = "/api/models/org/name/revision/main?blobs=true";
    assert_eq!(description.len(), 1);
    assert_eq!(description[0].path, path);
}

#[test]
fn optional_files_come_where_there_are_any() {
    let server = Server::new();
    let optional = [
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
    ];
    for file in optional {
        server.put(file, b"{}");
    }
    let snapshot = server.fetch().expect("a whole model");
    let mut files = vec!["config.json", "model.safetensors", "tokenizer.json"];
    files.extend(optional);
    files.sort();
    assert_holds(&server, &snapshot, &files);
}

#[test]
fn shards_of_an_index() {
    let server = Server::new();
    server.hub().files.remove("model.safetensors");
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors",
        "c": "model-1.safetensors"}}"#;
    server.put(INDEX, index.as_bytes());
    server.put("model-1.safetensors", b"first");
    server.put("model-2.safetensors", b"second");
    server.put("model-3.safetensors", b"in no index");
    let snapshot = server.fetch().expect("a whole model");
    let shards = ["model-1.safetensors", "model-2.safetensors"];
    let files = ["config.json", shards[0], shards[1], INDEX, "tokenizer.json"];
    assert_holds(&server, &snapshot, &files);
    assert_eq!(server.requests("/model-1").len(), 1);
}

#[test]
fn files_come_once() {
    let server = Server::new();
    server.fetch().expect("a whole model");
    let before = server.requests("/resolve/").len();
    assert_eq!(before, 3);
    server.fetch().expect("from the cache");
    assert_eq!(server.requests("/resolve/").len(), before);
    assert_eq!(server.requests("/api/").len(), 2, "main may have moved");
    let at_commit = id("org/name").at(COMMIT);
    fetch(&at_commit, &server.config(), &mut go_on).expect("from the cache");
    assert_eq!(server.requests("/api/").len(), 2, "a commit cannot move");
}

#[test]
fn revisions_are_asked_for_by_name() {
    let server = Server::new();
    let model = id("org/name@refs/pr/1");
    fetch(&model, &server.config(), &mut go_on).expect("a whole model");
    assert_eq!(server.requests("/revision/refs%2Fpr%2F1?").len(), 1);
    let mut offline = server.config();
    offline.offline = true;
    fetch(&model, &offline, &mut go_on).expect("the cache knows the revision");
    fetch(&id("org/name"), &offline, &mut go_on).expect_err("the cache does not know main");
}

#[test]
fn several_at_a_time_download_once() {
    // What can go wrong is a matter of microseconds: the one who is done while another one begins.
    for _ in 0..10 {
        let server = Server::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| server.fetch().expect("a whole model"));
            }
        });
        assert_eq!(server.requests("/resolve/").len(), 3);
    }
}

#[test]
fn progress_counts_bytes() {
    let server = Server::new();
    let mut seen: Vec<(String, u64, u64)> = Vec::new();
    let result = server.fetch_with(&mut |progress| {
        match progress {
            Progress::Bytes { file, done, total } => seen.push((file.into(), done, total)),
            Progress::Asking { .. } => {}
            other => panic!("nothing fails: {other:?}"),
        }
        ControlFlow::Continue(())
    });
    result.expect("a whole model");
    let (file, done, total) = seen.last().expect("three files");
    assert_eq!(
        (&**file, *done, *total),
        ("model.safetensors", 300_000, 300_000)
    );
    assert_eq!(seen[0], ("config.json".into(), 0, 2));
    let weights = seen.iter().filter(|(file, ..)| file == "model.safetensors");
    let done: Vec<u64> = weights.map(|(_, done, _)| *done).collect();
    assert!(done.len() > 2 && done.is_sorted(), "{done:?}");
}
