//! Istio's RequestAuthentication. Attached by `targetRefs` it is enforced by waypoints and gateways; by a selector, or for a
//! namespace, by gateways (as in Istio's ambient mode).

use super::{Bad, header_name, ir};
use karst_manifest::security::{JwtRule, RequestAuthentication};

/// The rules; of what is wrong every token is refused.
pub(super) fn compile(r: &RequestAuthentication) -> Vec<ir::Jwt> {
    let m = &r.metadata;
    let one = |(i, j): (usize, &JwtRule)| {
        let name = format!("RequestAuthentication {}/{} rule {i}", m.namespace, m.name);
        let at = format!("spec.jwtRules[{i}]");
        match rule(j, &at) {
            Ok(x) => ir::Jwt { name, ..x },
            Err((field, text)) => {
                ir::Jwt { name, issuer: j.issuer.clone(), broken: format!("{field}: {text}"), ..Default::default() }
            }
        }
    };
    r.spec.jwt_rules.iter().enumerate().map(one).collect()
}

/// What is wrong with it.
pub(in crate::convert) fn problems(r: &RequestAuthentication) -> Vec<Bad> {
    let rules = r.spec.jwt_rules.iter().enumerate();
    let mut out: Vec<Bad> = rules.filter_map(|(i, j)| rule(j, &format!("spec.jwtRules[{i}]")).err()).collect();
    if r.spec.selector.is_some() && r.spec.targets().next().is_some() {
        out.push(("spec.selector".into(), "cannot stand beside targetRefs: remove one of them".into()));
    }
    for (path, t) in r.spec.targets() {
        let known = matches!(
            (t.group.as_str(), t.kind.as_str()),
            ("" | "core", "Service")
                | ("networking.istio.io", "ServiceEntry")
                | ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
        );
        if !known {
            let text =
                format!("{:?} cannot be a target: name a Service, ServiceEntry, Gateway or GatewayClass", t.kind);
            out.push((format!("{path}.kind"), text));
        }
    }
    out
}

/// What has no effect.
pub(in crate::convert) fn warnings(r: &RequestAuthentication) -> Vec<String> {
    if r.spec.targets().next().is_some() {
        return vec![];
    }
    vec![
        "spec.targetRefs: is empty: tokens are verified by gateways only; for a waypoint name its Gateway, or Services"
            .into(),
    ]
}

fn rule(j: &JwtRule, at: &str) -> Result<ir::Jwt, Bad> {
    let bad = |field: &str, text: &str| Err((format!("{at}.{field}"), text.to_string()));
    if j.issuer.is_empty() {
        return bad("issuer", "is empty: give what tokens have in iss");
    }
    if j.jwks.is_empty() {
        return match j.jwks_uri.is_empty() {
            true => bad("jwks", "is empty: give the issuer's keys, as a JSON Web Key Set"),
            false => bad("jwksUri", "is not fetched in this version: give the keys themselves in jwks"),
        };
    }
    if let Err(e) = check_keys(&j.jwks) {
        return bad("jwks", &e);
    }
    if j.audiences.iter().any(String::is_empty) {
        return bad("audiences", "has an empty name: remove it");
    }
    let header = |name: &str, field: String| header_name(name, format!("{at}.{field}"));
    let mut headers = vec![];
    for (i, h) in j.from_headers.iter().enumerate() {
        headers
            .push(ir::JwtHeader { name: header(&h.name, format!("fromHeaders[{i}].name"))?, prefix: h.prefix.clone() });
    }
    let mut claim_headers = vec![];
    for (i, c) in j.output_claim_to_headers.iter().enumerate() {
        if c.claim.is_empty() {
            return bad(&format!("outputClaimToHeaders[{i}].claim"), "is empty: name a claim");
        }
        let name = header(&c.header, format!("outputClaimToHeaders[{i}].header"))?;
        claim_headers.push(ir::ClaimHeader { header: name, claim: c.claim.clone() });
    }
    let payload = &j.output_payload_to_header;
    // Istio's own default of these two is there in any case.
    let mut space_delimited = j.space_delimited_claims.clone();
    space_delimited.extend(["scope".to_string(), "permission".to_string()]);
    Ok(ir::Jwt {
        issuer: j.issuer.clone(),
        audiences: j.audiences.clone(),
        jwks: j.jwks.clone(),
        headers,
        params: j.from_params.clone(),
        cookies: j.from_cookies.clone(),
        payload_header: if payload.is_empty() {
            String::new()
        } else {
            header(payload, "outputPayloadToHeader".into())?
        },
        forward: j.forward_original_token,
        claim_headers,
        space_delimited,
        ..Default::default()
    })
}

/// At least one of the keys can verify.
fn check_keys(jwks: &str) -> Result<(), String> {
    let set: jsonwebtoken::jwk::JwkSet =
        serde_json::from_str(jwks).map_err(|e| format!("is no JSON Web Key Set: {e}"))?;
    let usable = |k: &jsonwebtoken::jwk::Jwk| jsonwebtoken::DecodingKey::from_jwk(k).is_ok();
    if set.keys.iter().any(usable) { Ok(()) } else { Err("has no key that can be used: RSA, EC, OKP or oct".into()) }
}
