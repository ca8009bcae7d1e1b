//! Requests to the hub: one address, redirects, and who may see the token.

use hf_hub::Cache;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use ureq::http::{HeaderMap, Response, header};
use ureq::{Agent, Body};

use super::cache::repo;
use super::interruptible::{Ask, wait};
use super::{HubConfig, HubError, ModelId};

const MAX_REDIRECTS: usize = 10;

/// Asks one hub for one model.
pub(super) struct Client<'a> {
    pub(super) model: &'a ModelId,
    pub(super) config: &'a HubConfig,
    api: Api,
    agent: Agent,
}

/// An answer, and what the hub said about the file before it sent us elsewhere.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    pub(super) linked_size: Option<u64>,
    pub(super) etag: Option<String>,
}

impl<'a> Client<'a> {
    pub(super) fn new(model: &'a ModelId, config: &'a HubConfig) -> Result<Self, HubError> {
        let token = config.token.as_ref().map(|token| token.secret().to_owned());
        let api = ApiBuilder::from_cache(Cache::new(config.cache.clone()))
            .with_endpoint(config.endpoint.clone())
            .with_token(token)
            .with_user_agent("molora", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| connection(&config.endpoint, error))?;
        // Redirects are followed below: ureq counts another port of a host as the same host, and
        // forgets the headers of the first answer.
        let mut agent = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("molora/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(config.timeout))
            .timeout_recv_response(Some(config.timeout))
            .timeout_per_read(Some(config.timeout));
        if is_loopback(&config.endpoint) {
            agent = agent.proxy(None);
        }
        Ok(Self {
            model,
            config,
            api,
            agent: agent.build().into(),
        })
    }

    /// Asks for the description of the repository at the model's revision, with sizes and hashes.
    pub(super) fn describe(
        &self,
        go_on: &mut Ask<'_>,
    ) -> Result<(String, Response<Body>), HubError> {
        let request = self.api.repo(repo(self.model, self.model.revision()));
        let url = request.info_request().uri_ref().map(ToString::to_string);
        let url = url.ok_or_else(|| answer(&self.config.endpoint, "no address of the model"))?;
        // Not by that request: it sends the token on to another port of the same host.
        let answer = self.get(&format!("{url}?blobs=true"), 0, go_on)?.response;
        self.check_access(answer.status().as_u16(), answer.headers(), &url)?;
        Ok((url, answer))
    }

    /// Address of a commit's file.
    pub(super) fn url(&self, commit: &str, file: &str) -> String {
        let repo: ApiRepo = self.api.repo(repo(self.model, commit));
        repo.url(file)
    }

    /// Asks for a file from a byte on, wherever the hub keeps it.
    pub(super) fn get(
        &self,
        url: &str,
        start: u64,
        go_on: &mut Ask<'_>,
    ) -> Result<Answer, HubError> {
        let mut place = url.to_owned();
        let (mut linked_size, mut etag) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let is_hub = origin(&place) == origin(&self.config.endpoint);
            let mut request = self.agent.get(&place);
            if let Some(token) = self.config.token.as_ref().filter(|_| is_hub) {
                request =
                    request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret()));
            }
            if start > 0 {
                request = request.header(header::RANGE, format!("bytes={start}-"));
            }
            let response = wait(url, 2 * self.config.timeout, go_on, move || request.call())?;
            let response = response.map_err(|error| connection(url, error))?;
            let headers = response.headers();
            let read = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
            linked_size = linked_size.or_else(|| read("x-linked-size")?.parse().ok());
            etag = etag.or_else(|| read("x-linked-etag").map(String::from));
            if !response.status().is_redirection() {
                // What another host says names its own copy.
                etag = etag.or_else(|| read("etag").filter(|_| is_hub).map(String::from));
                return Ok(Answer {
                    response,
                    linked_size,
                    etag,
                });
            }
            let location = read("location").and_then(|location| join(&place, location));
            place = location.ok_or_else(|| answer(url, "a redirect without a new address"))?;
        }
        Err(answer(url, "more than 10 redirects"))
    }

    /// Turns the statuses of a hub that says no into errors.
    pub(super) fn check_access(
        &self,
        status: u16,
        headers: &HeaderMap,
        url: &str,
    ) -> Result<(), HubError> {
        let code = headers.get("x-error-code").map(|code| code.as_bytes());
        let endpoint = self.config.endpoint.clone();
        let model = self.model.clone();
        match status {
            200..300 => Ok(()),
            401 | 403 => Err(HubError::Denied {
                model,
                endpoint,
                status,
                advice: advice(self.config.token.is_some(), code == Some(b"GatedRepo")),
            }),
            404 => Err(HubError::NoSuchModel {
                what: match code {
                    Some(b"RevisionNotFound") => "revision",
                    _ => "model",
                },
                model,
                endpoint,
            }),
            _ => Err(HubError::Status {
                url: url.into(),
                status,
            }),
        }
    }
}

fn advice(has_token: bool, is_gated: bool) -> &'static str {
    match (is_gated, has_token) {
        (true, false) => "it is gated: accept its terms on its page and set HF_TOKEN",
        (true, true) => "it is gated: accept its terms on its page, as the owner of the token",
        (false, false) => "is the name right? If the model is private or gated, set HF_TOKEN",
        (false, true) => "is the name right, and may the owner of the token read the model?",
    }
}

pub(super) fn connection(url: &str, error: impl std::fmt::Display) -> HubError {
    HubError::Connection {
        url: url.into(),
        problem: error.to_string(),
        hint: "",
    }
}

pub(super) fn answer(url: &str, problem: impl Into<String>) -> HubError {
    HubError::Answer {
        url: url.into(),
        problem: problem.into(),
    }
}

/// Scheme, host and port: `https://host:port`.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']);
    end.map_or(url, |end| &url[..host + end])
}

/// The address that a redirect from `place` leads to.
fn join(place: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.into());
    }
    let scheme = place.split("//").next()?;
    match location {
        _ if location.starts_with("//") => Some(format!("{scheme}{location}")),
        _ if location.starts_with('/') => Some(format!("{}{location}", origin(place))),
        _ => None,
    }
}

/// Whether an address is on this machine, where no proxy can reach it.
fn is_loopback(url: &str) -> bool {
    let origin = origin(url);
    let host = origin.split("://").nth(1).unwrap_or(origin);
    ["127.0.0.1", "localhost", "[::1]"]
        .iter()
        .any(|name| host == *name || host.strip_prefix(name).is_some_and(|p| p.starts_with(':')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_port_is_another_origin() {
        assert_eq!(origin("http://h:1/a/b?c"), "http://h:1");
        assert_eq!(origin("https://h"), "https://h");
        assert_ne!(origin("http://h:1/a"), origin("http://h:2/a"));
        assert_ne!(origin("http://h/a"), origin("https://h/a"));
    }

    #[test]
    fn redirects_are_joined() {
        for (location, expected) in [
            ("/b?c", Some("http://h:1/b?c")),
            ("https://x/y", Some("https://x/y")),
            ("//x/y", Some("http://x/y")),
            ("ftp://x", None),
        ] {
            assert_eq!(
                join("http://h:1/a", location).as_deref(),
                expected,
                "{location}"
            );
        }
    }

    #[test]
    fn loopback() {
        assert!(is_loopback("http://127.0.0.1:80/a") && is_loopback("http://localhost"));
        assert!(!is_loopback("http://127.0.0.1.example.org") && !is_loopback("https://h"));
    }
}
