//! Templates of paths: what tells one object from another (numbers, UUIDs, hashes, tokens) becomes `{*}`, what is deeper than
//! [`SEGMENTS`] becomes `{**}`. A template is a value that AuthorizationPolicy takes in `paths`.

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

/// The template of a path (without query). Empty for what is no path (`OPTIONS *`).
pub fn template(path: &str) -> String {
    let mut text = String::new();
    write(path, &mut text);
    text.shrink_to_fit();
    text
}

/// Puts the template of a path at the end of a text.
pub(crate) fn write(path: &str, text: &mut String) {
    let Some(rest) = path.strip_prefix('/') else { return };
    for (at, segment) in rest.split('/').take(SEGMENTS + 1).enumerate() {
        text.push('/');
        text.push_str(match at {
            SEGMENTS => REST,
            _ if is_variable(segment) => ONE,
            _ => segment,
        });
    }
}

/// Of segments that a policy could name as they are.
const PLAIN: u8 = 1;
const DIGIT: u8 = 2;
/// Of numbers, versions, dates and times.
const NUMBER: u8 = 4;
/// Of hashes and UUIDs.
const HASH: u8 = 8;
const UPPER: u8 = 16;

/// What each byte may be part of. All of a segment is then known after one look at each of its bytes: it is done for each request.
static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut all = [0; 256];
    let mut byte = 0;
    while byte < all.len() {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b':' | b'@' | b'=' | b'+') {
            all[byte] |= PLAIN;
        }
        if b.is_ascii_digit() {
            all[byte] |= DIGIT;
        }
        if b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.' | b':') {
            all[byte] |= NUMBER;
        }
        if b.is_ascii_hexdigit() || b == b'-' {
            all[byte] |= HASH;
        }
        if b.is_ascii_uppercase() {
            all[byte] |= UPPER;
        }
        byte += 1;
    }
    all
}

/// Does it tell one object from another, or is it nothing that a policy could name as it is?
fn is_variable(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    if bytes.len() > SEGMENT {
        return true;
    }
    let (mut every, mut some, mut digits) = (u8::MAX, 0, 0);
    for byte in bytes {
        let class = CLASSES[usize::from(*byte)];
        every &= class;
        some |= class;
        digits += usize::from(class & DIGIT != 0);
    }
    if every & PLAIN == 0 {
        return true;
    }
    if digits == 0 {
        return false;
    }
    let is_number = bytes.first().is_some_and(u8::is_ascii_digit) && every & NUMBER != 0;
    let is_hash = bytes.len() >= 8 && every & HASH != 0;
    let is_token = bytes.len() >= 20 && (digits >= 4 || (digits >= 2 && some & UPPER != 0));
    let is_numbered = bytes.last_chunk::<3>().is_some_and(|last| last.iter().all(u8::is_ascii_digit));
    is_number || is_hash || is_token || is_numbered
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_policy::{Path, PathPattern};
    use rand::{Rng, SeedableRng, rngs::StdRng};

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
            let mut text = "before".to_owned();
            write(path, &mut text);
            assert_eq!(text, format!("before{wanted}"));
        }
        assert_eq!(template(&format!("/{}", "a".repeat(SEGMENT + 1))), "/{*}");
        assert_eq!(template(&format!("/{}", "a".repeat(SEGMENT))), format!("/{}", "a".repeat(SEGMENT)));
    }

    /// The same, said one after the other.
    fn is_variable_plainly(segment: &str) -> bool {
        let bytes = segment.as_bytes();
        let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~:@=+".contains(b);
        if bytes.len() > SEGMENT || !bytes.iter().all(is_plain) {
            return true;
        }
        let digits = bytes.iter().filter(|b| b.is_ascii_digit()).count();
        let is_number = segment.starts_with(|c: char| c.is_ascii_digit())
            && bytes.iter().all(|b| b.is_ascii_digit() || b"-_.:".contains(b));
        let is_hash = digits > 0 && bytes.len() >= 8 && bytes.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-');
        let has_upper = bytes.iter().any(u8::is_ascii_uppercase);
        let is_token = bytes.len() >= 20 && (digits >= 4 || (digits >= 2 && has_upper));
        let is_numbered = bytes.iter().rev().take_while(|b| b.is_ascii_digit()).count() >= 3;
        is_number || is_hash || is_token || is_numbered
    }

    #[test]
    fn a_segment_is_judged_at_one_look_as_by_one_rule_after_the_other() {
        let mut random = StdRng::seed_from_u64(3);
        let (mut variable, all) = (0, 50_000);
        // Of few kinds of bytes each, or every one would have an odd one.
        let kinds =
            ["0123456789", "0123456789-_.:", "0123456789abcdef-", "xy9", "aB3c4", "az09%", "a.b~c:d@e=f+", "é1", "xyz"];
        for _ in 0..all {
            let letters: Vec<char> = kinds[random.random_range(0..kinds.len())].chars().collect();
            let length = random.random_range(0..=SEGMENT + 2);
            let segment: String = (0..length).map(|_| letters[random.random_range(0..letters.len())]).collect();
            let is = is_variable(&segment);
            assert_eq!(is, is_variable_plainly(&segment), "{segment}");
            variable += usize::from(is);
        }
        assert!(variable > all / 10 && variable < all * 9 / 10, "{variable}");
        for byte in 0..=u8::MAX {
            let one = char::from(byte).to_string();
            assert_eq!(is_variable(&one), is_variable_plainly(&one), "{one:?}");
        }
    }

    /// A template is a value of AuthorizationPolicy, it matches the paths that it was made of, and it is its own template: a book
    /// that is read and noted again says the same.
    #[test]
    fn templates_are_values_of_policies() {
        let mut random = StdRng::seed_from_u64(7);
        let words =
            ["a", "orders", "17", "x.js", "550e8400-e29b-41d4-a716-446655440000", "A-b_c~d", "deadbeef01", "k=v"];
        for _ in 0..2000 {
            let segments = random.random_range(0..12);
            let all: Vec<&str> = (0..segments).map(|_| words[random.random_range(0..words.len())]).collect();
            let path = format!("/{}", all.join("/"));
            let text = template(&path);
            let pattern = PathPattern::parse(&text).unwrap();
            assert!(pattern.grants(&Path::new(&path)), "{text} does not allow {path}");
            assert_eq!(template(&text), text, "{path}");
        }
    }
}
