//! Plain text: ASCII, no trailing spaces, no large files.

use super::Finding;

/// Endings of the text files that people write here.
const TEXT: [&str; 10] = [
    ".rs",
    ".toml",
    ".md",
    ".css",
    ".html",
    ".py",
    ".sh",
    ".yml",
    ".ci/run",
    ".gitignore",
];
/// Largest file outside the folder of data, in bytes.
const SIZE_MAX: usize = 1 << 20;
/// The folder of data, whose text is other people's and whose files are large.
const DATA: &str = "datasets/";

/// Whether a file is text that people write here.
pub(super) fn is_text(file: &str) -> bool {
    !file.starts_with(DATA) && TEXT.iter().any(|ending| file.ends_with(ending))
}

/// Checks the characters of a text file.
pub(super) fn check(file: &str, text: &str) -> Vec<Finding> {
    let lines = text.split('\n').enumerate();
    lines
        .flat_map(|(index, line)| check_line(file, index + 1, line))
        .collect()
}

fn check_line(file: &str, number: usize, line: &str) -> Vec<Finding> {
    let foreign = line
        .chars()
        .enumerate()
        .find(|(_, character)| !character.is_ascii());
    let foreign = foreign.map(|(column, character)| {
        let code = u32::from(character);
        format!("U+{code:04X} in column {} is not ASCII", column + 1)
    });
    let trailing = line
        .ends_with(char::is_whitespace)
        .then(|| "trailing space".to_owned());
    let messages = foreign.into_iter().chain(trailing);
    messages
        .map(|message| Finding::error(file, number, message))
        .collect()
}

/// Checks the size of any file.
pub(super) fn check_size(file: &str, bytes: usize) -> Option<Finding> {
    let message = format!("file has {bytes} bytes, at most {SIZE_MAX} outside {DATA}");
    (bytes > SIZE_MAX && !file.starts_with(DATA)).then(|| Finding::error(file, 1, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_characters_and_trailing_spaces_are_found() {
        let text = "plain\nan \u{2192} arrow\nspace \nreturn\r\n";
        let found = check("a.md", text);
        let found: Vec<_> = found.iter().map(|f| (f.line, f.message.as_str())).collect();
        let arrow = "U+2192 in column 4 is not ASCII";
        assert_eq!(
            found,
            [(2, arrow), (3, "trailing space"), (4, "trailing space")]
        );
    }

    #[test]
    fn data_may_be_large_and_foreign() {
        assert!(check_size("datasets/base/model.safetensors", 2 * SIZE_MAX).is_none());
        assert!(check_size("docs/report.png", SIZE_MAX + 1).is_some());
        assert!(check_size("docs/report.png", SIZE_MAX).is_none());
        assert!(!is_text("datasets/README.md") && is_text("README.md") && is_text(".ci/run"));
        assert!(!is_text("docs/report.png"));
    }
}
