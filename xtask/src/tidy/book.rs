//! The pages of the book: each has its line in the summary, and links lead somewhere.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use anyhow::Result;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use xshell::Shell;

use super::Finding;

/// The folder of the book.
const BOOK: &str = "docs/";
/// The list of its pages.
const SUMMARY: &str = "docs/SUMMARY.md";

/// What a page holds that others may lead to, and where it leads.
#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    /// Names of its headings in links.
    anchors: BTreeSet<String>,
    /// Line and target of each link or image that is no address.
    links: Vec<(usize, String)>,
}

/// Checks the summary and the links of all pages.
///
/// # Errors
/// If a page cannot be read.
pub(crate) fn check(shell: &Shell, files: &[String]) -> Result<Vec<Finding>> {
    let is_page = |file: &&String| file.starts_with(BOOK) && file.ends_with(".md");
    let mut pages = Vec::new();
    for file in files.iter().filter(is_page) {
        pages.push((file.clone(), Page::read(&shell.read_file(file)?)));
    }
    Ok(check_pages(&pages, files))
}

fn check_pages(pages: &[(String, Page)], files: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut listed = BTreeSet::new();
    for (file, page) in pages {
        for (line, link) in &page.links {
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = match target {
                "" => file.clone(),
                target => beside(file, target),
            };
            let outside = !path.starts_with(BOOK);
            if outside || !files.contains(&path) {
                let problem = match outside {
                    true => "leads out of the book",
                    false => "leads to no file",
                };
                findings.push(Finding::error(file, *line, format!("{link} {problem}")));
                continue;
            }
            let found = pages.iter().find(|(file, _)| *file == path);
            if found.is_some_and(|(_, page)| !anchor.is_empty() && !page.anchors.contains(anchor)) {
                let text = format!("{link} leads to no heading of {path}");
                findings.push(Finding::error(file, *line, text));
            }
            if file == SUMMARY {
                listed.insert(path);
            }
        }
    }
    let unlisted = pages
        .iter()
        .filter(|(file, _)| file != SUMMARY && !listed.contains(file));
    let finding = |(file, _): &(String, Page)| {
        let text = format!("is not in {SUMMARY}: give the page its line there");
        Finding::error(file, 1, text)
    };
    findings.extend(unlisted.map(finding));
    findings
}

/// The path that a link in a file leads to, from the root of the repository.
fn beside(file: &str, target: &str) -> String {
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    let mut path = PathBuf::new();
    for part in folder.join(target).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            part => path.push(part),
        }
    }
    path.to_string_lossy().into_owned()
}

impl Page {
    fn read(text: &str) -> Self {
        let (mut page, mut heading) = (Self::default(), None::<String>);
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    page.anchors
                        .extend(heading.take().map(|text| anchor(&text)));
                }
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. })
                    if !dest_url.contains(':') =>
                {
                    let line = text[..range.start].matches('\n').count() + 1;
                    page.links.push((line, dest_url.into_string()));
                }
                _ => {}
            }
        }
        page
    }
}

/// The name of a heading in links, as mdBook and GitHub make it.
fn anchor(heading: &str) -> String {
    let is_kept = |c: &char| c.is_alphanumeric() || ['-', '_', ' '].contains(c);
    let kept = heading.trim().chars().filter(is_kept);
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pages: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<String> = pages.iter().map(|(file, _)| (*file).into()).collect();
        let pages: Vec<_> = pages
            .iter()
            .map(|(file, text)| ((*file).into(), Page::read(text)))
            .collect();
        let findings = check_pages(&pages, &files).into_iter();
        findings.map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn a_page_is_in_the_summary() {
        let summary = ("docs/SUMMARY.md", "- [A](a.md)\n");
        assert!(found(&[summary, ("docs/a.md", "# A\n")]).is_empty());
        assert_eq!(
            found(&[summary, ("docs/a.md", "# A\n"), ("docs/b/c.md", "# C\n")]),
            ["docs/b/c.md:1: error: is not in docs/SUMMARY.md: give the page its line there"]
        );
    }

    #[test]
    fn links_lead_to_files_and_headings_of_the_book() {
        let summary = ("docs/SUMMARY.md", "- [A](a.md)\n- [B](b/README.md)\n");
        let a = "# A\n\n`[no](link.md)` [b](b/README.md#what-it-does) [w](https://x.y/z.md)\n";
        let b = "# B\n\n## What `it` does?\n\n[a](../a.md) [self](#b)\n";
        assert!(found(&[summary, ("docs/a.md", a), ("docs/b/README.md", b)]).is_empty());
        let b = "# B\n\n[a](../a.md#b)\n[c](c.md) [up](../../README.md)\n[d](a.md)";
        let a = "# A\n";
        assert_eq!(
            found(&[summary, ("docs/a.md", a), ("docs/b/README.md", b)]),
            [
                "docs/b/README.md:3: error: ../a.md#b leads to no heading of docs/a.md",
                "docs/b/README.md:4: error: c.md leads to no file",
                "docs/b/README.md:4: error: ../../README.md leads out of the book",
                "docs/b/README.md:5: error: a.md leads to no file",
            ]
        );
    }
}
