//! Istio's RequestAuthentication. Attached by `targetRefs` it is enforced by waypoints and gateways; by a selector, or for a
//! namespace, by gateways (as in Istio's ambient mode).

use crate::{
    convert::{
        compilation::routes::scalar::header_name,
        facts::attached::{self, Attached},
        objects::{FieldError, Objects},
    },
    key_set::public_keys,
};
use karst_api::route as ir;
use karst_manifest::security::{ClaimToHeader, JwtHeader, JwtRule, KeySource, RequestAuthentication};

/// The rules; of what is wrong every token is refused.
pub(crate) fn compile(objects: &Objects<'_>, authentication: &RequestAuthentication) -> Vec<ir::Jwt> {
    let m = &authentication.metadata;
    let one = |(i, jwt_rule): (usize, &JwtRule)| {
        let name = format!("RequestAuthentication {}/{} rule {i}", m.namespace, m.name);
        let at = format!("spec.jwtRules[{i}]");
        let read = match authentication.spec.is_unread {
            true => Err(("spec".into(), "cannot be read: see the controller's log for the reason [KARST-0001]".into())),
            false => rule(jwt_rule, &at),
        };
        match read {
            Ok(read) => match jwt_rule.key_source().map(|source| (objects.keys.get(&source), source)) {
                None => ir::Jwt { name, ..read },
                Some((Some(Ok(jwks)), _)) => ir::Jwt { name, jwks: jwks.clone(), ..read },
                Some((Some(Err(e)), source)) => ir::Jwt { name, broken: format!("{source}: {e}"), ..read },
                Some((None, source)) => ir::Jwt { name, broken: format!("{source}: not fetched yet"), ..read },
            },
            Err((field, text)) => {
                let broken = format!("{field}: {text}");
                ir::Jwt { name, issuer: jwt_rule.issuer.clone(), broken, ..written(jwt_rule) }
            }
        }
    };
    authentication.spec.jwt_rules.iter().enumerate().map(one).collect()
}

/// Where a rule's tokens are, and the headers that only proxies write, as far as they can be read: no token there, and no client's own
/// value, goes on, whatever else is wrong.
fn written(jwt_rule: &JwtRule) -> ir::Jwt {
    let header = |name: &str| header_name(name, "").unwrap_or_default();
    let place = |h: &JwtHeader| ir::JwtHeader { name: header(&h.name), prefix: h.prefix.clone() };
    let headers = jwt_rule.from_headers.iter().map(place).filter(|h| !h.name.is_empty()).collect();
    let (params, cookies) = (jwt_rule.from_params.clone(), jwt_rule.from_cookies.clone());
    let own = |c: &ClaimToHeader| ir::ClaimHeader { header: header(&c.header), claim: c.claim.clone() };
    let claim_headers = jwt_rule.output_claim_to_headers.iter().map(own).filter(|c| !c.header.is_empty()).collect();
    let payload_header = header(&jwt_rule.output_payload_to_header);
    ir::Jwt { headers, params, cookies, payload_header, claim_headers, ..Default::default() }
}

/// What is wrong with it.
pub(crate) fn problems(objects: &Objects<'_>, authentication: &RequestAuthentication) -> Vec<FieldError> {
    // The watch has told.
    if authentication.spec.is_unread {
        return vec![];
    }
    let rules = authentication.spec.jwt_rules.iter().enumerate();
    let mut out: Vec<FieldError> = rules.filter_map(|(i, j)| rule(j, &format!("spec.jwtRules[{i}]")).err()).collect();
    out.extend(attached::ineffective_reason(objects, authentication));
    out
}

/// Those that are for somebody.
pub(crate) fn placed<'a>(objects: &Objects<'a>) -> impl Iterator<Item = &'a RequestAuthentication> {
    objects.request.iter().map(|(_, r)| *r).filter(|r| attached::ineffective_reason(objects, *r).is_none())
}

/// What has no effect.
pub(crate) fn warnings(authentication: &RequestAuthentication) -> Vec<String> {
    if authentication.is_attached() {
        return vec![];
    }
    vec![
        "spec.targetRefs: is empty: only gateways verify tokens; for a waypoint, specify its Gateway or Services [KARST-0120]"
            .into(),
    ]
}

fn rule(rule: &JwtRule, at: &str) -> Result<ir::Jwt, FieldError> {
    let bad = |field: &str, text: &str| Err((format!("{at}.{field}"), text.to_string()));
    if rule.issuer.is_empty() {
        return bad("issuer", "is empty: specify the value of the tokens' iss claim [KARST-0010]");
    }
    let usable = |source: &KeySource| crate::client::check(&source.url()).map(|_| String::new());
    let keys = match rule.key_source() {
        Some(source @ KeySource::Jwks(_)) => usable(&source).map_err(|e| ("jwksUri", e.to_string())),
        Some(source @ KeySource::Issuer(_)) => usable(&source).map_err(|_| {
            let text = format!(
                "is empty, and the issuer {:?} is not a URL that could be asked for its keys: specify the URL of the keys, or the keys in jwks [KARST-0010]",
                rule.issuer
            );
            ("jwksUri", text)
        }),
        // The keys themselves count, where both are given (Istio).
        None => public_keys(&rule.jwks).map_err(|e| ("jwks", e.to_string())),
    };
    let jwks = match keys {
        Ok(k) => k,
        Err((field, e)) => return bad(field, &e),
    };
    if rule.audiences.iter().any(String::is_empty) {
        return bad("audiences", "contains an empty name: remove it [KARST-0012]");
    }
    let header = |name: &str, field: String| header_name(name, format!("{at}.{field}"));
    for (i, h) in rule.from_headers.iter().enumerate() {
        header(&h.name, format!("fromHeaders[{i}].name"))?;
    }
    for (index, claim) in rule.output_claim_to_headers.iter().enumerate() {
        if claim.claim.is_empty() {
            return bad(&format!("outputClaimToHeaders[{index}].claim"), "is empty: specify a claim [KARST-0010]");
        }
        header(&claim.header, format!("outputClaimToHeaders[{index}].header"))?;
    }
    if !rule.output_payload_to_header.is_empty() {
        header(&rule.output_payload_to_header, "outputPayloadToHeader".into())?;
    }
    // Istio's own default of these two is there in any case.
    let mut space_delimited = rule.space_delimited_claims.clone();
    space_delimited.extend(["scope".to_string(), "permission".to_string()]);
    Ok(ir::Jwt {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        jwks,
        forward: rule.forward_original_token,
        space_delimited,
        ..written(rule)
    })
}
