//! Templates of paths: what tells one object from another (numbers, UUIDs, hashes, tokens) becomes `{*}`, what is deeper than
//! [`SEGMENTS`] becomes `{**}`. A template is a value that AuthorizationPolicy takes in `paths`.

use std::hash::Hasher;

/// Segments of a path that are kept; what is deeper becomes `{**}`.
pub const SEGMENTS: usize = 8;
/// Longest segment that is kept as it is, in bytes.
pub const SEGMENT: usize = 48;
/// One segment, whichever.
pub const ONE: &str = "{*}";
/// Any number of segments, at the end.
pub const REST: &str = "{**}";
/// All paths.
pub const ANY: &str = "/{**}";

/// A path as its template shows it. Made anew for each look, so that nothing is allocated for a path that is known.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Template<'a> {
    Of(&'a str),
    Any,
}

impl<'a> Template<'a> {
    /// Its segments. The first is empty where the path does not begin with a slash (`*`), and then there is only one.
    fn pieces(self) -> impl Iterator<Item = &'a str> {
        let path = match self {
            Self::Of(path) => path,
            Self::Any => ANY,
        };
        let rest = path.strip_prefix('/');
        let segments = rest.into_iter().flat_map(|rest| rest.split('/')).take(SEGMENTS + 1).enumerate();
        let one = move |(at, segment): (usize, &'a str)| match (self, at) {
            (Self::Any, _) => segment,
            (Self::Of(_), SEGMENTS) => REST,
            (Self::Of(_), _) if is_variable(segment) => ONE,
            (Self::Of(_), _) => segment,
        };
        segments.map(one)
    }

    pub(crate) fn hash(self, state: &mut impl Hasher) {
        for piece in self.pieces() {
            state.write_u8(b'/');
            state.write(piece.as_bytes());
        }
    }

    /// Is this the template that is written so?
    pub(crate) fn is(self, text: &str) -> bool {
        let mut rest = text;
        for piece in self.pieces() {
            match rest.strip_prefix('/').and_then(|rest| rest.strip_prefix(piece)) {
                Some(more) => rest = more,
                None => return false,
            }
        }
        rest.is_empty()
    }

    pub(crate) fn text(self) -> String {
        let mut text = self.pieces().fold(String::new(), |text, piece| text + "/" + piece);
        text.shrink_to_fit();
        text
    }
}

/// The template of a path (without query). Empty for what is no path (`OPTIONS *`).
pub fn template(path: &str) -> String {
    Template::Of(path).text()
}

/// Does it tell one object from another, or is it nothing that a policy could name as it is?
fn is_variable(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let plain =
        |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b':' | b'@' | b'=' | b'+');
    if bytes.len() > SEGMENT || !bytes.iter().all(plain) {
        return true;
    }
    let digits = bytes.iter().filter(|b| b.is_ascii_digit()).count();
    if digits == 0 {
        return false;
    }
    let is_number = bytes[0].is_ascii_digit() && bytes.iter().all(|b| b.is_ascii_digit() || b"-_.:".contains(b));
    let is_hash = bytes.len() >= 8 && bytes.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-');
    let has_upper = bytes.iter().any(u8::is_ascii_uppercase);
    let is_token = bytes.len() >= 20 && (digits >= 4 || (digits >= 2 && has_upper));
    let is_numbered = bytes.iter().rev().take_while(|b| b.is_ascii_digit()).count() >= 3;
    is_number || is_hash || is_token || is_numbered
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_policy::{Path, PathPattern};
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use std::hash::DefaultHasher;

    #[test]
    fn what_tells_objects_apart_is_collapsed() {
        for (path, wanted) in [
            ("/", "/"),
            ("/orders", "/orders"),
            ("/orders/", "/orders/"),
            ("/orders/17", "/orders/{*}"),
            ("/orders/17/items/3.5", "/orders/{*}/items/{*}"),
            ("/v1/users/550e8400-e29b-41d4-a716-446655440000", "/v1/users/{*}"),
            ("/blob/9f86d081884c7d659a2feaa0c55ad015", "/blob/{*}"),
            ("/commit/deadbee1", "/commit/{*}"),
            ("/cafe/facade", "/cafe/facade"),
            ("/days/2026-11-29", "/days/{*}"),
            ("/user/user123/v2", "/user/{*}/v2"),
            ("/t/01ARZ3NDEKTSV4RRFFQ69G5FAV", "/t/{*}"),
            ("/api/v2/oauth2/token", "/api/v2/oauth2/token"),
            ("/my%20files/a", "/{*}/a"),
            ("/a;v=1/b", "/{*}/b"),
            ("/a*b/{x}", "/{*}/{*}"),
            ("/1/2/3/4/5/6/7/8/9/10", "/{*}/{*}/{*}/{*}/{*}/{*}/{*}/{*}/{**}"),
            ("*", ""),
        ] {
            assert_eq!(template(path), wanted, "{path}");
            assert!(Template::Of(path).is(wanted), "{path}");
            assert!(!Template::Of(path).is(&format!("{wanted}x")), "{path}");
        }
        assert!(template(&format!("/{}", "a".repeat(SEGMENT + 1))) == "/{*}");
        assert_eq!((Template::Any.text(), Template::Any.is(ANY)), (ANY.to_string(), true));
    }

    /// A template is a value of AuthorizationPolicy, it matches the paths that it was made of, and it is its own hash and text.
    #[test]
    fn templates_are_values_of_policies() {
        let mut random = StdRng::seed_from_u64(7);
        let words =
            ["a", "orders", "17", "x.js", "550e8400-e29b-41d4-a716-446655440000", "A-b_c~d", "deadbeef01", "k=v"];
        let hash = |template: Template<'_>| {
            let mut state = DefaultHasher::new();
            template.hash(&mut state);
            state.finish()
        };
        for _ in 0..2000 {
            let segments = random.random_range(0..12);
            let all: Vec<&str> = (0..segments).map(|_| words[random.random_range(0..words.len())]).collect();
            let path = format!("/{}", all.join("/"));
            let text = template(&path);
            let pattern = PathPattern::parse(&text).unwrap();
            assert!(pattern.grants(&Path::new(&path)), "{text} does not allow {path}");
            assert!(Template::Of(&path).is(&text));
            assert!(hash(Template::Of(&path)) == hash(Template::Of(&path.clone())));
        }
    }
}
