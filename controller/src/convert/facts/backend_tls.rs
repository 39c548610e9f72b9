//! Gateway API's BackendTLSPolicies (GEP-1897): which are accepted, and what they say.

use crate::convert::{
    facts::secret::ca_bundle,
    objects::{FieldError, Objects, age},
};
use karst_api::route as ir;
use karst_manifest::{
    gatewayapi::{BackendTLSPolicy, CaRef},
    parse::Located,
};
use std::collections::BTreeSet;

/// A reason of Gateway API, and the words.
type ReasonMessage = (&'static str, String);

/// What comes of a policy.
pub(crate) struct Verdict<'a> {
    pub at: &'a Located,
    pub policy: &'a BackendTLSPolicy,
    pub accepted: ReasonMessage,
    pub resolved: ReasonMessage,
    pub(crate) tls: ir::ClientTls,
    /// Services of its namespace by name, and the port, if it is for one only.
    pub(crate) places: Vec<(&'a str, Option<u16>)>,
    pub(crate) bad: Vec<FieldError>,
}

/// Judges all of them, old before new: of two for the same the older one counts.
pub(crate) fn evaluate<'a>(objects: &Objects<'a>) -> Vec<Verdict<'a>> {
    let mut all = objects.backend_tls.clone();
    all.sort_by_key(|(_, p)| age(&p.metadata));
    let mut taken = BTreeSet::new();
    all.into_iter().map(|(at, p)| one(objects, at, p, &mut taken)).collect()
}

type Taken<'a> = BTreeSet<(&'a str, &'a str, Option<u16>)>;

fn one<'a>(objects: &Objects<'a>, at: &'a Located, p: &'a BackendTLSPolicy, taken: &mut Taken<'a>) -> Verdict<'a> {
    let ns = p.metadata.namespace.as_str();
    let mut v = Verdict {
        at,
        policy: p,
        accepted: ("Accepted", "Policy was accepted".into()),
        resolved: ("ResolvedRefs", "All references resolved".into()),
        tls: ir::ClientTls::default(),
        places: vec![],
        bad: vec![],
    };
    match validation(objects, p, &mut v) {
        Ok(tls) => v.tls = tls,
        // Where TLS is wanted there must be no connection without it.
        Err((field, text)) => {
            v.tls.broken = format!("BackendTLSPolicy {ns}/{}: {field}: {text}", p.metadata.name);
            v.bad.push((field, text));
        }
    }
    for (i, t) in p.spec.target_refs.iter().enumerate() {
        let field = format!("spec.targetRefs[{i}]");
        let mut lost = |reason, text: String| {
            v.accepted = (reason, format!("{field}: {text}"));
            v.bad.push((field.clone(), text));
        };
        if !matches!((t.group.as_str(), t.kind.as_str()), ("" | "core", "Service")) {
            lost("TargetNotFound", format!("unsupported target kind {:?}: use Service [KARST-0104]", t.kind));
            continue;
        }
        let Some(service) = objects.service(ns, &t.name) else {
            lost("TargetNotFound", format!("Service {ns}/{} not found [KARST-0307]", t.name));
            continue;
        };
        let port = match &t.section_name {
            None => None,
            Some(name) => match service.spec.ports.iter().find(|q| q.name == *name) {
                Some(q) => Some(q.port),
                None => {
                    lost("TargetNotFound", format!("Service {ns}/{} has no port named {name:?} [KARST-0308]", t.name));
                    continue;
                }
            },
        };
        if !taken.insert((ns, t.name.as_str(), port)) {
            lost(
                "Conflicted",
                format!("an older BackendTLSPolicy already applies to Service {ns}/{} [KARST-0320]", t.name),
            );
            continue;
        }
        v.places.push((&t.name, port));
    }
    v
}

fn validation(objects: &Objects<'_>, p: &BackendTLSPolicy, v: &mut Verdict<'_>) -> Result<ir::ClientTls, FieldError> {
    let (ns, s) = (p.metadata.namespace.as_str(), &p.spec.validation);
    let field = |f: &str| format!("spec.validation.{f}");
    let mut invalid = |f: &str, text: String| {
        v.accepted = ("Invalid", format!("{}: {text}", field(f)));
        Err((field(f), text))
    };
    if s.hostname.is_empty() {
        return invalid("hostname", "is empty: specify the host name in the server's certificate [KARST-0010]".into());
    }
    let mut out = ir::ClientTls { sni: s.hostname.clone(), ..Default::default() };
    for (i, n) in s.subject_alt_names.iter().enumerate() {
        match (n.kind.as_str(), n.hostname.as_str(), n.uri.as_str()) {
            ("Hostname", h, "") if !h.is_empty() => out.names.push(h.into()),
            ("URI", "", u) if u.contains(':') => out.names.push(u.into()),
            _ => {
                let text = "must set type Hostname and hostname, or type URI and uri [KARST-0015]".into();
                return invalid(&format!("subjectAltNames[{i}]"), text);
            }
        }
    }
    match (s.well_known_ca_certificates.as_deref(), &s.ca_certificate_refs[..]) {
        (Some("System"), []) => return Ok(out),
        (Some(""), _) | (None, []) => {
            return invalid(
                "caCertificateRefs",
                "is empty: specify a ConfigMap, or set wellKnownCACertificates to System [KARST-0010]".into(),
            );
        }
        (None, _) => {}
        (Some(other), []) => {
            return invalid("wellKnownCACertificates", format!("unsupported value {other:?}: use System [KARST-0016]"));
        }
        (Some(_), _) => {
            return invalid(
                "wellKnownCACertificates",
                "cannot be combined with caCertificateRefs: remove one of them [KARST-0014]".into(),
            );
        }
    }
    let mut bad = None;
    for (i, r) in s.ca_certificate_refs.iter().enumerate() {
        match roots(objects, ns, r) {
            Ok(pem) => out.roots.extend(pem),
            Err((reason, text)) => {
                v.resolved = (reason, format!("{}: {text}", field(&format!("caCertificateRefs[{i}]"))));
                bad = Some((field(&format!("caCertificateRefs[{i}]")), text));
            }
        }
    }
    // One that can be used is enough.
    if out.roots.is_empty()
        && let Some((field, text)) = bad
    {
        v.accepted = ("NoValidCACertificate", format!("{field}: {text}"));
        return Err((field, text));
    }
    v.bad.extend(bad);
    Ok(out)
}

/// The certificates of a reference, PEM.
fn roots(objects: &Objects<'_>, ns: &str, r: &CaRef) -> Result<Vec<u8>, ReasonMessage> {
    const BAD: &str = "InvalidCACertificateRef";
    let found = match (r.group.as_str(), r.kind.as_str()) {
        ("" | "core", "ConfigMap") => {
            let c = objects.config_maps.get(&(ns, r.name.as_str()));
            let c = c.ok_or_else(|| (BAD, format!("ConfigMap {ns}/{} not found [KARST-0503]", r.name)))?;
            c.data.get("ca.crt").map(|t| t.clone().into_bytes())
        }
        ("" | "core", "Secret") => {
            let s = objects.secrets.get(&(ns, r.name.as_str()));
            ca_bundle(s.ok_or_else(|| (BAD, format!("Secret {ns}/{} not found [KARST-0503]", r.name)))?)
        }
        _ => {
            return Err((
                "InvalidKind",
                format!("unsupported kind {:?}: use ConfigMap or Secret [KARST-0310]", r.kind),
            ));
        }
    };
    let pem =
        found.ok_or_else(|| (BAD, format!("{} {ns}/{}: data[\"ca.crt\"] is missing [KARST-0504]", r.kind, r.name)))?;
    let e = crate::pem::check_roots(&pem).err();
    e.map_or(Ok(pem), |e| Err((BAD, format!("{} {ns}/{}: data[\"ca.crt\"]: {e} [KARST-0505]", r.kind, r.name))))
}
