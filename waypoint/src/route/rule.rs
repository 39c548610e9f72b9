//! One rule for requests: its conditions, and what is done where they hold.

mod why;

use crate::{
    authz::{external::provider::Provider, jwt::Token},
    http::entry,
    route::{
        change::{HeaderChange, Rewrite, exactly, header_name},
        compression::Compression,
        cors::Cors,
        destination::{Destination, Mirror},
        error::CompileError,
        input::RouteInput,
        limit::Limit,
        matcher::StringMatcher,
        sequence::{FaultTurns, Sequence},
    },
    session::rules::SessionRules,
};
use http::HeaderName;
use karst_api::route as ir;
use karst_core::{authority::Authority, claims};
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

/// One rule, ready to be executed. A gateway may have thousands: what few of them have is kept apart from what all have.
#[derive(Debug, Default)]
pub struct Rule {
    pub origin: String,
    pub path: Option<StringMatcher>,
    pub ignore_case: bool,
    pub method: Option<StringMatcher>,
    /// Name, value, and whether it must not match.
    pub headers: Box<[(HeaderName, StringMatcher, bool)]>,
    pub(super) rare: Option<Box<RareConditions>>,

    pub redirect: Option<Box<ir::Redirect>>,
    pub response: Option<Box<ir::DirectResponse>>,
    pub destinations: Box<[Destination]>,
    pub total_weight: u64,
    pub(super) weights: Sequence,
    pub rewrite: Option<Box<Rewrite>>,
    pub request: Option<Box<HeaderChange>>,
    pub answer: Option<Box<HeaderChange>>,
    pub mirrors: Box<[Mirror]>,
    pub fault: Option<Box<Fault>>,
    pub cors: Option<Box<Cors>>,
    pub timeout_ms: u64,
    pub retry: Option<Arc<ir::Retry>>,
    pub limits: Box<[Arc<Limit>]>,
    /// Largest body of a request; 0: it says nothing of it.
    pub max_body_bytes: u64,
    pub compression: Option<Box<Compression>>,
    /// Who is asked whether a request may go on.
    pub authorization: Option<Arc<Provider>>,
    /// How its clients come back to the same endpoints.
    pub session: Option<Arc<SessionRules>>,
}

/// Conditions that few rules have.
#[derive(Debug, Default)]
pub(super) struct RareConditions {
    scheme: Option<StringMatcher>,
    authority: Option<StringMatcher>,
    /// Of a verified token.
    claims: Box<[ClaimMatch]>,
    pub(super) query: Vec<(String, StringMatcher, bool)>,
    labels: BTreeMap<String, String>,
    namespace: String,
}

impl RareConditions {
    /// None: there are none. `claims`: those of the conditions on headers that are conditions on claims.
    fn new(conditions: &ir::Match, claims: Vec<ClaimMatch>) -> Result<Option<Box<Self>>, CompileError> {
        let ir::Match { scheme, authority, query, source_labels, source_namespace, .. } = conditions;
        let has_names = !query.is_empty() || !source_labels.is_empty() || !source_namespace.is_empty();
        if scheme.is_none() && authority.is_none() && claims.is_empty() && !has_names {
            return Ok(None);
        }
        let parameter = |p: &ir::Named| Ok::<_, CompileError>((p.name.clone(), value(&p.value)?, p.invert));
        Ok(Some(Box::new(Self {
            scheme: scheme.as_ref().map(|t| StringMatcher::new(t, false)).transpose()?,
            authority: authority.as_ref().map(self::authority).transpose()?,
            claims: claims.into(),
            query: exactly(query, parameter)?,
            labels: source_labels.clone(),
            namespace: source_namespace.clone(),
        })))
    }

    fn match_all(&self, input: &RouteInput<'_>) -> bool {
        self.scheme.as_ref().is_none_or(|t| t.matches(input.scheme))
            && self.authority.as_ref().is_none_or(|t| t.matches(input.authority))
            && self.claims.iter().all(|claim| claim.holds(input.token))
            && self
                .query
                .iter()
                .all(|(n, t, invert)| input.parameters().iter().any(|(k, v)| k == n && t.matches(v)) != *invert)
            && (self.namespace.is_empty() || self.namespace == input.namespace)
            && self.labels.iter().all(|(k, v)| input.labels.get(k) == Some(v))
    }
}

impl Rule {
    pub(super) fn new(
        rule: &ir::HttpRule,
        limit: &mut impl FnMut(&ir::RateLimit) -> Arc<Limit>,
    ) -> Result<Self, CompileError> {
        let empty = ir::Match::default();
        let conditions = rule.r#match.as_ref().unwrap_or(&empty);
        let text = |t: &Option<ir::Text>, case| t.as_ref().map(|t| StringMatcher::new(t, case)).transpose();
        let (mut headers, mut claims) = (Vec::with_capacity(conditions.headers.len()), vec![]);
        for header in &conditions.headers {
            if let Some(path) = claims::path(&header.name) {
                let path = path.map_err(|_| CompileError::HeaderName(header.name.clone()))?;
                claims.push(ClaimMatch { path, value: value(&header.value)?, invert: header.invert });
                continue;
            }
            let name = header_name(&header.name)?;
            let value = match &header.value {
                Some(t) if name == http::header::HOST => authority(t)?,
                v => value(v)?,
            };
            headers.push((name, value, header.invert));
        }
        let destinations = exactly(&rule.destinations, Destination::new)?.into_boxed_slice();
        let mut mirrors = Vec::with_capacity(rule.mirrors.len());
        for mirror in &rule.mirrors {
            let to = mirror.to.as_ref().ok_or(CompileError::Mirror)?;
            mirrors.push(Mirror {
                to: Destination::new(to)?,
                per_million: mirror.per_million,
                turns: Sequence::default(),
            });
        }
        Ok(Self {
            origin: rule.origin.clone(),
            path: text(&conditions.path, conditions.ignore_path_case)?,
            ignore_case: conditions.ignore_path_case,
            method: text(&conditions.method, false)?,
            headers: headers.into(),
            rare: RareConditions::new(conditions, claims)?,
            redirect: rule.redirect.clone().map(Box::new),
            response: rule.response.clone().map(Box::new),
            total_weight: destinations.iter().map(|d| u64::from(d.weight)).sum(),
            destinations,
            weights: Sequence::default(),
            rewrite: rule.rewrite.as_ref().map(Rewrite::new).transpose()?.map(Box::new),
            request: HeaderChange::new(rule.request.as_ref())?,
            answer: HeaderChange::new(rule.answer.as_ref())?,
            mirrors: mirrors.into(),
            fault: Fault::new(rule.fault),
            cors: rule.cors.as_ref().map(Cors::new).transpose()?.map(Box::new),
            timeout_ms: rule.timeout_ms,
            retry: rule.retry.as_ref().map(retry),
            limits: rule.limits.iter().map(limit).collect(),
            max_body_bytes: rule.max_body_bytes,
            compression: compression(rule.compression.as_ref()),
            authorization: rule.authorization.as_ref().map(|p| Provider::new(p).map(Arc::new)).transpose()?,
            session: rule.session.as_ref().map(|s| SessionRules::new(s).map(Arc::new)).transpose()?,
        })
    }

    /// Does it hold? The path is left out where it has been looked up.
    pub fn matches(&self, input: &RouteInput<'_>, path_too: bool) -> bool {
        let is = |t: &Option<StringMatcher>, s: &str| t.as_ref().is_none_or(|t| t.matches(s));
        let path = || match &self.path {
            Some(t) if self.ignore_case => t.matches(&input.path.to_lowercase()),
            t => is(t, input.path),
        };
        is(&self.method, input.method)
            && (!path_too || path())
            && self.headers.iter().all(|(n, t, invert)| header(input, n, t, *invert) != *invert)
            && self.rare.as_ref().is_none_or(|rare| rare.match_all(input))
    }

    /// Its conditions on claims of a verified token.
    pub fn claims(&self) -> &[ClaimMatch] {
        self.rare.as_ref().map_or(&[][..], |rare| &rare.claims[..])
    }

    /// The destination whose turn it is, by the weights.
    pub fn choose(&self) -> Option<&Destination> {
        // Of one nothing is open.
        let is_open = self.destinations.len() > 1;
        self.choose_weighted(if is_open { self.weights.below(self.total_weight) } else { 0 })
    }

    /// The destination for a number below [`Rule::total_weight`].
    pub fn choose_weighted(&self, mut at: u64) -> Option<&Destination> {
        self.destinations.iter().find(|d| {
            let weight = u64::from(d.weight);
            let hit = at < weight;
            at = at.saturating_sub(weight);
            hit
        })
    }
}

/// A fault that is injected, and whose turn it is.
#[derive(Debug)]
pub struct Fault {
    pub ir: ir::Fault,
    pub turns: FaultTurns,
}

impl Fault {
    pub(super) fn new(fault: Option<ir::Fault>) -> Option<Box<Self>> {
        fault.map(|ir| Box::new(Self { ir, turns: FaultTurns::default() }))
    }
}

/// Most rules say the same of retries: that is there once.
fn retry(rule: &ir::Retry) -> Arc<ir::Retry> {
    static STANDARD: LazyLock<Arc<ir::Retry>> = LazyLock::new(|| Arc::new(ir::Retry::istio()));
    if *rule == **STANDARD { STANDARD.clone() } else { Arc::new(rule.clone()) }
}

pub(super) fn compression(rule: Option<&ir::Compression>) -> Option<Box<Compression>> {
    rule.map(|rule| Box::new(Compression::new(rule)))
}

/// A condition on a claim of the request's token.
#[derive(Debug)]
pub struct ClaimMatch {
    /// Names of claims, each within the one before.
    pub path: Vec<String>,
    pub value: StringMatcher,
    /// It must not match.
    pub invert: bool,
}

impl ClaimMatch {
    /// Does it hold? A text matches, or one text of a list; without a token, or without the claim, nothing does.
    pub fn holds(&self, token: Option<&Token>) -> bool {
        token.is_some_and(|token| token.has_claim(&self.path, |text| self.value.matches(text))) != self.invert
    }
}

/// Several lines of a header count as one ([`entry::joined`]). The host is the authority, by whichever version of HTTP it has
/// come. For a condition that is inverted, one that is not there is empty, unless it is asked whether it is there (Istio:
/// TreatMissingHeaderAsEmpty).
fn header(input: &RouteInput<'_>, name: &HeaderName, matcher: &StringMatcher, invert: bool) -> bool {
    if *name == http::header::HOST {
        return matcher.matches(input.authority);
    }
    match entry::joined(input.headers, name) {
        Some(v) => matcher.matches_bytes(&v),
        None => invert && !matches!(matcher, StringMatcher::Present) && matcher.matches(""),
    }
}

fn value(v: &Option<ir::Text>) -> Result<StringMatcher, CompileError> {
    match v {
        Some(t) => StringMatcher::new(t, false),
        None => Err(CompileError::MatchValue),
    }
}

/// A condition on the authority, read as those of requests are: names in lower case and without a last dot.
fn authority(t: &ir::Text) -> Result<StringMatcher, CompileError> {
    Ok(match StringMatcher::new(t, true)? {
        StringMatcher::Exact(s) => {
            let canonical = Authority::parse(s.as_bytes()).ok().map(|a| a.to_string().into_boxed_str());
            StringMatcher::Exact(canonical.unwrap_or(s))
        }
        other => other,
    })
}
