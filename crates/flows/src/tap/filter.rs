//! What a looker wants to see, and how it is written: as the query of a page, and as words of a command line.

use super::event::{Event, Peer, Verdict};
use karst_core::limits;
use std::{fmt, str::FromStr, time::Duration};

/// Why a filter cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// There is no such key.
    #[error(
        "{0}: no such filter; there are namespace, about, from, to, method, path, status, verdict, identity, all, query, limit, seconds"
    )]
    Key(String),
    /// A value that is none.
    #[error("{key}={value:?}: {wanted}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was written.
        value: String,
        /// What may be.
        wanted: String,
    },
}

/// A text that is no name of one end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhoError {
    /// It has no name, or an empty namespace.
    #[error("a name, as in web, web.shop, deploy/web or svc/web.shop")]
    Name,
    /// There is no such kind.
    #[error("{0} is not a kind; there are pod, deploy (or workload) and svc")]
    Kind(String),
}

/// A text that is no status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a status such as 503, or a class such as 5xx")]
pub struct StatusError;

/// What kind of thing a name is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Whatever has this name.
    #[default]
    Any,
    /// A pod.
    Pod,
    /// A Deployment or the like.
    Workload,
    /// A service that is called.
    Service,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Pod => "pod",
            Self::Workload => "workload",
            Self::Service => "service",
        }
    }
}

/// One end: `[KIND/]NAME[.NAMESPACE]`, where the name may be `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// What it is.
    pub kind: Kind,
    /// Its name, or `*`.
    pub name: String,
    /// Its namespace; None: in whichever.
    pub namespace: Option<String>,
}

impl FromStr for Who {
    type Err = WhoError;

    fn from_str(text: &str) -> Result<Self, WhoError> {
        let (kind, rest) = match text.split_once('/') {
            None => (Kind::Any, text),
            Some((kind, rest)) => (kind_of(kind)?, rest),
        };
        let (name, namespace) = match rest.rsplit_once('.') {
            Some((name, namespace)) => (name, Some(namespace)),
            None => (rest, None),
        };
        if name.is_empty() || namespace.is_some_and(str::is_empty) {
            return Err(WhoError::Name);
        }
        Ok(Self { kind, name: name.into(), namespace: namespace.map(Into::into) })
    }
}

fn kind_of(word: &str) -> Result<Kind, WhoError> {
    Ok(match word {
        "any" => Kind::Any,
        "pod" | "pods" | "po" => Kind::Pod,
        "workload" | "deploy" | "deployment" | "deployments" | "sts" | "statefulset" | "ds" | "daemonset" | "job"
        | "cronjob" => Kind::Workload,
        "service" | "services" | "svc" => Kind::Service,
        _ => return Err(WhoError::Kind(word.into())),
    })
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.text(), self.name)?;
        self.namespace.iter().try_for_each(|namespace| write!(f, ".{namespace}"))
    }
}

impl Who {
    /// Is it this end? `service`: `namespace/host` that was called, if this is the end that was.
    fn is(&self, peer: &Peer<'_>, service: Option<&str>) -> bool {
        let named = |name: &str| self.name == "*" || self.name == name;
        let within = |namespace: &str| self.namespace.as_deref().is_none_or(|wanted| wanted == namespace);
        let pod = || named(peer.pod) && within(peer.namespace);
        let workload = || named(peer.workload) && within(peer.namespace);
        let service = || {
            let Some((namespace, host)) = service.and_then(|key| key.split_once('/')) else { return false };
            let first = host.split('.').next().unwrap_or_default();
            (named(first) || named(host)) && within(namespace)
        };
        match self.kind {
            Kind::Any => pod() || workload() || service(),
            Kind::Pod => pod(),
            Kind::Workload => workload(),
            Kind::Service => service(),
        }
    }
}

/// A status, or a class of them: `503`, `5xx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    first: u16,
    last: u16,
}

impl FromStr for Status {
    type Err = StatusError;

    fn from_str(text: &str) -> Result<Self, StatusError> {
        let first = match text.strip_suffix("xx") {
            Some(class) => class.parse::<u16>().ok().and_then(|class| class.checked_mul(100)),
            None => text.parse().ok(),
        };
        let first = first.filter(|first| (100..600).contains(first)).ok_or(StatusError)?;
        Ok(Self { first, last: if text.ends_with("xx") { first + 99 } else { first } })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}xx", self.first / 100) }
    }
}

/// What a looker wants to see. All that is set must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// One of the ends is in this namespace.
    pub namespace: Option<String>,
    /// One of the ends is this.
    pub about: Option<Who>,
    /// Who calls.
    pub from: Option<Who>,
    /// Who is called.
    pub to: Option<Who>,
    /// Method of a request.
    pub method: Option<String>,
    /// Path of a request, without query; `*` at an end stands for anything.
    pub path: Option<String>,
    /// Status of a request's answer.
    pub status: Option<Status>,
    /// What became of it; empty: whatever.
    pub verdicts: Vec<Verdict>,
    /// The caller's SPIFFE id; `*` at an end stands for anything.
    pub identity: Option<String>,
    /// Also what the proxy at the other end tells of.
    pub all: bool,
    /// Keep the queries of paths.
    pub query: bool,
    /// The stream ends after so many, 1 to [`limits::TAP_RECORDS`].
    pub limit: u64,
    /// The stream ends after this time, to [`limits::TAP_TIME`].
    pub time: Duration,
}

impl Default for Filter {
    /// All there is, for as long as a stream lasts where nobody says.
    fn default() -> Self {
        Self {
            namespace: None,
            about: None,
            from: None,
            to: None,
            method: None,
            path: None,
            status: None,
            verdicts: vec![],
            identity: None,
            all: false,
            query: false,
            limit: limits::TAP_RECORDS_UNASKED,
            time: limits::TAP_TIME_UNASKED,
        }
    }
}

impl Filter {
    /// Is it wanted?
    pub fn matches(&self, event: &Event<'_>) -> bool {
        let service = Some(event.service);
        let is = |wanted: &Option<Who>, peer: &Peer<'_>, service: Option<&str>| {
            wanted.as_ref().is_none_or(|who| who.is(peer, service))
        };
        let about =
            || self.about.as_ref().is_none_or(|who| who.is(&event.source, None) || who.is(&event.destination, service));
        let request = || {
            (self.method.is_none() && self.path.is_none() && self.status.is_none())
                || event.request.as_ref().is_some_and(|request| {
                    let path = request.path.split('?').next().unwrap_or_default();
                    self.method.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(request.method))
                        && self.path.as_ref().is_none_or(|wanted| fits(wanted, path))
                        && self.status.is_none_or(|wanted| (wanted.first..=wanted.last).contains(&request.status))
                })
        };
        (self.all || !event.is_told_by_other_end())
            && (self.verdicts.is_empty() || self.verdicts.contains(&event.verdict))
            && self.within(event)
            && is(&self.from, &event.source, None)
            && is(&self.to, &event.destination, service)
            && about()
            && self.identity.as_ref().is_none_or(|wanted| fits(wanted, event.source.identity))
            && request()
    }

    fn within(&self, event: &Event<'_>) -> bool {
        let called = event.service.split_once('/').map_or("", |(namespace, _)| namespace);
        let ends = [event.source.namespace, event.destination.namespace, called];
        self.namespace.as_deref().is_none_or(|wanted| ends.contains(&wanted))
    }

    /// From the query of a page.
    ///
    /// # Errors
    /// For a key or a value that is none: a filter that is not understood must not show everything.
    pub fn parse(query: &str) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            filter.set(&key, &value)?;
        }
        Ok(filter)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), FilterError> {
        match key {
            "namespace" => self.namespace = Some(value.into()),
            "about" => self.about = Some(read("about", value)?),
            "from" => self.from = Some(read("from", value)?),
            "to" => self.to = Some(read("to", value)?),
            "method" => self.method = Some(value.into()),
            "path" => self.path = Some(value.into()),
            "status" => self.status = Some(read("status", value)?),
            "verdict" => self.verdicts.push(verdict(value)?),
            "identity" => self.identity = Some(value.into()),
            "all" => self.all = flag("all", value)?,
            "query" => self.query = flag("query", value)?,
            "limit" => self.limit = number("limit", value, limits::TAP_RECORDS)?,
            "seconds" => self.time = Duration::from_secs(number("seconds", value, limits::TAP_TIME.as_secs())?),
            other => return Err(FilterError::Key(other.chars().take(32).collect())),
        }
        Ok(())
    }

    /// As the query of a page; [`Self::parse`] reads it.
    pub fn to_query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let ends = [("about", &self.about), ("from", &self.from), ("to", &self.to)];
        for (key, who) in ends {
            if let Some(who) = who {
                query.append_pair(key, &who.to_string());
            }
        }
        let texts = [
            ("namespace", &self.namespace),
            ("method", &self.method),
            ("path", &self.path),
            ("identity", &self.identity),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                query.append_pair(key, text);
            }
        }
        if let Some(status) = self.status {
            query.append_pair("status", &status.to_string());
        }
        for verdict in &self.verdicts {
            query.append_pair("verdict", word(*verdict));
        }
        for (key, set) in [("all", self.all), ("query", self.query)] {
            if set {
                query.append_pair(key, "true");
            }
        }
        query.append_pair("limit", &self.limit.to_string());
        query.append_pair("seconds", &self.time.as_secs().to_string());
        query.finish()
    }
}

fn read<T: FromStr<Err: fmt::Display>>(key: &'static str, value: &str) -> Result<T, FilterError> {
    value.parse().map_err(|e: T::Err| FilterError::Value { key, value: value.into(), wanted: e.to_string() })
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forwarded => "forwarded",
        Verdict::Dropped => "dropped",
        Verdict::Error => "error",
    }
}

fn verdict(value: &str) -> Result<Verdict, FilterError> {
    let all = [Verdict::Forwarded, Verdict::Dropped, Verdict::Error];
    let found = all.into_iter().find(|verdict| word(*verdict).eq_ignore_ascii_case(value));
    let wanted = || "forwarded, dropped or error".into();
    found.ok_or_else(|| FilterError::Value { key: "verdict", value: value.into(), wanted: wanted() })
}

fn flag(key: &'static str, value: &str) -> Result<bool, FilterError> {
    value.parse().map_err(|_| FilterError::Value { key, value: value.into(), wanted: "true or false".into() })
}

fn number(key: &'static str, value: &str, most: u64) -> Result<u64, FilterError> {
    let number = value.parse::<u64>().ok().filter(|number| (1..=most).contains(number));
    let wanted = || format!("a number from 1 to {most}");
    number.ok_or_else(|| FilterError::Value { key, value: value.into(), wanted: wanted() })
}

/// Does a text fit a pattern, in which `*` at an end stands for anything?
fn fits(pattern: &str, text: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        _ if pattern == "*" => true,
        (Some(end), Some(_)) => text.contains(end.trim_end_matches('*')),
        (Some(end), None) => text.ends_with(end),
        (None, Some(start)) => text.starts_with(start),
        (None, None) => text == pattern,
    }
}

#[cfg(test)]
mod tests;
