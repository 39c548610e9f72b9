//! Doors for the fuzz targets (tests/fuzz): what comes from outside, in the functions that the product calls. Each states what
//! must hold whatever comes; none may panic.

use crate::{
    access::{self, Access, Asked, Request},
    http::plain_path,
    table::{Ask, AskTcp, Found, Routes},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use karst_api::route as ir;
use karst_core::Identity;
use prost::Message;
use std::{collections::BTreeMap, sync::LazyLock};

static PEER: LazyLock<Option<Identity>> = LazyLock::new(|| "spiffe://cluster.local/ns/app/sa/web".parse().ok());

/// A path, in both ways in which it is made plain.
pub fn path(data: &[u8]) {
    let Ok(uri) = http::Uri::try_from(data) else { return };
    let p = uri.path();
    if !p.starts_with('/') {
        return;
    }
    let routed = plain_path(p);
    assert!(routed.starts_with('/'), "{p:?} {routed:?}");
    assert!(!routed.split('/').any(|s| s == "." || s == ".."), "{p:?} {routed:?}");
    assert_eq!(plain_path(&routed), routed, "once is enough");
    let judged = access::plain(&routed);
    assert!(judged.starts_with('/') && !judged.contains("//") && !judged.contains('\\'), "{p:?} {judged:?}");
    assert!(!judged.split('/').any(|s| s == "." || s == ".."), "{p:?} {judged:?}");
    if let Some(b) = access::bare(&judged) {
        assert!(b.starts_with('/') && !b.split('/').any(|s| s == ".."), "{p:?} {b:?}");
    }
}

/// What the control plane may send (two messages, each after its length), and a request: `METHOD target` and header lines.
pub fn route(data: &[u8]) {
    let Some((routes, rest)) = part(data) else { return };
    let Some((policies, rest)) = part(rest) else { return };
    let mut lines = rest.split(|b| *b == b'\n');
    let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let (method, target) = first.split_once(' ').unwrap_or(("GET", &first));
    let Ok(uri) = http::Uri::try_from(target) else { return };
    let mut headers = HeaderMap::new();
    for l in lines.take(32) {
        let Some(at) = l.iter().position(|b| *b == b':') else { continue };
        if let (Ok(n), Ok(v)) = (HeaderName::from_bytes(&l[..at]), HeaderValue::from_bytes(l[at + 1..].trim_ascii())) {
            headers.append(n, v);
        }
    }
    let labels = BTreeMap::new();
    if let Ok(r) = ir::Routes::decode(routes)
        && let Ok(r) = Routes::new(&r, None)
    {
        let ask = Ask::new(uri.path(), uri.query(), method, "http", "shop", &headers, "app", &labels);
        let table = r.table("app");
        if let Found::Rule(rule) = table.find(80, &ask) {
            assert!(rule.holds(&ask, true), "what is found holds");
            let _ = rule.pick(rule.total_weight.saturating_sub(1));
            if let Some(x) = &rule.rewrite {
                let _ = x.path(uri.path(), rule.path.as_ref());
            }
        }
        let _ = table.find_tcp(&AskTcp { port: 80, namespace: "app", labels: &labels, sni: Some(uri.path()) });
    }
    let (Ok(a), Some(peer)) = (ir::Access::decode(policies), &*PEER) else { return };
    let Ok(a) = Access::new(&a) else { return };
    let path = access::plain(uri.path());
    let bare = access::bare(&path);
    let ip = std::net::Ipv4Addr::LOCALHOST.into();
    for http in [true, false] {
        let request = Request { method, authority: "shop", path: &path, bare: bare.as_deref(), headers: &headers };
        let asked = Asked {
            peer: Some(peer),
            source: ip,
            destination: ip,
            port: 80,
            sni: None,
            request: http.then_some(request),
        };
        let _ = (a.judge(&asked), a.told(&asked).count());
    }
}

fn part(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (n, rest) = data.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*n)))
}
