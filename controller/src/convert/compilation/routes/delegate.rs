//! A delegate's rule within the rule that delegates: Istio's merge, field by field (`mergeHTTPRoute`). What the delegate does not
//! say, the root does ([`VsHttp::merge`]); what both match must hold for both.

use karst_manifest::{kinds::Labels, traffic::*};
use std::collections::BTreeMap;

/// The delegate's rule as it is in force. Names of hosts and gateways are full ones already. None: none of its matches is within one
/// of the root's.
pub(crate) fn merge(root: &VsHttp, leaf: &VsHttp) -> Option<VsHttp> {
    Some(root.merge(leaf, matches(&root.matches, &leaf.matches)?))
}

/// Each of the delegate's within those of the root's that it does not contradict, in the delegate's order; one that is within none
/// means that the whole rule is not (Istio). No match is every request.
fn matches(root: &[VsMatch], leaf: &[VsMatch]) -> Option<Vec<VsMatch>> {
    if root.is_empty() || leaf.is_empty() {
        return Some(root.iter().chain(leaf).cloned().collect());
    }
    let mut out = vec![];
    for l in leaf {
        let before = out.len();
        out.extend(root.iter().filter_map(|r| both(r, l)));
        if out.len() == before {
            return None;
        }
    }
    Some(out)
}

fn both(root: &VsMatch, leaf: &VsMatch) -> Option<VsMatch> {
    // What the root says of either the delegate must say, too (Istio).
    let namespace = root.source_namespace.is_empty() || root.source_namespace == leaf.source_namespace;
    if root.ignore_uri_case != leaf.ignore_uri_case || !namespace {
        return None;
    }
    Some(VsMatch {
        name: leaf.name.clone(),
        uri: optional(&root.uri, &leaf.uri)?,
        scheme: optional(&root.scheme, &leaf.scheme)?,
        method: optional(&root.method, &leaf.method)?,
        authority: optional(&root.authority, &leaf.authority)?,
        headers: texts(&root.headers, &leaf.headers)?,
        port: port(root.port, leaf.port)?,
        source_labels: labels(&root.source_labels, &leaf.source_labels)?,
        gateways: gateways(&root.gateways, &leaf.gateways)?,
        query_params: texts(&root.query_params, &leaf.query_params)?,
        ignore_uri_case: leaf.ignore_uri_case,
        without_headers: texts(&root.without_headers, &leaf.without_headers)?,
        source_namespace: leaf.source_namespace.clone(),
        stat_prefix: leaf.stat_prefix.clone(),
    })
}

/// The one that is given, if they do not contradict each other.
fn port(root: u16, leaf: u16) -> Option<u16> {
    if leaf == 0 || leaf == root { Some(root) } else { (root == 0).then_some(leaf) }
}

fn optional(root: &Option<StringMatch>, leaf: &Option<StringMatch>) -> Option<Option<StringMatch>> {
    match (root, leaf) {
        (Some(r), Some(l)) => Some(Some(narrower(r, l)?)),
        (r, l) => Some(l.clone().or_else(|| r.clone())),
    }
}

/// The delegate's text, if it is within the root's. A pattern is within nothing, and nothing within it; the same of one that says
/// only that there is a value (Istio).
fn narrower(root: &StringMatch, leaf: &StringMatch) -> Option<StringMatch> {
    if root.regex.is_some() || leaf.regex.is_some() {
        return None;
    }
    let within = match (&root.exact, &root.prefix) {
        (Some(_), _) => leaf.prefix.is_none() && leaf.exact == root.exact,
        (None, Some(prefix)) => leaf.prefix.as_ref().or(leaf.exact.as_ref())?.starts_with(prefix),
        (None, None) => false,
    };
    within.then(|| leaf.clone())
}

fn texts(
    root: &BTreeMap<String, StringMatch>,
    leaf: &BTreeMap<String, StringMatch>,
) -> Option<BTreeMap<String, StringMatch>> {
    let mut all = root.clone();
    for (name, text) in leaf {
        let own = root.get(name).map_or_else(|| Some(text.clone()), |r| narrower(r, text))?;
        all.insert(name.clone(), own);
    }
    Some(all)
}

fn labels(root: &Labels, leaf: &Labels) -> Option<Labels> {
    let mut all = root.clone();
    for (name, value) in leaf {
        if all.insert(name.clone(), value.clone()).is_some_and(|old| old != *value) {
            return None;
        }
    }
    Some(all)
}

/// The delegate's are among the root's.
fn gateways(root: &[String], leaf: &[String]) -> Option<Vec<String>> {
    match (root, leaf) {
        ([], all) | (all, []) => Some(all.to_vec()),
        _ => leaf.iter().all(|g| root.contains(g)).then(|| leaf.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn uri(exact: &str, prefix: &str, regex: &str) -> VsMatch {
        let of = |s: &str| (!s.is_empty()).then(|| s.to_string());
        let text = StringMatch { exact: of(exact), prefix: of(prefix), regex: of(regex) };
        VsMatch { uri: Some(text), ..Default::default() }
    }

    #[test]
    fn a_delegates_match_is_within_the_roots() {
        let (exact, prefix, regex) = (|s| uri(s, "", ""), |s| uri("", s, ""), |s| uri("", "", s));
        for (root, leaf, fits) in [
            (prefix("/a"), prefix("/a/b"), true),
            (prefix("/a"), exact("/a/b"), true),
            (prefix("/a/b"), prefix("/a"), false),
            (exact("/a"), exact("/a"), true),
            (exact("/a"), exact("/b"), false),
            (exact("/a"), prefix("/"), false),
            (regex("/a.*"), exact("/ab"), false),
            (prefix("/a"), regex("/a.*"), false),
            (regex("/a.*"), regex("/a.*"), false),
            (uri("", "", ""), exact("/a"), false),
            (prefix("/a"), uri("", "", ""), false),
        ] {
            assert_eq!(both(&root, &leaf).map(|m| m.uri), fits.then(|| leaf.uri.clone()), "{root:?} {leaf:?}");
        }
        let port = |port| VsMatch { port, ..Default::default() };
        assert_eq!(both(&port(80), &port(0)).unwrap().port, 80);
        assert_eq!(both(&port(0), &port(80)).unwrap().port, 80);
        assert_eq!(both(&port(80), &port(81)), None);
        let header = |name: &str, value: &str| VsMatch {
            headers: [(name.to_string(), StringMatch { exact: Some(value.into()), ..Default::default() })].into(),
            ..Default::default()
        };
        assert_eq!(both(&header("a", "1"), &header("b", "2")).unwrap().headers.len(), 2);
        assert_eq!(both(&header("a", "1"), &header("a", "2")), None);
        let at =
            |list: &[&str]| VsMatch { gateways: list.iter().map(ToString::to_string).collect(), ..Default::default() };
        assert_eq!(both(&at(&["mesh", "a/g"]), &at(&["a/g"])).unwrap().gateways, ["a/g"]);
        assert_eq!(both(&at(&["mesh"]), &at(&["a/g"])), None);
        let from = |source_namespace: &str| VsMatch { source_namespace: source_namespace.into(), ..Default::default() };
        assert_eq!(both(&from(""), &from("b")), Some(from("b")));
        assert_eq!((both(&from("a"), &from("")), both(&from("a"), &from("b"))), (None, None));
        assert_eq!(both(&VsMatch { ignore_uri_case: true, ..prefix("/a") }, &VsMatch::default()), None);
        // No match is every request; one that does not fit takes the others with it, unless another of the root's fits.
        assert_eq!(matches(&[], &[prefix("/a")]).unwrap(), [prefix("/a")]);
        assert_eq!(matches(&[prefix("/a")], &[]).unwrap(), [prefix("/a")]);
        assert_eq!(matches(&[prefix("/a")], &[prefix("/b"), prefix("/a/b")]), None);
        let both_fit = matches(&[prefix("/a"), prefix("/b")], &[prefix("/b"), prefix("/a/b")]);
        assert_eq!(both_fit.unwrap(), [prefix("/b"), prefix("/a/b")]);
        assert_eq!(matches(&[prefix("/a")], &[prefix("/b")]), None);
    }
}
