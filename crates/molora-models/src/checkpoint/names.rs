//! Names that tensors had in the files of the first BERT models.

/// Now and then.
const PARTS: [(&str, &str); 2] = [(".weight", ".gamma"), (".bias", ".beta")];

/// What a normalisation's tensor was called by TensorFlow: `gamma` for `weight`, `beta` for `bias`. None
/// for tensors of other layers.
pub(crate) fn old_name(name: &str) -> Option<String> {
    PARTS.into_iter().find_map(|(now, then)| {
        let path = name.strip_suffix(now)?;
        path.ends_with("LayerNorm").then(|| format!("{path}{then}"))
    })
}

/// What a tensor of a file is called now.
pub(crate) fn current_name(name: &str) -> String {
    let now = PARTS.into_iter().find_map(|(now, then)| {
        let path = name.strip_suffix(then)?;
        path.ends_with("LayerNorm").then(|| format!("{path}{now}"))
    });
    now.unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_are_those_of_normalisations() {
        let now = "bert.embeddings.LayerNorm.weight";
        let then = "bert.embeddings.LayerNorm.gamma";
        assert_eq!(old_name(now).as_deref(), Some(then));
        assert_eq!(current_name(then), now);
        assert_eq!(current_name(now), now);
        assert_eq!(
            old_name("a.LayerNorm.bias").as_deref(),
            Some("a.LayerNorm.beta")
        );
        assert_eq!(old_name("a.dense.weight"), None);
        assert_eq!(current_name("a.dense.gamma"), "a.dense.gamma");
    }
}
