//! Names of claims where routes match them in place of a header: `@request.auth.claims.a.b` and `@request.auth.claims[a][b]` (Istio:
//! pkg/jwt/routing.go). Read by the controller, which refuses what cannot be read, and by the proxies.

/// How the name of a claim begins, in whatever case.
const PREFIX: &str = "@request.auth.claims";

/// It begins as the name of a claim, and is none.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "is not the name of a claim: use for example @request.auth.claims.groups or @request.auth.claims[realm_access][roles] [KARST-0024]"
)]
pub struct InvalidClaim;

/// The names of claims, each within the one before. None: it is the name of a header.
pub fn path(name: &str) -> Option<Result<Vec<String>, InvalidClaim>> {
    let (prefix, rest) = name.split_at_checked(PREFIX.len())?;
    if !prefix.eq_ignore_ascii_case(PREFIX) {
        return None;
    }
    let dotted = rest.strip_prefix('.').map(|names| names.split('.').collect());
    let bracketed = || Some(rest.strip_prefix('[')?.strip_suffix(']')?.split("][").collect());
    let names: Option<Vec<&str>> = dotted.or_else(bracketed);
    // A dot within brackets is part of a name; brackets within a dotted name are a slip.
    let is_name = |name: &&str| !name.is_empty() && !name.contains(['[', ']']);
    let names = names.filter(|names| names.iter().all(is_name)).ok_or(InvalidClaim);
    Some(names.map(|names| names.into_iter().map(String::from).collect()))
}

/// The name of a claim as the controller writes it to proxies: one that knows no claims refuses the rule, since no header is called so.
pub fn name(path: &[String]) -> String {
    format!("{PREFIX}[{}]", path.join("]["))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_named_with_dots_or_brackets() {
        for (text, wanted) in [
            ("@request.auth.claims.sub", Some(vec!["sub"])),
            ("@request.auth.claims.a.b.c", Some(vec!["a", "b", "c"])),
            ("@Request.Auth.CLAIMS.Sub", Some(vec!["Sub"])),
            ("@request.auth.claims[a][b]", Some(vec!["a", "b"])),
            ("@request.auth.claims[https://example.com/roles]", Some(vec!["https://example.com/roles"])),
            ("@request.auth.claims", None),
            ("@request.auth.claims.", None),
            ("@request.auth.claims.a..b", None),
            ("@request.auth.claims[]", None),
            ("@request.auth.claims[a][]", None),
            ("@request.auth.claims[a", None),
            ("@request.auth.claims[a]b]", None),
            ("@request.auth.claims.a[b]", None),
            ("@request.auth.claimsx", None),
        ] {
            let wanted =
                wanted.map(|names| names.into_iter().map(String::from).collect::<Vec<_>>()).ok_or(InvalidClaim);
            assert_eq!(path(text), Some(wanted.clone()), "{text}");
            if let Ok(names) = wanted {
                assert_eq!(path(&name(&names)), Some(Ok(names)), "{text}, written and read again");
            }
        }
        for header in ["x-user", "", "@request.auth", "request.auth.claims[a]", "ä@request.auth.claims.a"] {
            assert_eq!(path(header), None, "{header}");
        }
    }
}
