//! Dependency arrows between the rooms of molora-train, the folders and files at the top of its
//! sources: each may use only those further down.

use syn::visit::{self, Visit};

use super::Finding;
use super::source::Source;

/// Where the rooms are.
const HOUSE: &str = "crates/molora-train/src/";

/// The rooms from the top to the bottom; those of one line do not know each other.
const ROOMS: [&[&str]; 17] = [
    &["suite"],
    &["compare"],
    &["exchange", "grow", "unseen"],
    &["generate", "predict", "verify"],
    &["run"],
    &["train"],
    &["store"],
    &["eval"],
    &["guide"],
    &["recipe"],
    &["base"],
    &["model"],
    &["error"],
    &["report"],
    &["data"],
    &["hub"],
    &["collective"],
];

/// What `lib.rs` calls by a shorter name, and the room that it is of.
const ALIASES: [(&str, &str); 2] = [("Recipe", "recipe"), ("TrainError", "error")];

/// A path of a file into its own crate.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Use {
    line: usize,
    /// The steps of the path, without `crate` and `super`.
    path: Vec<String>,
    /// How many modules it goes up from the file's own; `None` for a path that begins with `crate`.
    up: Option<usize>,
}

/// The paths of a file that begin with `crate` or go up to other files by `super`.
pub(super) fn uses(file: &syn::File) -> Vec<Use> {
    let mut visitor = Uses::default();
    visitor.visit_file(file);
    visitor.found
}

#[derive(Default)]
struct Uses {
    found: Vec<Use>,
    /// How many modules of the file are around.
    depth: usize,
}

impl Uses {
    fn note(&mut self, line: usize, steps: &[String]) {
        let supers = steps.iter().take_while(|step| *step == "super").count();
        if steps.first().is_some_and(|first| first == "crate") {
            let path = steps[1..].to_vec();
            self.found.push(Use {
                line,
                path,
                up: None,
            });
        } else if supers > self.depth {
            let (path, up) = (steps[supers..].to_vec(), Some(supers - self.depth));
            self.found.push(Use { line, path, up });
        }
    }

    fn tree(&mut self, tree: &syn::UseTree, steps: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                steps.push(path.ident.to_string());
                self.tree(&path.tree, steps);
                steps.pop();
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.tree(tree, steps);
                }
            }
            syn::UseTree::Name(syn::UseName { ident })
            | syn::UseTree::Rename(syn::UseRename { ident, .. }) => {
                steps.push(ident.to_string());
                self.note(ident.span().start().line, steps);
                steps.pop();
            }
            syn::UseTree::Glob(glob) => self.note(glob.star_token.span.start().line, steps),
        }
    }
}

impl<'ast> Visit<'ast> for Uses {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.depth += 1;
        visit::visit_item_mod(self, item);
        self.depth -= 1;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let steps: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        let line = path.segments.first().map(|s| s.ident.span().start().line);
        self.note(line.unwrap_or(1), &steps);
        visit::visit_path(self, path);
    }
}

/// Checks that a file of molora-train uses only rooms below its own.
pub(super) fn check(file: &str, source: &Source) -> Vec<Finding> {
    let Some(inside) = file.strip_prefix(HOUSE).filter(|path| *path != "lib.rs") else {
        return Vec::new();
    };
    let module = module_of(inside);
    let Some(own) = level(&module[0]) else {
        let text = format!(
            "{} is no room: give it its place in ROOMS of xtask/src/tidy/rooms.rs",
            module[0]
        );
        return vec![Finding::error(file, 1, text)];
    };
    let upwards = |used: &Use| {
        let room = room_of(used, &module)?;
        let message = match level(&room) {
            _ if room == module[0] => return None,
            Some(level) if level > own => return None,
            Some(_) => format!("{} must not use {room}: it is not below it", module[0]),
            None => format!("crate::{room} is no room: name the thing by the room that it is in"),
        };
        Some(Finding::error(file, used.line, message))
    };
    source.uses.iter().filter_map(upwards).collect()
}

/// The modules from the top to that of a file: `run` and `load` for `run/load.rs`.
fn module_of(inside: &str) -> Vec<String> {
    let path = inside.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').map(str::to_owned).collect()
}

/// The room that a path leads into.
fn room_of(used: &Use, module: &[String]) -> Option<String> {
    let above = used.up.map_or(0, |up| module.len().saturating_sub(up));
    let mut steps = module[..above].iter().chain(&used.path);
    let first = steps.next()?;
    let alias = ALIASES.iter().find(|(name, _)| name == first);
    Some(alias.map_or(first.clone(), |(_, room)| (*room).to_owned()))
}

/// How far down a room is.
fn level(room: &str) -> Option<usize> {
    ROOMS.iter().position(|rooms| rooms.contains(&room))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(file: &str, text: &str) -> Vec<(usize, String)> {
        let source = Source::parse(text).unwrap();
        let findings = check(&format!("{HOUSE}{file}"), &source);
        let facts = findings.into_iter().map(|f| (f.line, f.message));
        facts.collect()
    }

    #[test]
    fn rooms_are_used_downwards() {
        let text = "use crate::data::{Batch, Split};\nuse crate::TrainError;\nuse super::load;\n";
        assert_eq!(errors("run/evaluate.rs", text), []);
        let up = "must not use run: it is not below it";
        for (file, text) in [
            ("data/batch.rs", "use crate::{hub, run::{Event, train}};"),
            ("eval/told.rs", "fn f() { crate::run::train() }"),
            ("eval/told.rs", "use super::super::run;"),
            ("store/swap.rs", "fn f(e: &crate::run::Event) {}"),
            (
                "base/files.rs",
                "mod tests { use super::super::super::run; }",
            ),
        ] {
            let found = errors(file, text);
            assert!(
                found.iter().all(|(_, message)| message.ends_with(up)) && !found.is_empty(),
                "{file}: {found:?}"
            );
        }
    }

    #[test]
    fn neighbours_do_not_know_each_other() {
        let found = errors("grow/add.rs", "\nuse crate::exchange::export;");
        let message = "grow must not use exchange: it is not below it".to_owned();
        assert_eq!(found, [(2, message)]);
    }

    #[test]
    fn what_is_inside_a_room_may_use_each_other() {
        let text =
            "use super::load;\nuse crate::run::stages;\nmod tests { use super::super::load; }";
        assert_eq!(errors("run/mod.rs", "use self::load::Loaded;"), []);
        assert_eq!(errors("run/evaluate.rs", text), []);
        assert_eq!(errors("guide.rs", "mod tests { use super::*; }"), []);
    }

    #[test]
    fn a_shorter_name_is_of_its_room() {
        let found = errors("data/batch.rs", "use crate::Recipe;");
        assert_eq!(found[0].1, "data must not use recipe: it is not below it");
        let other = errors("run/load.rs", "use crate::Nothing;");
        assert!(
            other[0].1.starts_with("crate::Nothing is no room"),
            "{other:?}"
        );
    }

    #[test]
    fn a_new_room_needs_a_place() {
        let found = errors("attic/mod.rs", "");
        assert!(found[0].1.starts_with("attic is no room"), "{found:?}");
        assert_eq!(errors("lib.rs", "use crate::run::train;"), []);
    }
}
