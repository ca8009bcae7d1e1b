//! What a Rust file holds, and the rules on it: where `unwrap`, `unsafe` and backends may stand.

use std::ops::RangeInclusive;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Finding;
use super::rooms::{self, Use};

/// Backends that only the program, the kernels and tests may name.
pub(super) const BACKENDS: [&str; 6] = ["flex", "ndarray", "wgpu", "vulkan", "metal", "cuda"];

/// Places that may name a backend: one file of the program, and the kernels.
const BACKEND_PLACES: [&str; 4] = [
    "crates/molora-train/src/base/device.rs",
    "crates/molora-kernels/",
    "crates/molora-testkit/",
    "xtask/",
];

/// The crate that may hold `unsafe`.
const UNSAFE_PLACE: &str = "crates/molora-kernels/";

/// A function with its lines, from `fn` to the closing brace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) length: usize,
}

/// The facts of one parsed file that rules ask for; lines count from 1.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub(super) functions: Vec<Function>,
    pub(super) tests: Vec<RangeInclusive<usize>>,
    pub(super) uses: Vec<Use>,
    unwraps: Vec<usize>,
    unsafes: Vec<usize>,
}

impl Source {
    /// Parses the text of a file.
    pub(super) fn parse(text: &str) -> syn::Result<Self> {
        let file = syn::parse_file(text)?;
        let mut source = Self {
            uses: rooms::uses(&file),
            ..Self::default()
        };
        source.visit_file(&file);
        Ok(source)
    }

    /// Whether a line belongs to an item that is compiled for tests alone.
    pub(super) fn is_test(&self, line: usize) -> bool {
        self.tests.iter().any(|lines| lines.contains(&line))
    }

    fn note_test(&mut self, attributes: &[syn::Attribute], item: &impl Spanned) {
        if attributes.iter().any(is_for_tests) {
            let span = item.span();
            self.tests.push(span.start().line..=span.end().line);
        }
    }

    fn note_function(&mut self, signature: &syn::Signature, block: Option<&syn::Block>) {
        if let Some(token) = signature.unsafety {
            self.unsafes.push(token.span.start().line);
        }
        let line = signature.span().start().line;
        let end = block
            .map_or(signature.span(), |block| block.span())
            .end()
            .line;
        let name = signature.ident.to_string();
        self.functions.push(Function {
            name,
            line,
            length: end + 1 - line,
        });
    }
}

/// `#[cfg(test)]` or `#[test]`.
fn is_for_tests(attribute: &syn::Attribute) -> bool {
    let is_cfg_test = || {
        attribute
            .parse_args::<syn::Ident>()
            .is_ok_and(|name| name == "test")
    };
    attribute.path().is_ident("test") || (attribute.path().is_ident("cfg") && is_cfg_test())
}

impl<'ast> Visit<'ast> for Source {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.note_test(&item.attrs, item);
        visit::visit_item_mod(self, item);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.note_test(&item.attrs, item);
        self.note_function(&item.sig, Some(&item.block));
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.note_test(&item.attrs, item);
        self.note_function(&item.sig, Some(&item.block));
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.note_function(&item.sig, item.default.as_ref());
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.note_test(&item.attrs, item);
        self.unsafes
            .extend(item.unsafety.map(|token| token.span.start().line));
        visit::visit_item_impl(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.unsafes
            .extend(item.unsafety.map(|token| token.span.start().line));
        visit::visit_item_trait(self, item);
    }

    fn visit_expr_unsafe(&mut self, expression: &'ast syn::ExprUnsafe) {
        self.unsafes.push(expression.unsafe_token.span.start().line);
        visit::visit_expr_unsafe(self, expression);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if call.args.is_empty()
            && ["unwrap", "unwrap_err"]
                .iter()
                .any(|name| call.method == name)
        {
            self.unwraps.push(call.method.span().start().line);
        }
        visit::visit_expr_method_call(self, call);
    }
}

/// Checks where `unwrap`, `unsafe` and backends stand.
pub(super) fn check(file: &str, text: &str, source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    if is_library(file) {
        let lines = source.unwraps.iter().filter(|line| !source.is_test(**line));
        let message = "unwrap() outside tests: return an error, or expect(\"why it cannot fail\")";
        findings.extend(lines.map(|&line| Finding::error(file, line, message)));
    }
    if !file.starts_with(UNSAFE_PLACE) {
        let message = format!("unsafe outside {UNSAFE_PLACE}");
        findings.extend(
            source
                .unsafes
                .iter()
                .map(|&line| Finding::error(file, line, &*message)),
        );
    }
    if !may_name_backend(file) {
        findings.extend(check_backends(file, text, source));
    }
    findings
}

fn check_backends(file: &str, text: &str, source: &Source) -> Vec<Finding> {
    let lines = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line));
    let named = lines
        .filter(|(line, _)| !source.is_test(*line))
        .filter_map(|(line, text)| {
            let backend = backend_named(text)?;
            let message = format!(
                "names the backend `{backend}`: only {} and tests may",
                BACKEND_PLACES[..2].join(", ")
            );
            Some(Finding::error(file, line, message))
        });
    named.collect()
}

/// The backend that a line of code asks for by feature or by device.
fn backend_named(line: &str) -> Option<&'static str> {
    if line.trim_start().starts_with("//") {
        return None;
    }
    let compact: String = line.split_whitespace().collect();
    let names = |backend: &&&str| {
        compact.contains(&format!("feature=\"{backend}\""))
            || compact.contains(&format!("Device::{backend}("))
    };
    BACKENDS.iter().find(names).copied()
}

fn may_name_backend(file: &str) -> bool {
    BACKEND_PLACES.iter().any(|place| file.starts_with(place)) || is_test_file(file)
}

/// Integration tests, benches, examples, and unit tests in a file of their own.
pub(super) fn is_test_file(file: &str) -> bool {
    if file.ends_with("/tests.rs") {
        return true;
    }
    ["/tests/", "/benches/", "/examples/"]
        .iter()
        .any(|folder| file.contains(folder))
}

/// Library code: the sources of our crates, without tests and the test kit.
fn is_library(file: &str) -> bool {
    file.starts_with("crates/")
        && file.contains("/src/")
        && !is_test_file(file)
        && !file.starts_with("crates/molora-testkit/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(file: &str, text: &str) -> Vec<(usize, String)> {
        let found = check(file, text, &Source::parse(text).unwrap());
        found
            .into_iter()
            .map(|finding| (finding.line, finding.message))
            .collect()
    }

    #[test]
    fn unwrap_is_found_outside_tests_only() {
        let text = "fn f() {\n    g()\n        .unwrap();\n    h().unwrap_or(1);\n}\n\
                    /// a().unwrap()\n#[cfg(test)]\nmod tests {\n    fn t() { g().unwrap(); }\n}\n";
        let found = findings("crates/molora-train/src/a.rs", text);
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3]);
        assert!(findings("crates/molora-testkit/src/lib.rs", text).is_empty());
        for tests in [
            "crates/molora-train/tests/a.rs",
            "crates/molora-train/src/data/tests.rs",
        ] {
            assert!(findings(tests, text).is_empty(), "{tests}");
        }
    }

    #[test]
    fn unsafe_belongs_to_the_kernels() {
        let text = "fn f() {\n    unsafe { g() }\n}\nunsafe fn g() {}\nunsafe impl Send for A {}\n";
        let lines = findings("crates/molora-models/src/a.rs", text);
        assert_eq!(
            lines.iter().map(|(line, _)| *line).collect::<Vec<_>>(),
            [2, 4, 5]
        );
        assert!(findings("crates/molora-kernels/src/a.rs", text).is_empty());
    }

    #[test]
    fn backends_are_named_in_few_places() {
        let text = "#[cfg(feature = \"cuda\")]\nfn f() {\n    Device::flex();\n}\n\
                    // Device::cuda()\n#[cfg(test)]\nmod tests {\n    fn t() { Device::flex(); }\n}\n";
        let found = findings("crates/molora-train/src/trainer.rs", text);
        assert_eq!(
            found.iter().map(|(line, _)| *line).collect::<Vec<_>>(),
            [1, 3]
        );
        assert!(
            found[0].1.contains("`cuda`") && found[1].1.contains("`flex`"),
            "{found:?}"
        );
        for allowed in [
            "crates/molora-train/src/base/device.rs",
            "crates/molora-models/tests/a.rs",
        ] {
            assert!(findings(allowed, text).is_empty(), "{allowed}");
        }
    }

    #[test]
    fn other_features_and_devices_are_no_backend() {
        assert_eq!(backend_named("#[cfg(feature = \"hub\")]"), None);
        assert_eq!(backend_named("let device = Device::default();"), None);
        assert_eq!(
            backend_named("#[cfg(all(unix, feature=\"metal\"))]"),
            Some("metal")
        );
    }

    #[test]
    fn functions_have_their_lines() {
        let text = "/// Doc.\n#[inline]\nfn a() {\n    b();\n}\n\
                    trait T {\n    fn c(&self);\n}\nimpl T for A {\n    fn c(&self) {\n    }\n}\n";
        let functions = Source::parse(text).unwrap().functions;
        let facts = functions
            .iter()
            .map(|f| (f.name.as_str(), f.line, f.length));
        assert_eq!(
            facts.collect::<Vec<_>>(),
            [("a", 3, 3), ("c", 7, 1), ("c", 10, 2)]
        );
    }
}
