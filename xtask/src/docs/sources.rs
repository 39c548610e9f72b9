//! Texts in the product's sources: string literals outside of tests, and which files write pages of metrics.

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, LexError, TokenStream, TokenTree};
use std::{fs, path::PathBuf};

/// Where the product is.
const PRODUCT: &[&str] =
    &["controller/src", "cni/src", "ztunnel/src", "waypoint/src", "crates", "cli/src", "ebpf/loader/src"];

/// The module of `karst_rt` that writes pages of metrics: a file that has any metric names it.
const METRICS: &str = "exposition";

/// A source file of the product.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) found: Found,
}

/// What it has, outside of tests.
#[derive(Default)]
pub(super) struct Found {
    /// Its string literals, as they are written between the quotes.
    pub(super) literals: Vec<String>,
    /// It names the module that writes pages of metrics.
    pub(super) writes_metrics: bool,
}

/// All of them.
pub(super) fn read() -> Result<Vec<Source>> {
    let mut paths = vec![];
    for directory in PRODUCT {
        super::files::find(directory.as_ref(), "rs", &mut paths)?;
    }
    let is_test = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        path.components().any(|part| part.as_os_str() == "tests") || ["tests", "testing", "fuzz"].contains(&&*name)
    };
    paths.retain(|path| !is_test(path));
    let mut all = vec![];
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let found = find(&text).with_context(|| path.display().to_string())?;
        all.push(Source { path, found });
    }
    Ok(all)
}

fn find(source: &str) -> Result<Found> {
    let stream: TokenStream = source.parse().map_err(|e: LexError| anyhow!("line {}: {e}", e.span().start().line))?;
    let mut found = Found::default();
    walk(stream, &mut found);
    Ok(found)
}

/// Passes over items under `#[cfg(test)]` or `#[test]`, each of which ends with its braces or a semicolon.
fn walk(stream: TokenStream, found: &mut Found) {
    let mut is_test = false;
    for token in stream {
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
                let text = group.stream().to_string().replace(' ', "");
                is_test |= text == "cfg(test)" || text == "test";
                if !is_test {
                    walk(group.stream(), found);
                }
            }
            TokenTree::Group(group) => {
                if !is_test {
                    walk(group.stream(), found);
                }
                is_test &= group.delimiter() != Delimiter::Brace;
            }
            TokenTree::Punct(sign) if sign.as_char() == ';' => is_test = false,
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                let inner = text.split_once('"').and_then(|(_, rest)| Some(rest.rsplit_once('"')?.0));
                found.literals.extend(inner.map(String::from));
            }
            TokenTree::Ident(word) if !is_test => found.writes_metrics |= word == METRICS,
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_comments_are_passed_over() -> Result<()> {
        let source = "// \"no\"\nconst A: &str = \"a\"; fn f() { g(r\"b\", 'c', b\"d\"); }\n#[cfg(test)]\nmod tests { const N: &str = \"no\"; }\n#[test]\nfn t() { let n = \"no\"; }\n#[cfg(test)] use x; const E: &str = \"e\";";
        assert_eq!(find(source)?.literals, ["a", "b", "d", "e"]);
        Ok(())
    }

    #[test]
    fn who_writes_metrics_is_known() -> Result<()> {
        let writes = |source| find(source).map(|found| found.writes_metrics);
        assert!(writes("use karst_rt::{clock, exposition::{Kind, Page}};")?);
        assert!(writes("fn f(page: &mut crate::exposition::Page) {}")?);
        let others = "// exposition\nconst A: &str = \"exposition\"; #[cfg(test)] use karst_rt::exposition; fn f() {}";
        assert!(!writes(others)?);
        assert!(!writes("#[cfg(test)]\nmod tests { use karst_rt::exposition; }\nfn f() {}")?);
        Ok(())
    }
}
