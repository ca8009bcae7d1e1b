//! Hubs and mirrors that send other bytes than they announce, too many, or none.

use std::fs;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use molora_train::hub::{HubConfig, HubError, Progress, Token, fetch};

use super::server::{Fault, Server, go_on, head, id};

const WEIGHTS: &str = "model.safetensors";
const ABC_SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
/// As git names a blob of `abc`.
const ABC_GIT: &str = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";

/// A hub whose weights are `abc`, with a hash.
fn hub_of_abc(hash: &str) -> Server {
    let server = Server::new();
    server.put(WEIGHTS, b"abc");
    server.hub().digests.insert(WEIGHTS.into(), hash.into());
    server
}

/// `abd`, which is as long.
fn other_content() -> Fault {
    let mut response = head(200, &[], 3);
    response.extend(b"abd");
    Fault::Raw(response)
}

fn impatient(server: &Server) -> HubConfig {
    let mut config = server.config();
    config.timeout = Duration::from_millis(300);
    config
}

#[test]
fn contents_are_checked_against_the_hashes() {
    for hash in [ABC_SHA256, ABC_GIT] {
        let server = hub_of_abc(hash);
        server.fail(WEIGHTS, &[other_content()]);
        let error = server.fetch().expect_err("another content");
        assert!(matches!(error, HubError::Hash { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.ends_with(&format!("but {hash} was announced")),
            "{text}"
        );
        let snapshot = server.fetch().expect("the right content");
        let blob = fs::read_link(snapshot.folder.join(WEIGHTS)).expect("a link");
        assert!(blob.ends_with(hash), "{}", blob.display());
    }
}

#[test]
fn another_hosts_copy_is_checked_against_the_hubs_hash() {
    let (server, mirror) = (hub_of_abc(ABC_SHA256), Server::new());
    mirror.put(WEIGHTS, b"abd");
    server.hub().elsewhere = mirror.endpoint.clone();
    server.fail(WEIGHTS, &[Fault::Redirect(3)]);
    let error = server.fetch().expect_err("another content");
    assert!(matches!(error, HubError::Hash { .. }), "{error}");
    // The hash of the redirection alone.
    let server = Server::new();
    server.put(WEIGHTS, b"abc");
    server.hub().elsewhere = mirror.endpoint.clone();
    let place = format!("{}/elsewhere/{WEIGHTS}", mirror.endpoint);
    let headers = [("Location", &*place), ("X-Linked-Etag", ABC_SHA256)];
    server.fail(WEIGHTS, &[Fault::Raw(head(302, &headers, 0))]);
    let error = server.fetch().expect_err("another content");
    assert!(matches!(error, HubError::Hash { .. }), "{error}");
}

/// The beginning that an earlier download left may be wrong: then all of it is asked for again.
#[test]
fn a_wrong_beginning_is_given_up_once() {
    let server = hub_of_abc(ABC_SHA256);
    let mut response = head(200, &[], 3);
    response.extend(b"x");
    server.fail(WEIGHTS, &[Fault::Raw(response)]);
    let snapshot = server.fetch().expect("the right content");
    assert_eq!(
        fs::read(snapshot.folder.join(WEIGHTS)).expect("readable"),
        b"abc"
    );
    let ranges = server.ranges(WEIGHTS);
    assert_eq!(ranges, [None, Some("bytes=1-".into()), None]);
}

#[test]
fn what_lies_in_the_cache_is_checked_too() {
    let server = hub_of_abc(ABC_SHA256);
    let mut config = server.config();
    config.memory = Some(server.home().join("memory.json"));
    let get = |config: &HubConfig| fetch(&id("org/name"), config, &mut go_on);
    let path = get(&config).expect("a whole model").folder.join(WEIGHTS);
    fs::write(&path, "abd").expect("writable");
    let offline = HubConfig {
        offline: true,
        ..config.clone()
    };
    let error = get(&offline).expect_err("damaged");
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
    get(&config).expect("downloaded again");
    assert_eq!(fs::read(&path).expect("readable"), b"abc");
    get(&offline).expect("whole again");
    let memory = fs::read_to_string(server.home().join("memory.json")).expect("readable");
    assert!(memory.contains(ABC_SHA256), "{memory}");
}

#[test]
fn no_more_is_read_than_was_announced() {
    let server = Server::new();
    server.put(WEIGHTS, b"abc");
    let mut response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..20 {
        response.extend(b"100000\r\n");
        response.extend(vec![b'a'; 1 << 20]);
        response.extend(b"\r\n");
    }
    server.fail(WEIGHTS, &[Fault::Raw(response)]);
    let error = server.refusal();
    assert!(
        error.ends_with(": 4 bytes, but 3 were announced"),
        "{error}"
    );
    let server = Server::new();
    let mut response = head(200, &[], 40 << 20);
    response.extend(vec![b' '; 40 << 20]);
    server.hub().raw_description = Some(response);
    let error = server.refusal();
    assert!(error.ends_with(": more than 33554432 bytes"), "{error}");
}

#[test]
fn a_hub_that_stands_still_is_given_up() {
    for in_description in [true, false] {
        let server = Server::new();
        // A head, and nothing of the body.
        let response = head(200, &[], 300_000);
        match in_description {
            true => server.hub().raw_description = Some(response),
            false => server.fail(WEIGHTS, &vec![Fault::Raw(response); 3]),
        }
        server.hub().hold = Duration::from_secs(20);
        let begin = Instant::now();
        let error = fetch(&id("org/name"), &impatient(&server), &mut go_on);
        let error = error.expect_err("nothing comes");
        assert!(matches!(error, HubError::Connection { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn the_user_can_stop_while_nothing_comes() {
    let server = Server::new();
    server.hub().raw_description = Some(head(200, &[], 300));
    server.hub().hold = Duration::from_secs(20);
    let begin = Instant::now();
    let result = server.fetch_with(&mut |progress| match progress {
        Progress::Asking { .. } if begin.elapsed() > Duration::from_millis(300) => {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    let error = result.expect_err("stopped");
    assert!(matches!(error, HubError::Stopped { .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_description_on_another_port_does_not_get_the_token() {
    let (server, other) = (Server::new(), Server::new());
    let place = format!("{}/api/models/org/name/revision/main", other.endpoint);
    server.hub().raw_description = Some(head(302, &[("Location", &place)], 0));
    let mut config = server.config();
    config.token = Some(Token::new("hf_secret").expect("a token"));
    fetch(&id("org/name"), &config, &mut go_on).expect("a whole model");
    let asked = other.requests("/api/");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].authorization, None);
    assert!(
        server
            .requests("")
            .iter()
            .all(|r| r.authorization.is_some())
    );
}
