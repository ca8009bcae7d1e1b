//! Where the hub and its cache are: the only place that reads the hub's environment variables.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;

/// How to reach the hub and where to keep what it gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// Folder of the cache, in the layout of Python's `huggingface_hub`.
    pub cache: PathBuf,
    /// Sent to the endpoint, and to no other host.
    pub token: Option<Token>,
    /// Whether only the cache may be used.
    pub offline: bool,
    /// How often a request is made that fails without a byte of progress.
    pub attempts: u32,
    /// Pause after the first failure; it doubles with each further one.
    pub pause: Duration,
    /// How long a connection, an answer's head and each piece of its body may take.
    pub timeout: Duration,
    /// File that remembers which files of the cache have the content that their names say, so that
    /// each is read only once for that; `None` remembers nothing.
    pub memory: Option<PathBuf>,
}

/// The access token of the user. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl HubConfig {
    /// The public hub with a cache in this folder, without a token.
    pub fn new(cache: PathBuf) -> Self {
        Self {
            endpoint: "https://huggingface.co".into(),
            cache,
            token: None,
            offline: false,
            attempts: 3,
            pause: Duration::from_secs(1),
            timeout: Duration::from_secs(20),
            memory: None,
        }
    }

    /// What the environment asks for.
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `HF_ENDPOINT` | address of the hub |
    /// | `HF_HOME` | folder of cache (`hub`) and token (`token`) |
    /// | `HF_HUB_CACHE` | folder of the cache |
    /// | `HF_TOKEN`, `HF_TOKEN_PATH` | the token, or a file with it |
    /// | `HF_HUB_OFFLINE` | `1`, `on`, `yes` or `true`: use only the cache |
    ///
    /// `HF_HOME` is `~/.cache/huggingface` if unset (`XDG_CACHE_HOME` moves it); empty variables
    /// count as unset. In paths `~` and `$NAME` are replaced.
    ///
    /// # Errors
    /// [`HubError::Environment`] if a variable cannot be used or its file cannot be read.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(&|name| std::env::var_os(name))
    }

    fn from_variables(read: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let read = |name: &str| read(name).filter(|value| !value.is_empty());
        let folder = |name: &str| read(name).map(|value| expand(value, &read));
        let home = match (folder("HF_HOME"), folder("XDG_CACHE_HOME"), read("HOME")) {
            (Some(home), ..) => Some(home),
            (_, Some(cache), _) => Some(cache.join("huggingface")),
            (.., user) => user
                .map(PathBuf::from)
                .or_else(std::env::home_dir)
                .map(|user| user.join(".cache/huggingface")),
        };
        let cache = match (folder("HF_HUB_CACHE"), &home) {
            (Some(cache), _) => cache,
            (None, Some(home)) => home.join("hub"),
            (None, None) => return Err(problem("HF_HOME", "unset, and there is no home folder")),
        };
        let offline = match read("HF_HUB_OFFLINE") {
            Some(value) => is_true(&text("HF_HUB_OFFLINE", value)?),
            None => false,
        };
        let own = match (read("XDG_CACHE_HOME"), read("HOME")) {
            (Some(cache), _) => Some(PathBuf::from(cache)),
            (None, user) => user
                .map(PathBuf::from)
                .or_else(std::env::home_dir)
                .map(|user| user.join(".cache")),
        };
        let mut config = Self {
            offline,
            memory: own.map(|cache| cache.join("molora/hub.json")),
            token: token(&read, home.as_deref())?,
            ..Self::new(cache)
        };
        if let Some(value) = read("HF_ENDPOINT") {
            config.endpoint = endpoint(&text("HF_ENDPOINT", value)?)?;
        }
        Ok(config)
    }
}

impl Token {
    /// A token; white space around it is not part of it.
    ///
    /// # Errors
    /// [`HubError::Environment`] if it is empty or holds anything but visible ASCII.
    pub fn new(text: &str) -> Result<Self, HubError> {
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(problem("HF_TOKEN", "expected one word of visible ASCII"));
        }
        Ok(Self(token.into()))
    }

    #[cfg(feature = "hub")]
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// `HF_TOKEN`, or what the file of `HF_TOKEN_PATH` or else `HF_HOME/token` holds.
fn token(
    read: &dyn Fn(&str) -> Option<OsString>,
    home: Option<&Path>,
) -> Result<Option<Token>, HubError> {
    if let Some(value) = read("HF_TOKEN") {
        return Token::new(&text("HF_TOKEN", value)?).map(Some);
    }
    let (path, is_named) = match (read("HF_TOKEN_PATH"), home) {
        (Some(path), _) => (expand(path, read), true),
        (None, Some(home)) => (home.join("token"), false),
        (None, None) => return Ok(None),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Token::new(&text).map(Some),
        Err(error) if is_named || error.kind() != std::io::ErrorKind::NotFound => {
            let text = format!("{}: {error}", path.display());
            Err(problem("HF_TOKEN_PATH", text))
        }
        Err(_) => Ok(None),
    }
}

/// A path with `~`, `$NAME` and `${NAME}` replaced as Python does it: in files of variables no shell
/// has. A name that is unset, and another user's `~name`, stay as they are.
fn expand(value: OsString, read: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    let Some(text) = value.to_str() else {
        return value.into();
    };
    let home = || {
        let home = read("HOME")
            .map(PathBuf::from)
            .or_else(std::env::home_dir)?;
        Some(home.to_str()?.to_owned())
    };
    let mut rest = text;
    let mut path = String::new();
    if let Some(behind) = text.strip_prefix('~')
        && (behind.is_empty() || behind.starts_with('/'))
        && let Some(home) = home()
    {
        path = home.trim_end_matches('/').to_owned();
        rest = behind;
    }
    while let Some(start) = rest.find('$') {
        path += &rest[..start];
        rest = &rest[start..];
        let (name, length) = variable_name(&rest[1..]);
        match read(name).as_ref().and_then(|value| value.to_str()) {
            Some(value) => path += value,
            None => path += &rest[..=length],
        }
        rest = &rest[1 + length..];
    }
    (path + rest).into()
}

/// The name at the beginning of a text, in braces or not, and how many bytes it takes.
fn variable_name(text: &str) -> (&str, usize) {
    if let Some((name, _)) = text.strip_prefix('{').and_then(|text| text.split_once('}')) {
        return (name, name.len() + 2);
    }
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let length = text.find(|letter| !is_part(letter)).unwrap_or(text.len());
    (&text[..length], length)
}

fn endpoint(value: &str) -> Result<String, HubError> {
    let address = value.trim().trim_end_matches('/');
    let host = address
        .strip_prefix("https://")
        .or_else(|| address.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(char::is_whitespace) => Ok(address.into()),
        _ => {
            let text = format!("found `{value}`, expected http://... or https://...");
            Err(problem("HF_ENDPOINT", text))
        }
    }
}

fn is_true(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    ["1", "on", "yes", "true"].contains(&value.as_str())
}

fn text(variable: &'static str, value: OsString) -> Result<String, HubError> {
    let not_utf8 = |_| problem(variable, "is not UTF-8");
    value.into_string().map_err(not_utf8)
}

fn problem(variable: &'static str, problem: impl Into<String>) -> HubError {
    HubError::Environment {
        variable,
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<HubConfig, HubError> {
        HubConfig::from_variables(&|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_cache_is_where_python_looks() {
        for (variables, expected) in [
            (vec![("HOME", "/u")], "/u/.cache/huggingface/hub"),
            (
                vec![("HOME", "/u"), ("XDG_CACHE_HOME", "/c")],
                "/c/huggingface/hub",
            ),
            (vec![("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/c")], "/h/hub"),
            (vec![("HF_HOME", "/h"), ("HF_HUB_CACHE", "/k")], "/k"),
            (vec![("HF_HOME", "/h"), ("HF_HUB_CACHE", "")], "/h/hub"),
            (vec![("HF_HOME", "~/h"), ("HOME", "/u")], "/u/h/hub"),
            (vec![("HF_HOME", "~"), ("HOME", "/u/")], "/u/hub"),
            (
                vec![("HF_HOME", "~other/h"), ("HOME", "/u")],
                "~other/h/hub",
            ),
            (
                vec![
                    ("HF_HUB_CACHE", "~/$A/${B}c$D"),
                    ("HOME", "/u"),
                    ("A", "a"),
                    ("B", "b"),
                ],
                "/u/a/bc$D",
            ),
            (
                vec![("XDG_CACHE_HOME", "$HOME/c"), ("HOME", "/u")],
                "/u/c/huggingface/hub",
            ),
        ] {
            let found = config(&variables).expect("a configuration");
            assert_eq!(found.cache, Path::new(expected), "{variables:?}");
            assert_eq!((found.offline, found.token), (false, None));
        }
    }

    #[test]
    fn endpoint_and_offline_mode() {
        let variables = [
            ("HF_HOME", "/h"),
            ("HF_ENDPOINT", "http://localhost:8080/hf/"),
        ];
        let found = config(&variables).expect("a configuration");
        assert_eq!(found.endpoint, "http://localhost:8080/hf");
        let error = config(&[("HF_HOME", "/h"), ("HF_ENDPOINT", "localhost")]);
        let error = error.expect_err("no scheme").to_string();
        assert_eq!(
            error,
            "HF_ENDPOINT: found `localhost`, expected http://... or https://..."
        );
        for (value, expected) in [("1", true), ("True", true), ("yes", true), ("0", false)] {
            let found = config(&[("HF_HOME", "/h"), ("HF_HUB_OFFLINE", value)]);
            assert_eq!(found.expect("a configuration").offline, expected, "{value}");
        }
    }

    #[test]
    fn the_token_is_found_and_kept_secret() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let home = folder.path().to_str().expect("UTF-8");
        let secret = |variables: &[(&str, &str)]| {
            let token = config(variables).expect("a configuration").token;
            token.map(|token| token.0)
        };
        assert_eq!(secret(&[("HF_HOME", home)]), None);
        let file = folder.path().join("token");
        std::fs::write(&file, "hf_file\n").expect("writable");
        assert_eq!(secret(&[("HF_HOME", home)]).as_deref(), Some("hf_file"));
        let path = file.to_str().expect("UTF-8");
        let elsewhere = [("HF_HOME", "/h"), ("HF_TOKEN_PATH", path)];
        assert_eq!(secret(&elsewhere).as_deref(), Some("hf_file"));
        let variable = [("HF_HOME", home), ("HF_TOKEN", "hf_variable")];
        assert_eq!(secret(&variable).as_deref(), Some("hf_variable"));
        let token = Token::new("hf_secret").expect("a token");
        assert!(!format!("{token:?}").contains("secret"));
        for broken in ["a b", "a\nb"] {
            let error = Token::new(broken).expect_err("no token").to_string();
            assert!(!error.contains(broken), "{error}");
        }
        let error = config(&[("HF_HOME", home), ("HF_TOKEN_PATH", "/no/such/file")]);
        assert!(
            error
                .expect_err("no file")
                .to_string()
                .contains("/no/such/file")
        );
    }
}
