//! The modules of one crate as its files declare them: items, imports and the paths that its code names. Test code
//! (`#[cfg(test)]`, `#[test]`) is passed over.

use super::lexer::{Token, tokens};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Reads a file, for a test out of a made-up tree.
pub type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// A path in the code: `crate::a::B` is three words.
pub type Words = Vec<String>;

/// A module: a file, or a block in one.
#[derive(Default)]
pub struct Module {
    /// Where its code is.
    pub file: PathBuf,
    /// The module around it; the root has none.
    pub parent: Option<usize>,
    /// Modules in it.
    pub children: BTreeMap<String, usize>,
    /// Functions, types, constants, macros.
    pub items: BTreeSet<String>,
    /// Imported names and what they stand for.
    pub imports: BTreeMap<String, Vec<Words>>,
    /// What `use …::*` names.
    pub globs: Vec<Words>,
    /// Paths of its code and of its private imports, each with its line.
    pub paths: Vec<(Words, usize)>,
}

/// The root files of what is built of a package, by cargo's metadata: of its library and its programs, as they lie in the workspace.
pub fn roots<'a>(workspace: &'a Path, package: &'a Value) -> impl Iterator<Item = &'a Path> {
    let is_built = |kind: &Value| kind == "lib" || kind == "bin";
    let targets = package["targets"].as_array().into_iter().flatten();
    let built = targets.filter(move |target| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(is_built)));
    built.map(move |target| {
        let root = Path::new(target["src_path"].as_str().unwrap_or_default());
        root.strip_prefix(workspace).unwrap_or(root)
    })
}

/// All modules of the crate whose root file this is; the root is the first.
pub fn read(root: &Path, read: Read) -> Result<Vec<Module>> {
    let mut all = vec![Module { file: root.to_owned(), ..Module::default() }];
    let dir = root.parent().unwrap_or(Path::new("")).to_owned();
    let mut waiting = vec![(0, dir)];
    while let Some((module, dir)) = waiting.pop() {
        let file = all.get(module).map(|m| m.file.clone()).unwrap_or_default();
        let source = read(&file).with_context(|| format!("{}: cannot be read", file.display()))?;
        let tokens = tokens(&source).with_context(|| file.display().to_string())?;
        let mut r = Reader { tokens: &tokens, i: 0, all: &mut all, waiting: &mut waiting, read };
        r.module(module, &dir)?;
    }
    Ok(all)
}

struct Reader<'a> {
    tokens: &'a [(Token, usize)],
    i: usize,
    all: &'a mut Vec<Module>,
    /// Files not read yet, each with the directory of its own modules.
    waiting: &'a mut Vec<(usize, PathBuf)>,
    read: Read<'a>,
}

impl Reader<'_> {
    fn sign(&self, i: usize, s: char) -> bool {
        matches!(self.tokens.get(i), Some((Token::Sign(t), _)) if *t == s)
    }

    fn word(&self, i: usize) -> Option<&str> {
        if let Some((Token::Word(w), _)) = self.tokens.get(i) { Some(w) } else { None }
    }

    fn is_path_sep(&self, i: usize) -> bool {
        matches!(self.tokens.get(i), Some((Token::PathSep, _)))
    }

    /// The module's code up to its closing brace or the file's end.
    fn module(&mut self, m: usize, dir: &Path) -> Result<()> {
        let mut depth = 0;
        while self.i < self.tokens.len() {
            if self.sign(self.i, '#') {
                let inner = self.sign(self.i + 1, '!');
                if self.attribute() {
                    if inner {
                        self.i = self.tokens.len();
                        return Ok(());
                    }
                    self.skip();
                }
            } else if self.sign(self.i, '{') {
                (depth, self.i) = (depth + 1, self.i + 1);
            } else if self.sign(self.i, '}') {
                self.i += 1;
                if depth == 0 {
                    return Ok(());
                }
                depth -= 1;
            } else if self.word(self.i).is_some() {
                self.named(m, dir, depth == 0)?;
            } else {
                self.i += 1;
            }
        }
        Ok(())
    }

    /// Passes an attribute; whether it makes test code of what follows.
    fn attribute(&mut self) -> bool {
        self.i += 1;
        if self.sign(self.i, '!') {
            self.i += 1;
        }
        if !self.sign(self.i, '[') {
            return false; // a macro's `#`
        }
        let begin = self.i;
        self.i = self.group_end(self.i);
        let words: Vec<&str> = (begin..self.i).filter_map(|i| self.word(i)).collect();
        let test = words.contains(&"test") && !words.contains(&"not");
        test && (words.first() == Some(&"cfg") || words.last() == Some(&"test"))
    }

    /// Behind the bracket that closes the one at `i`.
    fn group_end(&self, mut i: usize) -> usize {
        let mut depth = 0;
        while let Some((t, _)) = self.tokens.get(i) {
            match t {
                Token::Sign('(' | '[' | '{') => depth += 1,
                Token::Sign(')' | ']' | '}') => depth -= 1,
                _ => (),
            }
            i += 1;
            if depth == 0 {
                return i;
            }
        }
        i
    }

    /// Passes an item of test code: to its `;`, its block, or, of a field or an arm, its comma.
    fn skip(&mut self) {
        while self.sign(self.i, '#') {
            self.attribute();
        }
        const ITEMS: &[&str] =
            &["fn", "struct", "enum", "impl", "trait", "type", "const", "static", "mod", "use", "async", "unsafe"];
        let first =
            (self.i..self.i + 5).find(|i| self.word(*i).is_some_and(|w| w != "pub" && w != "crate" && w != "super"));
        let item = first.and_then(|i| self.word(i)).is_some_and(|w| ITEMS.contains(&w));
        while let Some((t, _)) = self.tokens.get(self.i) {
            match t {
                Token::Sign('{') => {
                    self.i = self.group_end(self.i);
                    return;
                }
                Token::Sign('(' | '[') => self.i = self.group_end(self.i),
                Token::Sign('}' | ')' | ']') => return,
                Token::Sign(';') => {
                    self.i += 1;
                    return;
                }
                Token::Sign(',') if !item => return,
                // `use a::{b, c};`
                Token::Word(w) if w == "use" => {
                    while self.i < self.tokens.len() && !self.sign(self.i, ';') {
                        self.i += 1;
                    }
                }
                _ => self.i += 1,
            }
        }
    }

    /// A word: a declaration, an import, or the first of a path.
    fn named(&mut self, m: usize, dir: &Path, top: bool) -> Result<()> {
        let word = self.word(self.i).unwrap_or_default().to_owned();
        let next = self.word(self.i + 1).map(ToOwned::to_owned);
        match (word.as_str(), next) {
            ("mod", Some(name)) => return self.child(m, dir, name),
            ("use", _) if !self.sign(self.i + 1, '<') => {
                let public = self.is_public();
                self.i += 1;
                let mut found = Vec::new();
                self.tree(&mut Vec::new(), &mut found);
                self.import(m, public, found);
                return Ok(());
            }
            ("fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static", Some(name)) => {
                if name == "fn" || name == "mut" || name == "unsafe" || name == "async" || name == "extern" {
                    self.i += 1;
                    return Ok(());
                }
                if top {
                    self.of(m).items.insert(name);
                }
                self.i += 2;
                return Ok(());
            }
            ("macro_rules", _) => {
                let name = self.word(self.i + 2).map(ToOwned::to_owned);
                self.of(m).items.extend(name);
                self.i += 3;
                return Ok(());
            }
            _ => (),
        }
        self.path(m);
        Ok(())
    }

    /// `mod name;` or `mod name { … }`.
    fn child(&mut self, m: usize, dir: &Path, name: String) -> Result<()> {
        let block = self.sign(self.i + 2, '{');
        self.i += 3;
        let new = self.all.len();
        let file = if block {
            self.of(m).file.clone()
        } else {
            let files = [dir.join(format!("{name}.rs")), dir.join(&name).join("mod.rs")];
            let found = files.iter().find(|f| (self.read)(f).is_some());
            found.cloned().with_context(|| format!("{}: module {name} has no file", self.of(m).file.display()))?
        };
        self.of(m).children.insert(name.clone(), new);
        self.all.push(Module { file, parent: Some(m), ..Module::default() });
        let dir = dir.join(name);
        if block {
            return self.module(new, &dir);
        }
        self.waiting.push((new, dir));
        Ok(())
    }

    fn of(&mut self, m: usize) -> &mut Module {
        &mut self.all[m]
    }

    /// Whether `pub` or `pub(…)` stands before the `use` here.
    fn is_public(&self) -> bool {
        let Some(mut i) = self.i.checked_sub(1) else { return false };
        if self.sign(i, ')') {
            while i > 0 && !self.sign(i, '(') {
                i -= 1;
            }
            i = i.saturating_sub(1);
        }
        self.word(i) == Some("pub")
    }

    /// One branch of an import, from the word, `{` or `*` here to the sign behind it.
    fn tree(&mut self, prefix: &mut Words, found: &mut Vec<(Words, Option<String>, usize)>) {
        let length = prefix.len();
        let line = self.tokens.get(self.i).map_or(0, |t| t.1);
        loop {
            if let Some(w) = self.word(self.i) {
                prefix.push(w.to_owned());
                self.i += 1;
            } else if self.is_path_sep(self.i) {
                self.i += 1;
                continue;
            } else if self.sign(self.i, '*') {
                self.i += 1;
                found.push((prefix.clone(), None, line));
                break;
            } else if self.sign(self.i, '{') {
                self.i += 1;
                while self.i < self.tokens.len() && !self.sign(self.i, '}') {
                    if self.sign(self.i, ',') {
                        self.i += 1;
                    } else {
                        self.tree(prefix, found);
                    }
                }
                self.i += 1;
                break;
            } else {
                self.i += 1; // no import that compiles
                break;
            }
            if !self.is_path_sep(self.i) {
                if prefix.len() > 1 && prefix.last().is_some_and(|w| w == "self") {
                    prefix.pop();
                }
                let mut name = prefix.last().cloned().unwrap_or_default();
                if self.word(self.i) == Some("as") {
                    name = self.word(self.i + 1).unwrap_or_default().to_owned();
                    self.i += 2;
                }
                found.push((prefix.clone(), Some(name), line));
                break;
            }
        }
        prefix.truncate(length);
    }

    fn import(&mut self, m: usize, public: bool, found: Vec<(Words, Option<String>, usize)>) {
        let module = self.of(m);
        for (words, name, line) in found {
            let Some(name) = name else {
                module.globs.push(words);
                continue;
            };
            if !public {
                module.paths.push((words.clone(), line));
            }
            module.imports.entry(name).or_default().push(words);
        }
    }

    /// A path of the code; a word behind a dot is none.
    fn path(&mut self, m: usize) {
        let line = self.tokens.get(self.i).map_or(0, |t| t.1);
        let member = self.i.checked_sub(1).is_some_and(|i| {
            self.is_path_sep(i) || self.sign(i, '.') && !i.checked_sub(1).is_some_and(|i| self.sign(i, '.'))
        });
        let mut words = Vec::new();
        while let Some(w) = self.word(self.i) {
            words.push(w.to_owned());
            self.i += 1;
            if !(self.is_path_sep(self.i) && self.word(self.i + 1).is_some()) {
                break;
            }
            self.i += 1;
        }
        let field = words.len() == 1 && self.sign(self.i, ':');
        if !member && !field {
            self.of(m).paths.push((words, line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn libraries_and_programs_are_built() {
        let target = |kind: &str, file: &str| json!({"kind": [kind], "src_path": format!("/w/a/{file}")});
        let targets = [
            target("lib", "src/lib.rs"),
            target("bin", "src/main.rs"),
            target("test", "tests/a.rs"),
            target("custom-build", "build.rs"),
        ];
        let package = json!({ "targets": targets });
        let found: Vec<&Path> = roots(Path::new("/w"), &package).collect();
        assert_eq!(found, [Path::new("a/src/lib.rs"), Path::new("a/src/main.rs")]);
    }
}
