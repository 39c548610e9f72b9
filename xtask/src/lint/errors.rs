//! Errors of the product that are texts: `Result<_, String>` says nothing that code could match on, count or test, so there is none.
//! A text for users is what an error's `Display` writes, or a value that is not called an error.
//!
//! It is looked for in all types that the product's files write; test code, tests, samples and developers' tools are passed over.

use super::{
    lexer::{Token, tokens},
    modules,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Where tests, samples and developers' tools are.
const NOT_PRODUCT: &[&str] = &["tests", "samples", "xtask"];

/// Checks every crate of the product.
pub fn check(meta: &Value) -> Result<()> {
    let workspace = Path::new(meta["workspace_root"].as_str().unwrap_or_default());
    let read = |file: &Path| std::fs::read_to_string(workspace.join(file)).ok();
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    let packages = meta["packages"].as_array().into_iter().flatten();
    for root in packages.flat_map(|package| modules::roots(workspace, package)) {
        if !NOT_PRODUCT.iter().any(|dir| root.starts_with(dir)) {
            files.extend(modules::read(root, &read)?.into_iter().map(|module| module.file));
        }
    }
    let mut wrong = Vec::new();
    for file in files {
        let lines = texts(&read(&file).unwrap_or_default()).with_context(|| file.display().to_string())?;
        wrong.extend(lines.iter().map(|line| {
            format!(
                "{}:{line}: an error that is a String: make it an enum, whose Display writes the text",
                file.display()
            )
        }));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Lines of errors that are texts.
fn texts(source: &str) -> Result<Vec<usize>> {
    let all = tokens(source)?;
    let word = |i: usize| if let Some((Token::Word(w), _)) = all.get(i) { w.as_str() } else { "" };
    let sign = |i: usize, s: char| matches!(all.get(i), Some((Token::Sign(t), _)) if *t == s);
    let mut found = Vec::new();
    let mut i = 0;
    while let Some((_, line)) = all.get(i) {
        if sign(i, '#') && sign(i + 1, '[') {
            let end = group_end(&all, i + 1);
            let words: Vec<&str> = (i..end).map(word).filter(|w| !w.is_empty()).collect();
            let is_test = words.contains(&"test") && !words.contains(&"not");
            i = if is_test && (words[0] == "cfg" || words.last() == Some(&"test")) { item_end(&all, end) } else { end };
            continue;
        }
        let by_name = word(i) == "type" && ["Err", "Error"].contains(&word(i + 1)) && word(i + 3) == "String";
        if by_name && sign(i + 2, '=') || word(i) == "Result" && sign(i + 1, '<') && is_text(&all, i + 2) {
            found.push(*line);
        }
        i += 1;
    }
    Ok(found)
}

/// Is the last of several type arguments, which begin here, `String`?
fn is_text(all: &[(Token, usize)], from: usize) -> bool {
    let (mut depth, mut part, mut parts) = (1, Vec::new(), 1);
    for (at, (token, _)) in all.iter().enumerate().skip(from) {
        // The `>` of `->` closes nothing.
        let is_arrow = at > 0 && matches!(all[at - 1].0, Token::Sign('-'));
        match token {
            Token::Sign('<' | '(' | '[') => depth += 1,
            Token::Sign('>') if is_arrow => {}
            Token::Sign('>' | ')' | ']') => depth -= 1,
            Token::Sign(',') if depth == 1 => {
                (part, parts) = (Vec::new(), parts + 1);
                continue;
            }
            Token::Sign(';' | '{') => return false, // a comparison
            _ => {}
        }
        if depth == 0 {
            return parts > 1 && matches!(&part[..], [Token::Word(w)] if w == "String");
        }
        part.push(token.clone());
    }
    false
}

/// Behind the bracket that closes the one at `i`.
fn group_end(all: &[(Token, usize)], mut i: usize) -> usize {
    let mut depth = 0;
    while let Some((token, _)) = all.get(i) {
        match token {
            Token::Sign('(' | '[' | '{') => depth += 1,
            Token::Sign(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        i += 1;
        if depth == 0 {
            break;
        }
    }
    i
}

/// Behind an item: its block, or its `;`.
fn item_end(all: &[(Token, usize)], mut i: usize) -> usize {
    while let Some((token, _)) = all.get(i) {
        match token {
            Token::Sign('{') => return group_end(all, i),
            Token::Sign('(' | '[') => i = group_end(all, i),
            Token::Sign(';') => return i + 1,
            Token::Sign('}') => return i,
            _ => i += 1,
        }
    }
    i
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_is_a_text_is_found_wherever_it_is_written() {
        for source in [
            "fn f() -> Result<u8, String> {}",
            "fn f() -> std::result::Result<Vec<(u8, u16)>, String> {}",
            "type Answer = Box<dyn Fn(u8) -> Result<Option<u8>, String>>;",
            "struct S(Option<Result<Vec<String>, String>>);",
            "fn f() -> Result<Result<u8, String>, E> {}",
            "impl FromStr for S { type Err = String; }",
        ] {
            assert_eq!(texts(source).unwrap(), [1], "{source}");
        }
        assert_eq!(texts("fn f()\n-> Result<\n u8,\n String> {}\ntype Error = String;").unwrap(), [2, 5]);
    }

    #[test]
    fn other_types_and_test_code_are_none() {
        for source in [
            "fn f() -> Result<String, E> {}",
            "fn f() -> anyhow::Result<BTreeMap<String, String>> {}",
            "fn f() -> Result<Box<dyn Fn(u8, String) -> String>, E> {}",
            "fn f(_: (u8, String)) -> Result<String> {}",
            "type Errors = Vec<String>;",
            "// Result<u8, String>\nconst T: &str = \"Result<u8, String>\";",
            "#[cfg(test)] mod tests { fn f() -> Result<u8, String> {} }",
            "#[cfg(test)] use a::{b, c}; #[tokio::test] async fn t() { let _: Result<u8, String> = x; }",
        ] {
            assert_eq!(texts(source).unwrap(), [0; 0], "{source}");
        }
        let after = "#[cfg(test)] mod tests { fn f() {} }\n#[cfg(not(test))]\nfn f() -> Result<u8, String> {}";
        assert_eq!(texts(after).unwrap(), [3]);
    }
}
