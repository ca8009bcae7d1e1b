//! Which linear layers are adapted: names, globs and regular expressions over dotted module paths.

use globset::{GlobBuilder, GlobMatcher};
use regex::Regex;

use crate::ModelError;
use crate::error::similar;

/// A pattern over module paths such as `encoder.layer.0.attention.self.query`.
///
/// - `all-linear` matches every path, and `all-attention` those with a component that has `attn` or
///   `attention` in its name, whatever the family; `all-feed-forward` matches the others;
/// - a plain name matches a path that equals it or ends with `.name`, as PEFT's lists do;
/// - a name with `*`, `?`, `[` or `{` is a glob that must match the path or an end of it that starts
///   at a dot: `*` stays within one component, `**` crosses dots;
/// - `regex:...` must match the whole path, as PEFT's strings do.
#[derive(Debug, Clone)]
pub struct SitePattern {
    text: String,
    matcher: Matcher,
}

#[derive(Debug, Clone)]
enum Matcher {
    All,
    Attention,
    FeedForward,
    Name,
    Glob(GlobMatcher),
    Regex(Regex),
}

impl SitePattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`ModelError::BadPattern`] if it is not a valid glob or regular expression.
    pub fn new(text: &str) -> Result<Self, ModelError> {
        let bad = |problem: String| ModelError::BadPattern {
            pattern: text.into(),
            problem,
        };
        let matcher = if text == "all-linear" {
            Matcher::All
        } else if text == "all-attention" {
            Matcher::Attention
        } else if text == "all-feed-forward" {
            Matcher::FeedForward
        } else if let Some(regex) = text.strip_prefix("regex:") {
            let whole = format!("^(?:{regex})$");
            Matcher::Regex(Regex::new(&whole).map_err(|e| bad(one_line(&e.to_string())))?)
        } else if text.contains(['*', '?', '[', '{']) {
            // Globs separate at slashes; paths are compared with dots turned into slashes.
            let glob = format!("**/{}", text.replace('.', "/"));
            let glob = GlobBuilder::new(&glob).literal_separator(true).build();
            Matcher::Glob(
                glob.map_err(|e| bad(e.kind().to_string()))?
                    .compile_matcher(),
            )
        } else {
            Matcher::Name
        };
        Ok(Self {
            text: text.into(),
            matcher,
        })
    }

    /// Whether a module path matches.
    pub fn matches(&self, path: &str) -> bool {
        match &self.matcher {
            Matcher::All => true,
            Matcher::Attention => is_attention(path),
            Matcher::FeedForward => !is_attention(path),
            Matcher::Name => path
                .strip_suffix(&self.text)
                .is_some_and(|front| front.is_empty() || front.ends_with('.')),
            Matcher::Glob(glob) => glob.is_match(path.replace('.', "/")),
            Matcher::Regex(regex) => regex.is_match(path),
        }
    }

    /// Whether this is a plain name, which PEFT understands as it is.
    pub fn is_plain_name(&self) -> bool {
        matches!(self.matcher, Matcher::Name)
    }
}

fn is_attention(path: &str) -> bool {
    let path = path.to_lowercase();
    path.contains("attn") || path.contains("attention")
}

/// The positions in `paths` that at least one of `targets` matches.
///
/// # Errors
/// [`ModelError::NoSuchSite`] if one of the targets matches nothing, with names that look like it;
/// [`ModelError::BadPattern`] if one cannot be read; [`ModelError::Inconsistent`] if there are none.
pub fn select_sites(targets: &[String], paths: &[String]) -> Result<Vec<usize>, ModelError> {
    if targets.is_empty() {
        return Err(ModelError::Inconsistent(
            "adapter.targets is empty, expected a name".into(),
        ));
    }
    let mut chosen = vec![false; paths.len()];
    for target in targets {
        let pattern = SitePattern::new(target)?;
        let mut found = false;
        for (chosen, path) in chosen.iter_mut().zip(paths) {
            if pattern.matches(path) {
                (*chosen, found) = (true, true);
            }
        }
        if !found {
            return Err(no_such_site(target, paths));
        }
    }
    Ok((0..paths.len()).filter(|&index| chosen[index]).collect())
}

fn no_such_site(target: &str, paths: &[String]) -> ModelError {
    // A user writes the end of a path: compare with ends of as many components.
    let components = target.split('.').count();
    let mut ends: Vec<&str> = paths
        .iter()
        .map(|path| last_components(path, components))
        .collect();
    ends.sort_unstable();
    ends.dedup();
    let mut similar = similar(target, ends.iter().copied());
    if similar.is_empty() {
        similar = ends.iter().take(8).map(|&end| end.to_owned()).collect();
    }
    ModelError::NoSuchSite {
        pattern: target.into(),
        similar,
    }
}

fn last_components(path: &str, count: usize) -> &str {
    let start = path
        .rmatch_indices('.')
        .nth(count - 1)
        .map_or(0, |(dot, _)| dot + 1);
    &path[start..]
}

fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Vec<String> {
        let parts = [
            "attention.self.query",
            "attention.self.value",
            "attention.output.dense",
            "output.dense",
        ];
        let path = |layer| move |part: &&str| format!("encoder.layer.{layer}.{part}");
        (0..2)
            .flat_map(|layer| parts.iter().map(path(layer)).collect::<Vec<_>>())
            .collect()
    }

    fn chosen(targets: &[&str]) -> Vec<usize> {
        let targets: Vec<String> = targets.iter().map(|&target| target.into()).collect();
        select_sites(&targets, &paths()).expect("every target matches")
    }

    #[test]
    fn names_globs_and_regular_expressions() {
        assert_eq!(chosen(&["all-linear"]), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(chosen(&["all-attention"]), [0, 1, 2, 4, 5, 6]);
        assert_eq!(chosen(&["all-feed-forward"]), [3, 7]);
        assert_eq!(chosen(&["query"]), [0, 4]);
        assert_eq!(chosen(&["output.dense"]), [2, 3, 6, 7]);
        assert_eq!(chosen(&["encoder.layer.1.output.dense"]), [7]);
        assert_eq!(chosen(&["attention.self.{query,value}"]), [0, 1, 4, 5]);
        assert_eq!(chosen(&["layer.0.**"]), [0, 1, 2, 3]);
        assert_eq!(chosen(&["layer.*.output.dense"]), [3, 7]);
        assert_eq!(chosen(&["regex:.*layer\\.1\\..*self.*"]), [4, 5]);
        assert_eq!(
            chosen(&["query", "encoder.layer.0.output.dense"]),
            [0, 3, 4]
        );
    }

    #[test]
    fn a_name_matches_at_a_dot_only() {
        assert!(!SitePattern::new("uery").expect("a name").matches("a.query"));
        assert!(
            !SitePattern::new("regex:query")
                .expect("a regex")
                .matches("a.query")
        );
    }

    #[test]
    fn a_target_without_a_match_lists_near_names() {
        let error = select_sites(&["qurey".into()], &paths())
            .expect_err("misspelt")
            .to_string();
        assert_eq!(
            error,
            "target `qurey` matches no linear layer; near names: query"
        );
        assert!(select_sites(&["*.nothing".into()], &paths()).is_err());
        assert!(select_sites(&["regex:(".into()], &paths()).is_err());
        assert!(select_sites(&[], &paths()).is_err());
    }
}
