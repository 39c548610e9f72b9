//! A page's blocks of code.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A page.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Its path in the repository.
    pub(crate) name: String,
    pub(crate) blocks: Vec<Block>,
    /// Code within text, with its line.
    pub(crate) spans: Vec<(usize, String)>,
}

/// A block of code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The words after the fence: `sh`, `yaml`, `yaml values`; empty for an indented block.
    pub(crate) kind: String,
    /// The line of its first line, from 1.
    pub(crate) line: usize,
    pub(crate) text: String,
}

impl Page {
    /// Reads one.
    pub(crate) fn read(name: &str, text: &str) -> Self {
        let mut blocks: Vec<Block> = vec![];
        let mut spans = vec![];
        let mut fence: Option<usize> = None;
        let mut before = "";
        for (at, line) in text.lines().enumerate() {
            let indented = line.strip_prefix("    ").filter(|_| fence.is_none());
            if let Some(info) = line.trim_start().strip_prefix("```") {
                fence = if fence.is_some() { None } else { Some(line.len() - line.trim_start().len()) };
                if fence.is_some() {
                    blocks.push(Block { kind: info.trim().to_string(), line: at + 2, text: String::new() });
                }
            } else if let Some(indent) = fence {
                let line = line.get(indent..).unwrap_or_default();
                if let Some(block) = blocks.last_mut() {
                    block.text += line;
                    block.text.push('\n');
                }
            } else if let Some(line) = indented {
                if before.trim().is_empty() {
                    blocks.push(Block { kind: String::new(), line: at + 1, text: String::new() });
                }
                // A list's lines are indented, too, but not after an empty one.
                if let Some(block) = blocks.last_mut().filter(|block| block.kind.is_empty()) {
                    block.text += line;
                    block.text.push('\n');
                }
            }
            let is_fence = line.trim_start().starts_with("```");
            if fence.is_none() && indented.is_none() && !is_fence {
                spans.extend(line.split('`').skip(1).step_by(2).map(|span| (at + 1, span.to_string())));
            }
            before = line;
        }
        Self { name: name.to_string(), blocks, spans }
    }

    /// The files that the page says to write: a block whose first line is a comment with the file's name.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.blocks.iter().filter_map(|block| {
            let name = block.text.lines().next()?.strip_prefix("# ")?;
            let is_file = name.ends_with(".yaml") && !name.contains(' ');
            is_file.then_some((name, block.text.as_str()))
        })
    }

    /// Is this one of them?
    pub(crate) fn makes(&self, file: &str) -> bool {
        self.files().any(|(name, _)| name == file)
    }
}

/// All pages of a repository: docs/ and the READMEs.
pub(crate) fn all(root: &Path) -> Vec<Page> {
    let mut paths = files(&root.join("docs"), "md");
    paths.extend(["README.md", "samples/README.md"].map(|name| root.join(name)));
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        Page::read(&name, &fs::read_to_string(&path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

/// The files below a directory with this ending, in order.
pub(crate) fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The first line of what a page shows that was not printed. `…` stands for anything within a line; a line of it alone for
/// any lines.
pub(crate) fn missing<'a>(shown: &'a str, printed: &str) -> Option<&'a str> {
    let mut printed = printed.lines();
    let fits = |shown: &str, line: &str| {
        let mut rest = line.trim();
        let first = !shown.trim().starts_with('…');
        for (at, part) in shown.trim().split('…').enumerate() {
            let Some(found) = rest.find(part.trim()) else { return false };
            if at == 0 && first && found != 0 {
                return false;
            }
            rest = &rest[found + part.trim().len()..];
        }
        rest.trim().is_empty() || shown.trim().ends_with('…')
    };
    shown.lines().filter(|line| !line.trim().is_empty()).find(|shown| !printed.any(|line| fits(shown, line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_fenced_or_indented() {
        let text = "# T\n\n```sh\na\n  b\n```\n- list\n    in it\n\n    karst x\n    karst y\n\ntext\n  ```yaml\n  k: v\n  ```\n";
        let text = &format!("`one` and `two`\n{text}");
        let Page { blocks: found, spans, .. } = Page::read("p", text);
        assert_eq!(spans, [(1, "one".to_string()), (1, "two".to_string())]);
        let of = |kind: &str, line, text: &str| Block { kind: kind.into(), line, text: text.into() };
        assert_eq!(found, [of("sh", 5, "a\n  b\n"), of("", 11, "karst x\nkarst y\n"), of("yaml", 16, "k: v\n")]);
    }

    #[test]
    fn what_is_shown_is_looked_for_in_order() {
        let printed = "NAME   AGE\nweb    12s\ndb     9s\n";
        assert_eq!(missing("NAME   AGE\nweb    …\n", printed), None);
        assert_eq!(missing("…\ndb …s\n", printed), None);
        assert_eq!(missing("db     9s\nweb    12s", printed), Some("web    12s"), "order counts");
        assert_eq!(missing("web    1\n", printed), Some("web    1"), "whole lines");
    }
}
