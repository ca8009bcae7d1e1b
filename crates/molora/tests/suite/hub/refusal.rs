//! What the hub refuses, and what molora refuses of the hub.

use std::fs;

use molora_train::hub::{HubError, Token, fetch};

use super::server::{COMMIT, Fault, Server, go_on, id};

const WEIGHTS: &str = "model.safetensors";

#[test]
fn a_repository_that_is_not_there() {
    let server = Server::new();
    let error = fetch(&id("org/other"), &server.config(), &mut go_on).expect_err("no such model");
    let text = format!("{} has no model org/other (404)", server.endpoint);
    assert_eq!(error.to_string(), text);
    assert_eq!(server.requests("").len(), 1, "a 404 is final");
}

#[test]
fn a_revision_that_is_not_there() {
    let server = Server::new();
    server.hub().refuses = Some((404, "RevisionNotFound"));
    let error = fetch(&id("org/name@v9"), &server.config(), &mut go_on).expect_err("no such tag");
    assert!(
        error
            .to_string()
            .ends_with("has no revision org/name@v9 (404)"),
        "{error}"
    );
}

#[test]
fn models_that_need_another_user() {
    let server = Server::new();
    let mut config = server.config();
    for (has_token, refuses, expected) in [
        (
            false,
            (401, "RepoNotFound"),
            "(401): is the name right? If the model is private",
        ),
        (
            true,
            (401, "RepoNotFound"),
            "(401): is the name right, and may the owner of the token",
        ),
        (
            false,
            (401, "GatedRepo"),
            "(401): it is gated: accept its terms on its page and set",
        ),
        (
            true,
            (403, "GatedRepo"),
            "(403): it is gated: accept its terms on its page, as the",
        ),
    ] {
        server.hub().refuses = Some(refuses);
        config.token = has_token.then(|| Token::new("hf_secret").expect("a token"));
        let error = fetch(&id("org/name"), &config, &mut go_on).expect_err("refused");
        assert!(matches!(error, HubError::Denied { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.to_string().contains("hf_secret"));
    }
}

/// The hub describes gated models to everybody, and only keeps their files.
#[test]
fn a_gated_file() {
    let server = Server::new();
    server.fail("config.json", &[Fault::Status(401)]);
    let error = server.refusal();
    assert!(
        error.starts_with("HUB does not give out org/name (401)"),
        "{error}"
    );
    assert_eq!(server.requests("/resolve/").len(), 1);
}

#[test]
fn files_that_are_not_there() {
    let server = Server::new();
    server.fail(WEIGHTS, &[Fault::Status(404)]);
    let text = format!("org/name@{COMMIT}: the repository has no model.safetensors");
    assert_eq!(server.refusal(), text);
    server.hub().files.remove(WEIGHTS);
    let text = "org/name: the repository has no model.safetensors; molora does not read \
                pytorch_model.bin";
    assert_eq!(server.refusal(), text);
    server.hub().files.remove("config.json");
    assert_eq!(
        server.refusal(),
        "org/name: the repository has no config.json"
    );
}

#[test]
fn sizes_that_differ() {
    let url = format!("HUB/org/name/resolve/{COMMIT}/model.safetensors");
    let server = Server::new();
    server.hub().listed.insert(WEIGHTS.into(), 299_999);
    let text = format!("{url}: 300000 bytes, but 299999 were announced");
    assert_eq!(server.refusal(), text);
    server.hub().listed.clear();
    server.fail(WEIGHTS, &[Fault::Longer(7)]);
    let text = format!("{url}: 300007 bytes, but 300000 were announced");
    assert_eq!(server.refusal(), text);
    server.hub().elsewhere = String::new();
    server.fail(WEIGHTS, &[Fault::Redirect(12)]);
    let text = format!("{url}: 12 bytes, but 300000 were announced");
    assert_eq!(server.refusal(), text);
    let snapshot = server.fetch().expect("whole once the sizes agree");
    let size = fs::metadata(snapshot.folder.join(WEIGHTS))
        .expect("there")
        .len();
    assert_eq!(size, 300_000);
}

#[test]
fn sizes_that_only_the_server_of_the_file_tells() {
    let server = Server::new();
    server.hub().lists_no_sizes = true;
    server.fail(WEIGHTS, &[Fault::Redirect(300_000), Fault::Cut(9)]);
    server.fetch().expect("the headers tell the sizes");
    // Without a size in the description, the size of the redirection counts.
    let server = Server::new();
    server.hub().lists_no_sizes = true;
    server.fail(WEIGHTS, &[Fault::Redirect(12)]);
    let error = server.refusal();
    assert!(
        error.ends_with(": 300000 bytes, but 12 were announced"),
        "{error}"
    );
}

#[test]
fn answers_that_lead_out_of_the_cache() {
    let server = Server::new();
    server.hub().sha = Some("../../evil".into());
    let error = server.refusal();
    assert!(
        error.ends_with("found sha \"../../evil\", expected 40 hexadecimal digits"),
        "{error}"
    );
    let server = Server::new();
    server.hub().files.remove(WEIGHTS);
    let index = "model.safetensors.index.json";
    server.put(index, br#"{"weight_map": {"a": "../../evil.safetensors"}}"#);
    let error = server.refusal();
    assert!(
        error.contains("weight a: found \"../../evil.safetensors\""),
        "{error}"
    );
    server.hub().files.clear();
    assert_eq!(
        server.refusal(),
        "org/name: the repository has no config.json"
    );
}

#[test]
fn a_shard_that_the_repository_lacks() {
    let server = Server::new();
    server.hub().files.remove(WEIGHTS);
    let index = "model.safetensors.index.json";
    server.put(index, br#"{"weight_map": {"a": "model-1.safetensors"}}"#);
    let text = format!("org/name@{COMMIT}: the repository has no model-1.safetensors");
    assert_eq!(server.refusal(), text);
}

#[test]
fn a_redirection_in_a_circle() {
    let server = Server::new();
    server.fail(WEIGHTS, &vec![Fault::Circle; 20]);
    let error = server.refusal();
    assert!(error.ends_with("more than 10 redirects"), "{error}");
}

#[test]
fn no_description_at_all() {
    let server = Server::new();
    server.hub().sha = Some(String::new());
    assert!(server.refusal().contains("found sha \"\""));
}
