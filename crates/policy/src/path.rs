//! The paths that an application may make of one path (reliability T18). A proxy cannot know which of them it will be: some
//! decode, some resolve `..`, some merge slashes, some take parameters (`;x`) off, some do none of it, and in several orders.
//! So a policy judges every reading: DENY if any matches, ALLOW only if all do.
//!
//! Percent-encoding is taken off once. Where it stays, it has one spelling: capital digits, and encoded whatever cannot stand in
//! a path as it is; else the value `/my files` would be another one than the `/my%20files` that is sent for it.

use std::{borrow::Cow, cell::OnceCell};

/// Longest path whose readings are looked for, bytes (as Apache and nginx limit it). Of a longer one nothing is known, unless
/// it has only one.
const LONGEST: usize = 8 << 10;
/// How many bytes of forms are made of a path. Of one that has more nothing is known: all kinds of special signs together make 90
/// forms, which is too much work for a long path, while percent-encoding alone makes two.
const WORK: usize = 64 << 10;

/// A path as it was sent. Its readings are made when the first policy asks for them.
#[derive(Debug)]
pub struct Path<'a> {
    sent: &'a str,
    made: OnceCell<Made>,
}

/// As [`Readings`], without what was sent: a cell with a lifetime of its own would be invariant, and so would who holds a path.
#[derive(Debug)]
enum Made {
    One,
    Several(Vec<String>),
    Unknown,
}

impl<'a> Path<'a> {
    /// Costs nothing.
    pub fn new(sent: &'a str) -> Self {
        Self { sent, made: OnceCell::new() }
    }

    /// What an application may read.
    pub fn readings(&self) -> Readings<'_> {
        let make = || match Readings::of(self.sent) {
            Readings::One(_) => Made::One,
            Readings::Several(all) => Made::Several(all.into_owned()),
            Readings::Unknown => Made::Unknown,
        };
        match self.made.get_or_init(make) {
            Made::One => Readings::One(self.sent),
            Made::Several(all) => Readings::Several(Cow::Borrowed(all)),
            Made::Unknown => Readings::Unknown,
        }
    }
}

/// What an application may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readings<'a> {
    /// Nobody reads it otherwise than it is written.
    One(&'a str),
    /// Each once.
    Several(Cow<'a, [String]>),
    /// Too long, or too many: it could be anything.
    Unknown,
}

impl<'a> Readings<'a> {
    /// The readings of a path. That of a usual one costs a look at each byte.
    pub fn of(path: &'a str) -> Self {
        if is_plain(path) {
            Readings::One(path)
        } else if path.len() > LONGEST {
            Readings::Unknown
        } else {
            forms_within(path, Part::Whole, WORK).map_or(Readings::Unknown, |all| Readings::Several(all.into()))
        }
    }

    /// As it is written, in one spelling of percent-encoding. None: unknown.
    pub fn written(&self) -> Option<&str> {
        match self {
            Readings::One(p) => Some(p),
            Readings::Several(all) => all.first().map(String::as_str),
            Readings::Unknown => None,
        }
    }

    /// Does it hold for any of them? Of what is unknown, it does.
    pub fn any(&self, mut test: impl FnMut(&str) -> bool) -> bool {
        match self {
            Readings::One(p) => test(p),
            Readings::Several(all) => all.iter().any(|p| test(p)),
            Readings::Unknown => true,
        }
    }

    /// Does it hold for all of them? Of what is unknown, it does not.
    pub fn all(&self, mut test: impl FnMut(&str) -> bool) -> bool {
        match self {
            Readings::One(p) => test(p),
            Readings::Several(all) => all.iter().all(|p| test(p)),
            Readings::Unknown => false,
        }
    }
}

/// Which part of a path a text is. At the open end of a part, a segment may not be whole: it is not taken for `..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// Its beginning.
    Start,
    /// Its end.
    End,
}

/// All forms of a text: at most 90, each at most three times as long. The first is the one that is written ([`encode`]).
pub(crate) fn forms(text: &str, part: Part) -> Vec<String> {
    forms_within(text, part, usize::MAX).unwrap_or_default()
}

/// None: that would be more than so many bytes.
fn forms_within(text: &str, part: Part, mut work: usize) -> Option<Vec<String>> {
    let mut out = Vec::new();
    let turned = |s: &str| s.replace('\\', "/");
    let has_backslash = decode(text).contains('\\');
    // `\` is a slash from the beginning; or not, or only in the end.
    for early in [false, true] {
        if early && !has_backslash {
            continue;
        }
        let mut end = |s: &str| {
            resolved(s, part, &mut out, &mut work)?;
            if s.contains('\\') {
                resolved(&turned(s), part, &mut out, &mut work)?;
            }
            Some(())
        };
        let sent = if early { turned(text) } else { text.to_string() };
        for bare in [false, true] {
            if bare && !sent.contains(';') {
                continue;
            }
            let sent = if bare { without_parameters(&sent, part) } else { sent.clone() };
            end(&encode(&sent))?;
            let decoded = if early { turned(&decode(&sent)) } else { decode(&sent) };
            end(&decoded)?;
            if decoded.contains(';') {
                end(&without_parameters(&decoded, part))?;
            }
        }
    }
    Some(out)
}

/// With slashes merged or not, dots resolved or not, in both orders: `/a//../b` is `/b` or `/a/b`. None: no work is left.
fn resolved(path: &str, part: Part, out: &mut Vec<String>, work: &mut usize) -> Option<()> {
    let varies = path.contains("//") || has_dots(path);
    *work = work.checked_sub(if varies { 5 * path.len() } else { path.len() })?;
    let mut push = |reading: String| {
        if !out.contains(&reading) {
            out.push(reading);
        }
    };
    push(path.to_string());
    if !varies {
        return Some(());
    }
    let merged = merge(path);
    // What `..` at the beginning of an end would take away is not known.
    if part != Part::End {
        let plain = resolve(path, part);
        push(resolve(&merged, part));
        push(merge(&plain));
        push(plain);
    }
    push(merged);
    Some(())
}

/// Has it only one reading? (RFC 3986 §3.3: what may stand in a path as it is, but for what some take for more.)
fn is_plain(path: &str) -> bool {
    const USUAL: [bool; 256] = {
        let (mut all, mut byte) = ([false; 256], 0);
        while byte < 128 {
            all[byte] = can_stand(byte as u8) && byte as u8 != b';';
            byte += 1;
        }
        all
    };
    let mut before = 0;
    for byte in path.bytes() {
        if !USUAL[usize::from(byte)] || (byte == b'/' && before == b'/') {
            return false;
        }
        before = byte;
    }
    path.starts_with('/') && !(path.contains("/.") && has_dots(path))
}

fn has_dots(path: &str) -> bool {
    path.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// May it stand in a path as it is (RFC 3986: pchar, `/`)?
pub(crate) const fn can_stand(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~' | b':' | b'@')
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

/// The byte that is encoded at the beginning (RFC 3986 §2.1).
fn escaped(bytes: &[u8]) -> Option<u8> {
    let hex = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    match *bytes {
        [b'%', high, low, ..] => Some(hex(high)? << 4 | hex(low)?),
        _ => None,
    }
}

fn decode(path: &str) -> String {
    let (mut rest, mut out) = (path.as_bytes(), Vec::with_capacity(path.len()));
    while let [first, more @ ..] = rest {
        match escaped(rest) {
            Some(c) => {
                out.push(c);
                rest = rest.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One spelling of what is not decoded. (The operators of templates, and `\`, stay.)
fn encode(path: &str) -> String {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let (mut rest, mut out) = (path.as_bytes(), String::with_capacity(path.len()));
    while let [first, more @ ..] = rest {
        let found = escaped(rest);
        let c = found.unwrap_or(*first);
        if found.is_none() && (can_stand(c) || matches!(c, b'\\' | ONE | ANY)) {
            out.push(c as char);
        } else {
            out.extend(['%', HEX[usize::from(c >> 4)], HEX[usize::from(c & 15)]]);
        }
        rest = if found.is_some() { rest.get(3..).unwrap_or_default() } else { more };
    }
    out
}

/// `{*}` while a template is normalised: no path has it.
pub(crate) const ONE: u8 = 1;
/// The same of `{**}`.
pub(crate) const ANY: u8 = 2;

/// Each segment up to its first `;`. One that may not be whole stays.
fn without_parameters(path: &str, part: Part) -> String {
    let count = path.split('/').count();
    let bare = |(i, x): (usize, &str)| {
        let open = (part == Part::Start && i + 1 == count) || (part == Part::End && i == 0);
        let end = if open { x.len() } else { x.find(';').unwrap_or(x.len()) };
        x.get(..end).unwrap_or_default().to_string()
    };
    path.split('/').enumerate().map(bare).collect::<Vec<_>>().join("/")
}

fn merge(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

/// Without `.` and `..` (RFC 3986 §5.2.4).
fn resolve(path: &str, part: Part) -> String {
    if !path.starts_with('/') {
        return path.to_string();
    }
    let (closed, open) = match path.rfind('/').filter(|_| part == Part::Start) {
        Some(at) => path.split_at(at + 1),
        None => (path, ""),
    };
    let mut out: Vec<&str> = vec![];
    let mut segments = closed.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    out.pop();
                }
                if segments.peek().is_none() {
                    out.push("");
                }
            }
            segment => out.push(segment),
        }
    }
    format!("/{}{open}", out.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(path: &str) -> Vec<String> {
        match Readings::of(path) {
            Readings::One(p) => vec![p.into()],
            Readings::Several(all) => all.into_owned(),
            Readings::Unknown => vec![],
        }
    }

    #[test]
    fn usual_paths_have_one_reading_and_cost_no_allocation() {
        for p in ["/", "/a", "/a/b.c/-_~", "/.well-known/x", "/a/...", "/a/.b", "/a/b..", "/x:y@z", "/a/", "/a+b,c=d"] {
            assert_eq!(Readings::of(p), Readings::One(p));
        }
        for p in ["//", "/a/.", "/..", "/a/../b", "/%61", "/a;b", "/a\\b", "/\u{e9}", "*", ""] {
            assert!(matches!(Readings::of(p), Readings::Several(_)), "{p}");
        }
    }

    #[test]
    fn every_reading_is_found() {
        for (path, wanted) in [
            ("/internal/..%2fpublic/a", &["/internal/..%2Fpublic/a", "/internal/../public/a", "/public/a"][..]),
            ("/a//../b", &["/a//../b", "/a/b", "/b", "/a/../b"]),
            ("/x;/..;/admin", &["/x;/..;/admin", "/x/../admin", "/admin"]),
            ("/a;%2fb/c", &["/a;%2Fb/c", "/a;/b/c", "/a/b/c", "/a/c"]),
            ("/x%5c..%5cadmin", &["/x%5C..%5Cadmin", "/x\\..\\admin", "/x/../admin", "/admin"]),
            ("/%61dmin", &["/%61dmin", "/admin"]),
            ("/%2561dmin", &["/%2561dmin", "/%61dmin"]),
            ("/caf%c3%a9", &["/caf%C3%A9", "/caf\u{e9}"]),
            ("/caf\u{e9}", &["/caf%C3%A9", "/caf\u{e9}"]),
            ("/100%", &["/100%25", "/100%"]),
        ] {
            let found = readings(path);
            assert!(wanted.iter().all(|w| found.iter().any(|f| f == w)), "{path}: {found:?}");
        }
        assert_eq!(readings("/%61dmin").len(), 2);
    }

    #[test]
    fn readings_are_made_once_and_only_if_somebody_asks() {
        let path = Path::new("/%61");
        assert!(path.made.get().is_none());
        assert_eq!(path.readings(), Readings::of("/%61"));
        assert!(path.made.get().is_some() && matches!(path.readings(), Readings::Several(Cow::Borrowed(_))));
        for (path, wanted) in [("/a", Readings::One("/a")), ("/\u{e9}", Readings::of("/%c3%a9"))] {
            assert_eq!(Path::new(path).readings(), wanted);
        }
    }

    #[test]
    fn the_work_is_bounded() {
        let path = format!("/{}", "a;%2f..\\//%5c;b/".repeat(500));
        assert_eq!(Readings::of(&path), Readings::Unknown, "all kinds of signs at this length are too much work");
        let short = format!("/{}", "a;%2f..\\//%5c;b/".repeat(8));
        assert!((20..=90).contains(&readings(&short).len()), "{}", readings(&short).len());
        // One kind alone is not.
        for kind in ["%e4%b8%ad", "a;b/", "a//b", "%2f", "a\\b"] {
            let path = format!("/{}", kind.repeat((4 << 10) / kind.len()));
            let all = readings(&path);
            assert!(!all.is_empty() && all.iter().map(String::len).sum::<usize>() <= WORK, "{kind}");
        }
        let long = format!("/{}", "%61".repeat(LONGEST));
        let r = Readings::of(&long);
        assert!(r == Readings::Unknown && r.any(|_| false) && !r.all(|_| true));
        let long = format!("/{}", "a".repeat(LONGEST));
        assert_eq!(Readings::of(&long), Readings::One(&long), "a plain one is known, however long");
    }
}
