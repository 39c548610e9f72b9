//! What a Markdown page links to, and what can be linked to in it. Not all of Markdown: what our pages are written in.

use std::collections::{BTreeMap, BTreeSet};

/// A page.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// What a link's fragment may name: headings as GitHub and mdBook spell them, and `id`s.
    pub(crate) anchors: BTreeSet<String>,
    /// Where its links and images lead.
    pub(crate) links: Vec<Link>,
}

/// A link or an image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// As it is written.
    pub(crate) target: String,
    /// The line that it is on, from 1.
    pub(crate) line: usize,
}

impl Page {
    /// Reads a page.
    pub(crate) fn read(text: &str) -> Self {
        let mut page = Self::default();
        let mut seen = BTreeMap::new();
        let mut fence: Option<&str> = None;
        let (mut block, mut begin) = (String::new(), 1);
        for (at, line) in text.lines().enumerate() {
            let mark = ["```", "~~~"].into_iter().find(|mark| line.trim_start().starts_with(mark));
            if fence.is_some() {
                fence = fence.filter(|open| mark != Some(open));
                continue;
            }
            let is_heading = line.starts_with('#') && line.trim_start_matches('#').starts_with(' ');
            if is_heading {
                page.anchors.insert(unused(slug(line.trim_start_matches('#')), &mut seen));
            }
            if mark.is_some() || line.trim().is_empty() || is_heading {
                page.take(&block, begin);
                block.clear();
                fence = mark;
            }
            if mark.is_none() {
                if block.is_empty() {
                    begin = at + 1;
                }
                block.push_str(line);
                block.push('\n');
            }
        }
        page.take(&block, begin);
        page
    }

    /// The links of a paragraph that begins on line `begin`.
    fn take(&mut self, block: &str, begin: usize) {
        let text = without_code(block);
        let line = |at: usize| begin + text[..at].matches('\n').count();
        for (opening, closing) in [("](", ")"), ("src=\"", "\""), ("href=\"", "\"")] {
            for (at, _) in text.match_indices(opening) {
                let rest = &text[at + opening.len()..];
                let target = rest.split(closing).next().unwrap_or_default();
                let target = target.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']);
                self.links.push(Link { target: target.to_string(), line: line(at) });
            }
        }
        for (at, _) in text.match_indices("id=\"") {
            self.anchors.extend(text[at + 4..].split('"').next().map(String::from));
        }
        for (at, written) in text.lines().enumerate() {
            let Some((_, target)) = written.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) else { continue };
            self.links.push(Link { target: target.trim().to_string(), line: begin + at });
        }
    }
}

/// Code spans become blanks of the same length, so that places stay.
fn without_code(block: &str) -> String {
    let mut out = String::with_capacity(block.len());
    let mut rest = block;
    while let Some(start) = rest.find('`') {
        let run = rest[start..].bytes().take_while(|byte| *byte == b'`').count();
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let mark = "`".repeat(run);
        let Some(end) = from[run..].find(&mark).map(|end| run + end + run) else {
            out.push_str(&mark);
            rest = &from[run..];
            continue;
        };
        let (code, after) = from.split_at(end);
        out.extend(code.chars().map(|letter| if letter == '\n' { '\n' } else { ' ' }));
        rest = after;
    }
    out + rest
}

/// A heading as a fragment: small letters, blanks become hyphens, other signs than `-` and `_` are left out.
fn slug(heading: &str) -> String {
    let mut text = String::new();
    let mut rest = heading.trim();
    // Of a link, its text.
    while let Some((before, (label, after))) =
        rest.split_once('[').and_then(|(before, inner)| Some((before, inner.split_once("](")?)))
    {
        text.push_str(before);
        text.push_str(label);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    text.push_str(rest);
    let sign = |letter: char| match letter {
        ' ' => Some('-'),
        '-' | '_' => Some(letter),
        other => other.is_alphanumeric().then_some(other),
    };
    text.to_lowercase().chars().filter_map(sign).collect()
}

/// The second heading of a name gets `-1`.
fn unused(name: String, seen: &mut BTreeMap<String, usize>) -> String {
    let count = seen.entry(name.clone()).or_default();
    *count += 1;
    if *count == 1 { name } else { format!("{name}-{}", *count - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(text: &str) -> Vec<(String, usize)> {
        Page::read(text).links.into_iter().map(|link| (link.target, link.line)).collect()
    }

    #[test]
    fn links_are_found_with_their_lines_and_code_is_passed_over() {
        let text = "# A\n\nSee [one\nand](a.md#x) and ![p](b.svg \"title\").\n\n```sh\n[no](code.md)\n```\n`[no](b.md)` and\n`over [two\nlines](c.md)` but [this](d.md)\n\n[ref]: e.md\n<img src=\"f.svg\">";
        let expected = [("a.md#x", 4), ("b.svg", 4), ("d.md", 11), ("f.svg", 14), ("e.md", 13)];
        assert_eq!(targets(text), expected.map(|(target, line)| (target.to_string(), line)));
    }

    #[test]
    fn headings_are_spelled_as_github_spells_them() {
        let text = "# Not supported, yet\n## `karst explain`: why?\n## A [link](x.md) in it\n## snake_case-1\n## Twice\n## Twice\n```\n# a comment\n```\n<a id=\"own\"></a>";
        let anchors = Page::read(text).anchors;
        let expected =
            ["not-supported-yet", "karst-explain-why", "a-link-in-it", "snake_case-1", "twice", "twice-1", "own"];
        assert_eq!(anchors, expected.map(String::from).into());
    }
}
