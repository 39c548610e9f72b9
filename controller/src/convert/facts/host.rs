//! Host names: full ones, wildcards, and what both of two stand for.

/// The full host name that an object of this namespace means.
pub(crate) fn full_host(host: &str, namespace: &str, domain: &str) -> String {
    if host.contains('.') || host.starts_with('*') {
        return host.to_ascii_lowercase();
    }
    format!("{host}.{namespace}.svc.{domain}")
}

/// Is it a service of this namespace, by its key?
pub(crate) fn is_of(key: &str, namespace: &str) -> bool {
    key.strip_prefix(namespace).is_some_and(|k| k.starts_with('/'))
}

/// A gateway's name with its namespace, as Istio reads it: `name`, `namespace/name`, `./name`, `name.namespace` and what may follow
/// that (`.svc.cluster.local`).
pub(crate) fn full_name(name: &str, ns: &str) -> String {
    if let Some((of, name)) = name.split_once('/') {
        return format!("{}/{name}", if of == "." { ns } else { of });
    }
    match name.split_once('.') {
        Some((name, rest)) => format!("{}/{name}", rest.split('.').next().unwrap_or(rest)),
        None => format!("{ns}/{name}"),
    }
}

/// What both names stand for: the narrower one.
pub(crate) fn common(one: &str, other: &str) -> Option<String> {
    let (one, other) = (one.to_ascii_lowercase(), other.to_ascii_lowercase());
    let covers = |wide: &str, x: &str| {
        wide == "*" || wide == x || wide.strip_prefix('*').is_some_and(|s| x.len() > s.len() && x.ends_with(s))
    };
    match (covers(&one, &other), covers(&other, &one)) {
        (true, _) => Some(other),
        (_, true) => Some(one),
        _ => None,
    }
}

/// How closely a host that fits does so: itself more than any wildcard, a long wildcard more than a short one.
pub(crate) fn closeness(host: &str) -> usize {
    host.strip_prefix('*').map_or(usize::MAX, str::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_named_as_istio_reads_it() {
        for (name, full) in [
            ("gw", "own/gw"),
            ("./gw", "own/gw"),
            ("ns/gw", "ns/gw"),
            ("gw.ns", "ns/gw"),
            ("gw.ns.svc", "ns/gw"),
            ("gw.ns.svc.cluster.local", "ns/gw"),
        ] {
            assert_eq!(full_name(name, "own"), full, "{name}");
        }
    }
}
