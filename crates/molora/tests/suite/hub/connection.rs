//! Connections that break, servers that stumble, and downloads that go on.

use std::ops::ControlFlow;

use molora_train::hub::{HubError, Progress, fetch};

use super::server::{Fault, Server, go_on, id};

const WEIGHTS: &str = "model.safetensors";

/// The weights in the cache are those of the hub.
fn assert_whole(server: &Server) {
    let snapshot = server.fetch().expect("from the cache");
    let found = std::fs::read(snapshot.folder.join(WEIGHTS)).expect("readable");
    assert!(found == server.hub().files[WEIGHTS]);
}

fn from(start: usize) -> Option<String> {
    Some(format!("bytes={start}-"))
}

#[test]
fn a_cut_connection_is_taken_up_again() {
    let server = Server::new();
    // Four cuts in a row, though only three attempts may fail without progress.
    let cuts = [1000, 2000, 3000, 4000].map(Fault::Cut);
    server.fail(WEIGHTS, &cuts);
    let mut problems = Vec::new();
    let result = server.fetch_with(&mut |progress| {
        if let Progress::Retry { file, problem } = progress {
            problems.push(format!("{file}: {problem}"));
        }
        ControlFlow::Continue(())
    });
    result.expect("a whole model");
    let ranges = [None, from(1000), from(3000), from(6000), from(10000)];
    assert_eq!(server.ranges(WEIGHTS), ranges);
    assert_eq!(problems.len(), 4);
    assert!(
        problems[0].starts_with("model.safetensors: http://"),
        "{}",
        problems[0]
    );
    assert_whole(&server);
}

/// Else it would be asked as often as the file has bytes.
#[test]
fn a_server_that_sends_a_byte_each_time_is_given_up() {
    let server = Server::new();
    server.fail(WEIGHTS, &[1, 1, 1, 1, 1].map(Fault::Cut));
    let error = server.fetch().expect_err("no progress");
    assert!(matches!(error, HubError::Connection { .. }), "{error}");
    assert_eq!(server.ranges(WEIGHTS).len(), 3);
}

#[test]
fn the_next_process_goes_on_where_the_last_one_ended() {
    let server = Server::new();
    server.fail(WEIGHTS, &[Fault::Cut(70_000)]);
    let mut config = server.config();
    config.attempts = 1;
    let error = fetch(&id("org/name"), &config, &mut go_on).expect_err("a cut connection");
    assert!(matches!(error, HubError::Connection { .. }), "{error}");
    let mut first = None;
    let result = server.fetch_with(&mut |progress| {
        if let Progress::Bytes { done, .. } = progress {
            first.get_or_insert(done);
        }
        ControlFlow::Continue(())
    });
    result.expect("the rest");
    assert_eq!(first, Some(70_000));
    assert_eq!(server.ranges(WEIGHTS), [None, from(70_000)]);
    assert_whole(&server);
}

#[test]
fn a_stopped_download_goes_on() {
    let server = Server::new();
    let result = server.fetch_with(&mut |progress| match progress {
        Progress::Bytes {
            file: WEIGHTS,
            done,
            ..
        } if done > 0 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let error = result.expect_err("stopped");
    assert!(matches!(error, HubError::Stopped { .. }), "{error}");
    let text = "stopped while model.safetensors of org/name was downloaded; the same command \
                goes on with it";
    assert_eq!(error.to_string(), text);
    server.fetch().expect("the rest");
    let ranges = server.ranges(WEIGHTS);
    assert!(ranges[1].is_some(), "{ranges:?}");
    assert_whole(&server);
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let server = Server::new();
    server.fail(WEIGHTS, &[Fault::Cut(5000), Fault::WholeFile]);
    server.fetch().expect("a whole model");
    assert_eq!(server.ranges(WEIGHTS), [None, from(5000)]);
    assert_whole(&server);
}

#[test]
fn a_part_that_does_not_fit_is_given_up() {
    let server = Server::new();
    server.fail(WEIGHTS, &[Fault::Cut(5000), Fault::Status(416)]);
    server.fetch().expect("a whole model");
    assert_eq!(server.ranges(WEIGHTS), [None, from(5000), None]);
    assert_whole(&server);
}

#[test]
fn another_part_than_asked_for_is_refused() {
    let server = Server::new();
    server.fail(WEIGHTS, &[Fault::Cut(5000), Fault::OtherPart]);
    let error = server.refusal();
    let text = "asked for bytes from 5000 on, got Content-Range `bytes 5001-299999/300000`";
    assert!(error.ends_with(text), "{error}");
    server.fetch().expect("the next one goes on");
    assert_whole(&server);
}

#[test]
fn a_server_in_trouble_is_asked_again() {
    let server = Server::new();
    server.hub().busy = 2;
    server.fail(WEIGHTS, &[Fault::Status(500), Fault::Status(429)]);
    server.fetch().expect("a whole model");
    assert_eq!(server.requests("/api/").len(), 3);
    assert_eq!(server.ranges(WEIGHTS), [None, None, None]);
    assert_whole(&server);
}

#[test]
fn a_server_that_stays_in_trouble_is_given_up() {
    let server = Server::new();
    server.hub().busy = 9;
    let url = "HUB/api/models/org/name/revision/main";
    assert_eq!(server.refusal(), format!("{url}: status 503"));
    assert_eq!(server.requests("/api/").len(), 3);
}

#[test]
fn a_server_that_is_down() {
    let server = Server::new();
    let mut config = server.config();
    // Nobody listens there: the port is reserved for a service that is long gone.
    let address = "127.0.0.1:1";
    config.endpoint = format!("http://{address}");
    let fail = || fetch(&id("org/name"), &config, &mut go_on).expect_err("nobody answers");
    let error = fail().to_string();
    assert!(
        error.starts_with(&format!("http://{address}/api/models/org/name")),
        "{error}"
    );
    assert!(error.contains("refused"), "{error}");
    assert!(!error.contains("HF_HUB_OFFLINE"), "{error}");
    server.fetch().expect("a whole model");
    let error = fail().to_string();
    assert!(
        error.ends_with("; the cache holds the model: HF_HUB_OFFLINE=1 uses that"),
        "{error}"
    );
}
