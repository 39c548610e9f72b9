//! Texts in the product's sources: string literals outside of tests.

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, LexError, TokenStream, TokenTree};
use std::{fs, path::PathBuf};

/// Where the product is.
const PRODUCT: &[&str] =
    &["controller/src", "cni/src", "ztunnel/src", "waypoint/src", "crates", "cli/src", "ebpf/loader/src"];

/// A source file of the product.
pub(super) struct Source {
    pub(super) path: PathBuf,
    /// Its string literals, as they are written between the quotes.
    pub(super) literals: Vec<String>,
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
        let literals = literals(&text).with_context(|| path.display().to_string())?;
        all.push(Source { path, literals });
    }
    Ok(all)
}

fn literals(source: &str) -> Result<Vec<String>> {
    let stream: TokenStream = source.parse().map_err(|e: LexError| anyhow!("line {}: {e}", e.span().start().line))?;
    let mut found = vec![];
    walk(stream, &mut found);
    Ok(found)
}

/// Takes the literals, but for those of an item under `#[cfg(test)]` or `#[test]`, which ends with its braces or a semicolon.
fn walk(stream: TokenStream, found: &mut Vec<String>) {
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
                found.extend(inner.map(String::from));
            }
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
        assert_eq!(literals(source)?, ["a", "b", "d", "e"]);
        Ok(())
    }
}
