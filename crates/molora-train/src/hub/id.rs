//! The name of a model on the hub.

use std::fmt;
use std::str::FromStr;

use super::HubError;

/// The hub's own limit for `org/name`, in bytes.
const MAX_NAME: usize = 96;

/// `org/name` and, if one is named, a branch, tag or commit: `org/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    name: String,
    revision: Option<String>,
}

impl ModelId {
    /// `org/name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch, tag or commit; `main` if none was named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Whether the revision is a commit's full hash, and so can never mean anything else.
    pub fn is_commit(&self) -> bool {
        is_commit(self.revision())
    }

    /// The same model at another revision.
    pub fn at(&self, revision: &str) -> Self {
        Self {
            name: self.name.clone(),
            revision: Some(revision.into()),
        }
    }
}

impl FromStr for ModelId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        let problem = match (name.split_once('/'), revision) {
            _ if name.len() > MAX_NAME => "the name is longer than 96 bytes",
            (Some((org, model)), _) if !is_part(org) || !is_part(model) => {
                "expected letters, digits, `-`, `_` and `.` around one `/`"
            }
            (None, _) => "expected org/name",
            (_, Some(revision)) if !is_revision(revision) => {
                "expected a branch, tag or commit after `@`"
            }
            _ => {
                return Ok(Self {
                    name: name.into(),
                    revision: revision.map(String::from),
                });
            }
        };
        Err(HubError::Id {
            text: text.into(),
            problem,
        })
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// Whether a text is a commit's full hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The hub's rule for organizations and names; it keeps paths such as `../model` out, too.
fn is_part(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty()
        && text.bytes().all(is_letter)
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
        && !text.contains("--")
        && !text.contains("..")
}

/// The revision becomes a path in the cache.
fn is_revision(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    let is_part =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(is_letter);
    text.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_revision() {
        let id: ModelId = "org/name-1.5_b".parse().expect("a name");
        assert_eq!((id.name(), id.revision()), ("org/name-1.5_b", "main"));
        assert_eq!(id.to_string(), "org/name-1.5_b");
        let id: ModelId = "org/name@refs/pr/1".parse().expect("a name");
        assert_eq!((id.name(), id.revision()), ("org/name", "refs/pr/1"));
        assert!(!id.is_commit());
        let id = id.at(&"a".repeat(40));
        assert!(id.is_commit());
        assert_eq!(id.to_string().parse::<ModelId>().expect("its own text"), id);
    }

    #[test]
    fn paths_are_no_names() {
        let long = format!("org/{}", "a".repeat(100));
        for text in [
            "",
            "name",
            "/name",
            "org/",
            "a/b/c",
            "./name",
            "../name",
            "org/..",
            "org/.name",
            "~/name",
            "org/na me",
            "C:\\a/b",
            "org/a--b",
            "-org/name",
            "org/name@",
            "org/name@..",
            "org/name@/main",
            "org/name@a/../b",
            &long,
        ] {
            assert!(text.parse::<ModelId>().is_err(), "{text}");
        }
    }
}
