//! Istio's RequestAuthentication: whose tokens are taken.

use crate::meta::{Meta, Selector, Status, TargetRef};
use serde::Deserialize;
use std::fmt;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RequestAuthentication {
    pub metadata: Meta,
    pub spec: RequestAuthenticationSpec,
    pub status: Status,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestAuthenticationSpec {
    /// Pods of gateways; by default, all gateways of the namespace.
    #[cfg_attr(test, schemars(with = "Option<SelectorSchema>"))]
    pub selector: Option<Selector>,
    #[cfg_attr(test, schemars(with = "Option<TargetSchema>"))]
    pub target_ref: Option<TargetRef>,
    /// Services, ServiceEntries, Gateways or GatewayClasses; enforced by their waypoints, or by the Gateway.
    #[cfg_attr(test, schemars(with = "Vec<TargetSchema>"))]
    pub target_refs: Vec<TargetRef>,
    pub jwt_rules: Vec<JwtRule>,
    /// It stands for one that cannot be read ([`crate::closed::closed`]): every token is refused where it looks for some.
    #[serde(skip)]
    pub is_unread: bool,
    /// Whom it is for cannot be read, either: everybody in its namespace.
    #[serde(skip)]
    pub is_for_all: bool,
}
impl RequestAuthenticationSpec {
    /// What it is attached to, and the path of the field that says so.
    pub fn targets(&self) -> impl Iterator<Item = (String, &TargetRef)> {
        TargetRef::all(self.target_ref.as_ref(), &self.target_refs)
    }
}
/// Where the keys of an issuer are fetched from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeySource {
    /// They are at this URL.
    Jwks(String),
    /// The issuer of this name says where they are (OpenID Connect Discovery 1.0, section 4).
    Issuer(String),
}
impl KeySource {
    /// The URL that is asked first.
    pub fn url(&self) -> String {
        match self {
            KeySource::Jwks(url) => url.clone(),
            KeySource::Issuer(name) => {
                format!("{}/.well-known/openid-configuration", name.strip_suffix('/').unwrap_or(name))
            }
        }
    }
}
impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())
    }
}
impl JwtRule {
    /// Where its keys are fetched from. None: they are in the rule.
    pub fn key_source(&self) -> Option<KeySource> {
        match (self.jwks.is_empty(), self.jwks_uri.is_empty()) {
            (false, _) => None,
            (true, false) => Some(KeySource::Jwks(self.jwks_uri.clone())),
            (true, true) => Some(KeySource::Issuer(self.issuer.clone())),
        }
    }
}
/// What schemas say.
#[cfg(test)]
#[derive(schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SelectorSchema {
    pub match_labels: std::collections::BTreeMap<String, String>,
}
#[cfg(test)]
#[derive(schemars::JsonSchema)]
pub struct TargetSchema {
    pub group: Option<String>,
    pub kind: String,
    pub name: String,
    pub namespace: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtRule {
    pub issuer: String,
    /// Audiences, one of which the token must have; by default, any is accepted.
    pub audiences: Vec<String>,
    /// The URL of the keys; without it and jwks, the issuer is asked for it, at /.well-known/openid-configuration.
    #[serde(alias = "jwks_uri")]
    pub jwks_uri: String,
    /// The keys, as a JSON Web Key Set (RFC 7517).
    pub jwks: String,
    /// Headers that carry the token; by default `Authorization: Bearer` and the parameter access_token.
    pub from_headers: Vec<JwtHeader>,
    pub from_params: Vec<String>,
    pub from_cookies: Vec<String>,
    pub output_payload_to_header: String,
    pub forward_original_token: bool,
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    pub timeout: Option<String>,
    pub space_delimited_claims: Vec<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct JwtHeader {
    pub name: String,
    /// Prefix of the token, including its space, for example "Bearer ".
    pub prefix: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ClaimToHeader {
    pub header: String,
    pub claim: String,
}
