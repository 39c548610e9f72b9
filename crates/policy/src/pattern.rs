//! A path as a policy has it: whole, with one `*` at an end, or a template (`{*}`, `{**}`, by the rules of Istio's validation).
//! It goes through the function that the paths of requests go through ([`crate::path`]), once, when it is compiled. Where it refuses
//! ([`PathPattern::touches`]) it means all that an application may make of it; where it grants ([`PathPattern::grants`]) only what is
//! written: who allows `/a%2Fb` has not allowed `/a/b`.

use crate::{
    ValueError,
    path::{ANY, ONE, Part, Path, can_stand, forms},
};

/// How a path must be: as written, then in the other forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern(Vec<Form>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Present,
    Template(Template),
}

/// Segments, and whatever follows them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Template {
    /// None: any one that is not empty.
    segments: Vec<Option<String>>,
    /// What `{**}` is followed by; None: there is none.
    end: Option<String>,
}

impl PathPattern {
    /// Reads a value.
    ///
    /// # Errors
    /// If it would never match, or nobody knows what it means.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        if !text.starts_with(['/', '*']) {
            return Err(ValueError::Relative);
        }
        if text.contains(['?', '#']) {
            return Err(ValueError::Query);
        }
        if text.contains(['{', '}']) {
            return template(text);
        }
        let all = |text: &str, part, form: fn(String) -> Form| Self(forms(text, part).into_iter().map(form).collect());
        Ok(match (text.matches('*').count(), text.strip_suffix('*'), text.strip_prefix('*')) {
            (0, ..) => all(text, Part::Whole, Form::Exact),
            (1, Some(""), _) => Self(vec![Form::Present]),
            (1, Some(start), _) => all(start, Part::Start, Form::Prefix),
            (1, _, Some(end)) => all(end, Part::End, Form::Suffix),
            _ => return Err(ValueError::PathStar),
        })
    }

    /// Does any reading match, in any form? So a value refuses. What is unknown does.
    pub fn touches(&self, path: &Path<'_>) -> bool {
        path.readings().any(|r| self.matches(r))
    }

    /// Does every reading match in some form, and what was sent the value as it is written? So a value grants. What is unknown
    /// does not.
    pub fn grants(&self, path: &Path<'_>) -> bool {
        let readings = path.readings();
        let as_written = |sent| self.0.first().is_some_and(|f| f.matches(sent));
        readings.written().is_some_and(as_written) && readings.all(|r| self.matches(r))
    }

    fn matches(&self, reading: &str) -> bool {
        self.0.iter().any(|f| f.matches(reading))
    }
}

impl Form {
    fn matches(&self, path: &str) -> bool {
        match self {
            Form::Exact(x) => x == path,
            Form::Prefix(x) => path.starts_with(x.as_str()),
            Form::Suffix(x) => path.ends_with(x.as_str()),
            Form::Present => !path.is_empty(),
            Form::Template(t) => t.matches(path),
        }
    }
}

fn template(text: &str) -> Result<PathPattern, ValueError> {
    let (mut any, mut marked) = (false, String::with_capacity(text.len()));
    for segment in text.strip_prefix('/').ok_or(ValueError::PathStar)?.split('/') {
        marked.push('/');
        match segment {
            "{*}" | "{**}" if any => return Err(ValueError::NotLast),
            "{*}" => marked.push(ONE as char),
            "{**}" => {
                any = true;
                marked.push(ANY as char);
            }
            x if x.contains(['{', '}']) => return Err(ValueError::Braces),
            x if x.contains('*') => return Err(ValueError::PathStar),
            x if !x.bytes().all(|c| can_stand(c) || c == b'%') => return Err(ValueError::Literal),
            x => marked.push_str(x),
        }
    }
    Ok(PathPattern(forms(&marked, Part::Whole).iter().map(|f| Form::Template(Template::new(f))).collect()))
}

impl Template {
    fn new(marked: &str) -> Self {
        let (start, end) = match marked.split_once(ANY as char) {
            Some((start, end)) => (start.strip_suffix('/').unwrap_or(start), Some(end.to_string())),
            None => (marked, None),
        };
        let one = |s: &str| (s.as_bytes() != [ONE]).then(|| s.to_string());
        Self { segments: start.split('/').skip(1).map(one).collect(), end }
    }

    /// Looks at each byte once or twice. As in Envoy, `{**}` is any text, empty or of several segments, between the slashes
    /// that are written: `/a/{**}` is not `/a`, and `/{**}/b` not `/b`.
    fn matches(&self, path: &str) -> bool {
        let mut rest = path;
        for expected in &self.segments {
            let Some(more) = rest.strip_prefix('/') else { return false };
            let (segment, more) = more.split_at(more.find('/').unwrap_or(more.len()));
            if expected.as_ref().map_or(segment.is_empty(), |name| name != segment) {
                return false;
            }
            rest = more;
        }
        match &self.end {
            None => rest.is_empty(),
            Some(end) => rest.strip_prefix('/').is_some_and(|rest| rest.ends_with(end.as_str())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ValueError as E;

    /// As a DENY has it, and as an ALLOW has it.
    fn of(value: &str, path: &str) -> (bool, bool) {
        let (value, path) = (PathPattern::parse(value).unwrap(), Path::new(path));
        (value.touches(&path), value.grants(&path))
    }

    #[test]
    fn values_are_normalised_as_requests_are() {
        for (value, path) in [
            ("/a//b", "/a//b"),
            ("/my files/*", "/my%20files/x"),
            ("/my%20files/*", "/my%20files/x"),
            ("/caf\u{e9}", "/caf%c3%a9"),
            ("/caf%C3%A9", "/caf%c3%a9"),
            ("/a%2fb/*", "/a%2Fb/c"),
            ("/100%", "/100%25"),
            ("/a;v=1", "/a;v=1"),
            ("*//x", "/a//x"),
            ("/a%20b/{*}/c", "/a%20b/x/c"),
        ] {
            assert_eq!(of(value, path), (true, true), "{value} {path}");
        }
        // Who allows one of these has not allowed what some applications make of it.
        for (value, path) in [
            ("/a//b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/%62", "/a/b"),
            ("/v4/projects/group%2Frepo", "/v4/projects/group/repo"),
            ("/a;v=1", "/a"),
            ("/a%3Bb", "/a"),
            ("/a%3Bb", "/a;b"),
            ("/objects/a%2F*", "/objects/a/x"),
            ("*%2Fx", "/a/x"),
            ("/a%2Fb/{*}", "/a/b/c"),
        ] {
            assert_eq!(of(value, path), (true, false), "{value} {path}");
        }
        // A part of a segment is no segment: neither "..", nor one with parameters.
        assert_eq!(of("/a/..*", "/b"), (false, false));
        assert_eq!(of("/a/.*", "/a/b"), (false, false));
        assert_eq!(of("/a;b*", "/ac"), (false, false));
        assert_eq!(of("*..", "/b"), (false, false));
    }

    #[test]
    fn any_reading_denies_and_all_allow() {
        for (value, path, wanted) in [
            ("/public/*", "/internal/..%2fpublic/a", (true, false)),
            ("/internal/*", "/internal/..%2fpublic/a", (true, false)),
            ("/public/*", "/public/a%2fb", (true, true)),
            ("/public/*", "/public/..%2f..%2fx", (true, false)),
            ("/admin", "/%61dmin", (true, false)),
            ("/admin*", "/x;/..;/admin", (true, false)),
            ("/public/*", "/other", (false, false)),
            ("*", "/a;b%2f..", (true, true)),
        ] {
            assert_eq!(of(value, path), wanted, "{value} {path}");
        }
    }

    #[test]
    fn templates_are_those_of_envoy() {
        for (value, path, wanted) in [
            ("/a/{*}", "/a/b", true),
            ("/a/{*}", "/a/", false),
            ("/a/{*}", "/a", false),
            ("/a/{*}", "/a/b/c", false),
            ("/a/{*}/c", "/a/b/c", true),
            ("/a/{**}", "/a/b/c", true),
            ("/a/{**}", "/a/", true),
            ("/a/{**}", "/a", false),
            ("/{**}", "/", true),
            ("/{**}/c", "/a/b/c", true),
            ("/{**}/c", "/c", false),
            ("/{**}/c", "/a/c/d", false),
            ("/{*}/{**}/x.js", "/a/b/c/x.js", true),
            ("/a/{**}/", "/a/b/", true),
            ("/a/{**}/", "/a/b", false),
        ] {
            assert_eq!(of(value, path), (wanted, wanted), "{value} {path}");
        }
    }

    #[test]
    fn what_would_never_match_is_refused() {
        for (value, wanted) in [
            ("*/admin/*", E::PathStar),
            ("/a*b", E::PathStar),
            ("/a**", E::PathStar),
            ("**", E::PathStar),
            ("/user/{id}", E::Braces),
            ("/user/{*}x", E::Braces),
            ("/{***}", E::Braces),
            ("/a}", E::Braces),
            ("/{*}/b*", E::PathStar),
            ("*/{*}", E::PathStar),
            ("/{**}/{**}", E::NotLast),
            ("/{**}/a/{*}", E::NotLast),
            ("/{*}/a b", E::Literal),
            ("admin", E::Relative),
            ("", E::Relative),
            ("/a?b=c", E::Query),
        ] {
            assert_eq!(PathPattern::parse(value), Err(wanted), "{value}");
        }
    }

    /// Once, each `{**}` tried every length of the rest: time grew with a power of the path's length, and this would not end.
    #[test]
    fn templates_take_linear_time() {
        let p = PathPattern::parse(&format!("{}/{{**}}/b/c", "/{*}".repeat(8))).unwrap();
        let path = "/b".repeat(1 << 20);
        assert!(!p.matches(&path) && p.matches(&format!("{path}/c")));
    }

    /// Random paths against small oracles: applications that take them as they are sent, that decode without resolving, that decode
    /// and resolve, that take parameters off or read `\` as a slash at some time. None of them ever reads what a policy has not
    /// judged. (The same through a whole waypoint, with other oracles: tests/differential.)
    #[test]
    fn no_application_reads_what_was_not_judged() {
        use rand::{Rng, SeedableRng, rngs::StdRng};
        let seed: u64 = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        println!("SEED={seed}");
        let mut r = StdRng::seed_from_u64(seed);
        let words = ["/", "a", "b", "..", ".", "%2f", "%2e", ";", "%3b", "\\", "%5c", "//", "%61", "x", "%2F..%2F"];
        let decode = |s: &str| {
            let (b, mut i, mut out) = (s.as_bytes(), 0, vec![]);
            while i < b.len() {
                let code = s.get(i + 1..i + 3).and_then(|x| u8::from_str_radix(x, 16).ok()).filter(|_| b[i] == b'%');
                out.push(code.unwrap_or(b[i]));
                i += if code.is_some() { 3 } else { 1 };
            }
            String::from_utf8(out).unwrap()
        };
        let resolve = |s: &str| {
            let mut out: Vec<&str> = vec![];
            for x in s.split('/').filter(|x| !x.is_empty() && *x != ".") {
                if x == ".." {
                    out.pop();
                } else {
                    out.push(x);
                }
            }
            let slash = ["/", "/.", "/.."].iter().any(|e| s.ends_with(e)) && !out.is_empty();
            format!("/{}{}", out.join("/"), if slash { "/" } else { "" })
        };
        let bare = |s: &str| s.split('/').map(|x| x.split(';').next().unwrap()).collect::<Vec<_>>().join("/");
        let slashes = |s: &str| s.replace('\\', "/");
        // Digits of codes have no case.
        let spelled = |s: &str| {
            let mut parts = s.split('%');
            let first = parts.next().unwrap_or_default().to_string();
            parts.fold(first, |all, p| {
                let (code, rest) = p.split_at(2);
                format!("{all}%{}{rest}", code.to_uppercase())
            })
        };
        let seen_by = |path: &str| {
            [
                spelled(path),
                decode(path),
                resolve(&decode(path)),
                resolve(&slashes(&decode(path))),
                resolve(&decode(&bare(path))),
                resolve(&slashes(&bare(&decode(path)))),
                resolve(&bare(&slashes(&decode(path)))),
            ]
        };
        // The matcher of this test: one `*`, at an end.
        let like = |v: &str, s: &str| match v.split_once('*') {
            None => v == s,
            Some((start, end)) => s.len() >= v.len() - 1 && s.starts_with(start) && s.ends_with(end),
        };
        let parsed =
            |all: &[&'static str]| all.iter().map(|v| (*v, PathPattern::parse(v).unwrap())).collect::<Vec<_>>();
        let plain = parsed(&["/a*", "/b/*", "/x", "*b", "/a", "/a/b", "/a/*"]);
        // Those that may be read in several ways themselves.
        let special = parsed(&[
            "/a//b", "/a%2fb", "/a;b", "/a%3Bb", "/%61/*", "/a%2f*", "*;b", "/a/../b", "*%2Fb", "/a;x/*", "/a\\b",
        ]);
        let (mut granted, mut refused) = (0, 0);
        for _ in 0..100_000 {
            let n = r.random_range(0..8);
            let path = "/".to_string() + &(0..n).map(|_| words[r.random_range(0..words.len())]).collect::<String>();
            let seen = seen_by(&path);
            let sent = Path::new(&path);
            for s in &seen {
                assert!(sent.readings().any(|x| x == s), "{path:?} is read as {s:?}: {:?}", sent.readings());
            }
            for (value, p) in &plain {
                let (any, all) = (p.touches(&sent), p.grants(&sent));
                assert!(any || !all);
                for s in &seen {
                    assert!(any || !like(value, s), "{value} is passed by {path:?}, read as {s:?}");
                    assert!(!all || like(value, s), "{value} lets in {path:?}, read as {s:?}");
                }
            }
            for (value, p) in &special {
                let (any, all) = (p.touches(&sent), p.grants(&sent));
                assert!(any || !all);
                // As Istio compares: what is written with what is sent.
                let written = like(&spelled(value), &spelled(&path));
                assert!(any || !written, "DENY {value} is passed by {path:?}");
                assert!(written || !all, "ALLOW {value} lets in {path:?}");
                granted += usize::from(all);
                refused += usize::from(any && !all);
                if !value.contains('*') {
                    for (s, v) in seen.iter().zip(seen_by(value)) {
                        assert!(any || *s != v, "DENY {value} is passed by {path:?}: both are read as {s:?}");
                    }
                }
            }
        }
        assert!(granted > 100 && refused > 1_000, "the generator must exercise it: {granted} {refused}");
    }
}
