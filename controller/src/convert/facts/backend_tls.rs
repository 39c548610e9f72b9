//! Gateway API's BackendTLSPolicies (GEP-1897): which are accepted, and what they say.

use crate::convert::{
    facts::{
        ca_certificates::{Authorities, CaError, authorities},
        service,
    },
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

fn one<'a>(objects: &Objects<'a>, at: &'a Located, policy: &'a BackendTLSPolicy, taken: &mut Taken<'a>) -> Verdict<'a> {
    let ns = policy.metadata.namespace.as_str();
    let mut verdict = Verdict {
        at,
        policy,
        accepted: ("Accepted", "Policy was accepted".into()),
        resolved: ("ResolvedRefs", "All references resolved".into()),
        tls: ir::ClientTls::default(),
        places: vec![],
        bad: vec![],
    };
    match validation(objects, policy, &mut verdict) {
        Ok(tls) => verdict.tls = tls,
        // Where TLS is wanted there must be no connection without it.
        Err((field, text)) => {
            verdict.tls.broken = format!("BackendTLSPolicy {ns}/{}: {field}: {text}", policy.metadata.name);
            verdict.bad.push((field, text));
        }
    }
    for (i, target_ref) in policy.spec.target_refs.iter().enumerate() {
        let field = format!("spec.targetRefs[{i}]");
        let mut lost = |reason, text: String| {
            verdict.accepted = (reason, format!("{field}: {text}"));
            verdict.bad.push((field.clone(), text));
        };
        if !matches!((target_ref.group.as_str(), target_ref.kind.as_str()), ("" | "core", "Service")) {
            lost("TargetNotFound", format!("unsupported target kind {:?}: use Service [KARST-0104]", target_ref.kind));
            continue;
        }
        let Some(service) = objects.service(ns, &target_ref.name) else {
            lost("TargetNotFound", format!("Service {ns}/{} not found [KARST-0307]", target_ref.name));
            continue;
        };
        if service::is_alias(service) {
            lost("TargetNotFound", service::alias_text(service, "target", ns));
            continue;
        }
        let port = match &target_ref.section_name {
            None => None,
            Some(name) => match service.spec.ports.iter().find(|q| q.name == *name) {
                Some(q) => Some(q.port),
                None => {
                    lost(
                        "TargetNotFound",
                        format!("Service {ns}/{} has no port named {name:?} [KARST-0308]", target_ref.name),
                    );
                    continue;
                }
            },
        };
        if !taken.insert((ns, target_ref.name.as_str(), port)) {
            lost(
                "Conflicted",
                format!("an older BackendTLSPolicy already applies to Service {ns}/{} [KARST-0320]", target_ref.name),
            );
            continue;
        }
        verdict.places.push((&target_ref.name, port));
    }
    verdict
}

fn validation(
    objects: &Objects<'_>,
    policy: &BackendTLSPolicy,
    verdict: &mut Verdict<'_>,
) -> Result<ir::ClientTls, FieldError> {
    if policy.spec.is_unread {
        let text = "cannot be read: see the controller's log for the reason [KARST-0001]";
        verdict.accepted = ("Invalid", format!("spec: {text}"));
        return Err(("spec".into(), text.into()));
    }
    let (ns, validation) = (policy.metadata.namespace.as_str(), &policy.spec.validation);
    let field = |f: &str| format!("spec.validation.{f}");
    let mut invalid = |f: &str, text: String| {
        verdict.accepted = ("Invalid", format!("{}: {text}", field(f)));
        Err((field(f), text))
    };
    if validation.hostname.is_empty() {
        return invalid("hostname", "is empty: specify the host name in the server's certificate [KARST-0010]".into());
    }
    let mut out = ir::ClientTls { sni: validation.hostname.clone(), by_gateway: true, ..Default::default() };
    for (index, n) in validation.subject_alt_names.iter().enumerate() {
        match (n.kind.as_str(), n.hostname.as_str(), n.uri.as_str()) {
            ("Hostname", h, "") if !h.is_empty() => out.names.push(h.into()),
            ("URI", "", u) if u.contains(':') => out.names.push(u.into()),
            _ => {
                let text = "must set type Hostname and hostname, or type URI and uri [KARST-0015]".into();
                return invalid(&format!("subjectAltNames[{index}]"), text);
            }
        }
    }
    match (validation.well_known_ca_certificates.as_deref(), &validation.ca_certificate_refs[..]) {
        (Some("System"), []) => return Ok(out),
        (Some(""), _) | (None, []) => {
            return invalid(
                "caCertificateRefs",
                "is empty: specify a ConfigMap or ClusterTrustBundle, or set wellKnownCACertificates to System [KARST-0010]"
                    .into(),
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
    for (index, r) in validation.ca_certificate_refs.iter().enumerate() {
        match referenced(objects, ns, r) {
            Ok(found) => {
                out.roots.extend(found.roots);
                out.lists.extend(found.lists);
            }
            Err((reason, text)) => {
                verdict.resolved = (reason, format!("{}: {text}", field(&format!("caCertificateRefs[{index}]"))));
                bad = Some((field(&format!("caCertificateRefs[{index}]")), text));
            }
        }
    }
    // One that can be used is enough.
    if out.roots.is_empty()
        && let Some((field, text)) = bad
    {
        verdict.accepted = ("NoValidCACertificate", format!("{field}: {text}"));
        return Err((field, text));
    }
    verdict.bad.extend(bad);
    Ok(out)
}

/// The certificates and lists of a reference.
fn referenced(objects: &Objects<'_>, ns: &str, reference: &CaRef) -> Result<Authorities, ReasonMessage> {
    let target = (reference.group.as_str(), reference.kind.as_str(), reference.name.as_str());
    authorities(objects, ns, target).map_err(|e| match e {
        CaError::Kind(text) => ("InvalidKind", text),
        CaError::Reference(text) => ("InvalidCACertificateRef", text),
    })
}
