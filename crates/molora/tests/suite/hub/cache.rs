//! Offline mode, and what the cache has to hold for it.

use std::fs;

use molora_train::hub::{HubConfig, HubError, Progress, fetch};

use super::server::{COMMIT, Server, go_on, id};

fn offline(server: &Server) -> HubConfig {
    let mut config = server.config();
    config.offline = true;
    config
}

/// What an offline download says that has to fail.
fn missing(server: &Server, model: &str) -> String {
    let before = server.requests("").len();
    let error = fetch(&id(model), &offline(server), &mut go_on).expect_err("not in the cache");
    assert_eq!(server.requests("").len(), before, "offline is offline");
    let HubError::Offline { missing, .. } = &error else {
        panic!("{error}");
    };
    let start = format!("{model}: HF_HUB_OFFLINE is set, and ");
    assert!(error.to_string().starts_with(&start), "{error}");
    missing.clone()
}

#[test]
fn offline_with_and_without_a_copy() {
    let server = Server::new();
    assert_eq!(missing(&server, "org/name"), "revision main");
    assert_eq!(
        missing(&server, &format!("org/name@{COMMIT}")),
        "config.json"
    );
    let expected = server.fetch().expect("a whole model");
    let before = server.requests("").len();
    for model in ["org/name", "org/name@main", &format!("org/name@{COMMIT}")] {
        let found = fetch(&id(model), &offline(&server), &mut go_on).expect("in the cache");
        assert_eq!(found, expected, "{model}");
    }
    assert_eq!(server.requests("").len(), before, "offline is offline");
}

#[test]
fn offline_with_half_a_copy() {
    let server = Server::new();
    let folder = server.fetch().expect("a whole model").folder;
    fs::remove_file(folder.join("model.safetensors")).expect("there");
    assert_eq!(missing(&server, "org/name"), "model.safetensors");
    let index = r#"{"weight_map": {"a": "model-1.safetensors"}}"#;
    fs::write(folder.join("model.safetensors.index.json"), index).expect("writable");
    assert_eq!(missing(&server, "org/name"), "model-1.safetensors");
    fs::write(folder.join("model-1.safetensors"), "weights").expect("writable");
    fetch(&id("org/name"), &offline(&server), &mut go_on).expect("whole again");
}

/// A download that was interrupted leaves no revision behind that an offline run would take.
#[test]
fn half_a_download_is_no_copy() {
    let server = Server::new();
    server.hub().listed.insert("model.safetensors".into(), 1);
    server.fetch().expect_err("another size");
    assert_eq!(missing(&server, "org/name"), "revision main");
}

#[test]
fn a_damaged_file_is_downloaded_again() {
    let server = Server::new();
    let path = server
        .fetch()
        .expect("a whole model")
        .folder
        .join("model.safetensors");
    fs::write(&path, "damaged").expect("writable");
    server.fetch().expect("a whole model");
    assert!(fs::read(&path).expect("readable") == server.hub().files["model.safetensors"]);
    assert_eq!(server.ranges("model.safetensors"), [None, None]);
}

/// A new commit that changes other files only costs no second copy of the weights.
#[test]
fn the_same_bytes_under_another_commit_are_linked() {
    let server = Server::new();
    let first = server.fetch().expect("a whole model").folder;
    let other = first.with_file_name("f".repeat(40));
    fs::rename(&first, &other).expect("the snapshot of another commit");
    let mut bytes = 0;
    let result = server.fetch_with(&mut |progress| {
        bytes += u32::from(matches!(progress, Progress::Bytes { .. }));
        std::ops::ControlFlow::Continue(())
    });
    result.expect("a whole model");
    assert_eq!(bytes, 0, "nothing was downloaded");
}
