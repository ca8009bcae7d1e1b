//! Who gets to see the token.

use molora_train::hub::{HubConfig, Token, fetch};

use super::server::{Fault, Server, go_on, id};

const WEIGHTS: &str = "model.safetensors";

fn with_token(server: &Server) -> HubConfig {
    let mut config = server.config();
    config.token = Some(Token::new("hf_secret").expect("a token"));
    config
}

#[test]
fn the_hub_gets_the_token_with_every_request() {
    let server = Server::new();
    server.fail(WEIGHTS, &[Fault::Redirect(300_000)]);
    fetch(&id("org/name"), &with_token(&server), &mut go_on).expect("a whole model");
    let requests = server.requests("");
    assert_eq!(
        requests.len(),
        5,
        "description, three files, one redirection to another path"
    );
    assert_eq!(server.requests("/elsewhere/").len(), 1);
    for request in requests {
        assert_eq!(
            request.authorization.as_deref(),
            Some("Bearer hf_secret"),
            "{}",
            request.path
        );
    }
}

#[test]
fn another_host_does_not_get_the_token() {
    let (server, other) = (Server::new(), Server::new());
    server.hub().elsewhere = other.endpoint.clone();
    server.fail(WEIGHTS, &[Fault::Redirect(300_000)]);
    fetch(&id("org/name"), &with_token(&server), &mut go_on).expect("a whole model");
    assert_eq!(server.requests("/elsewhere/").len(), 0);
    let requests = other.requests("");
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(requests[0].path, "/elsewhere/model.safetensors");
    assert_eq!(requests[0].authorization, None);
}

#[test]
fn the_other_host_is_asked_for_the_rest_too() {
    let (server, other) = (Server::new(), Server::new());
    server.hub().elsewhere = other.endpoint.clone();
    let faults = [Fault::Cut(1000), Fault::Redirect(300_000)];
    server.fail(WEIGHTS, &faults);
    fetch(&id("org/name"), &with_token(&server), &mut go_on).expect("a whole model");
    assert_eq!(other.ranges(WEIGHTS), [Some("bytes=1000-".to_owned())]);
}

#[test]
fn without_a_token_none_is_sent() {
    let server = Server::new();
    server.fetch().expect("a whole model");
    assert!(
        server
            .requests("")
            .iter()
            .all(|request| request.authorization.is_none())
    );
}
