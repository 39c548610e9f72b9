//! The session of a request: where its client was, where it goes now, and what its answer says of that. The destination has been
//! chosen before, by its weight, and a session changes nothing about it. Only the first attempt looks for the endpoint of before:
//! what has failed there goes to another one, and the session with it.

use crate::{
    cluster::{balance, endpoint_set::EndpointSet},
    http::{call::Call, names},
    route::rule::Rule,
    session::{
        keys::SessionKeys,
        rules::{Carrier, SessionRules},
        token::{Place, Token},
    },
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use karst_rt::clock;
use std::sync::Arc;

/// So many values of one name are looked at; a client has more than one where cookies have several paths.
const MOST_SHOWN: usize = 4;

/// The session of a request.
pub(super) struct Session<'a> {
    rules: Arc<SessionRules>,
    keys: &'a SessionKeys,
    /// Where it goes, as values have it.
    destination: u64,
    /// Milliseconds since 1970.
    now: u64,
    /// Has the client spoken TLS, with us or with a proxy that says so?
    tls: bool,
    /// What the client has shown, as far as it counts.
    token: Token,
    /// That of it as it was shown, if it could be shown again.
    shown: Option<HeaderValue>,
    /// Where it was at this destination.
    place: Option<Place>,
}

impl<'a> Session<'a> {
    /// That of a request to a destination. None: clients are not bound to its endpoints. (Where those are a waypoint's pods, the
    /// waypoint binds them; where the endpoint follows from what was called, there is no other.)
    pub(super) fn begin(
        call: &Call<'a>,
        rule: Option<&Rule>,
        set: &EndpointSet,
        headers: &HeaderMap,
    ) -> Option<Box<Self>> {
        let rules = rule.and_then(|rule| rule.session.as_ref()).or(set.session.as_ref())?;
        let keys = &call.snapshot.gateway.as_ref()?.session_keys;
        if keys.is_empty() || set.via_waypoint.is_some() || set.dynamic_endpoint.is_some() {
            return None;
        }
        let told_https = headers.get(names::FORWARDED_PROTO).is_some_and(|v| v.as_bytes() == b"https");
        let mut session = Box::new(Self {
            rules: rules.clone(),
            keys,
            destination: rules.destination(&set.key.service, set.key.port, &set.key.subset),
            now: clock::since_epoch().as_millis() as u64,
            tls: call.downstream.scheme() == "https" || told_https,
            token: Token::default(),
            shown: None,
            place: None,
        });
        session.read(set, headers);
        Some(session)
    }

    /// Reads what the client shows: of several values the first that has a place at this destination, else the first that is ours.
    fn read(&mut self, set: &EndpointSet, headers: &HeaderMap) {
        let mut is_ours = false;
        for value in shown(&self.rules.carrier, headers) {
            let Some((plain, is_newest)) = self.keys.open(value, self.rules.used_for()) else { continue };
            let Some(token) = Token::read(&plain) else { continue };
            let counts = |place: &Place| place.is_live(&self.rules, self.now) && set.place_of(place.endpoint).is_some();
            let place = token.place(self.destination).filter(counts);
            if is_ours && place.is_none() {
                continue;
            }
            // What an older key has sealed is sealed anew.
            self.shown = if is_newest { HeaderValue::from_bytes(value).ok() } else { None };
            (self.token, self.place, is_ours) = (token, place, true);
            if place.is_some() {
                return;
            }
        }
    }

    /// The endpoint where the client was, by its place in the set, if it can be used now.
    pub(super) fn endpoint(&self, set: &EndpointSet, now: u64) -> Option<usize> {
        let index = set.place_of(self.place?.endpoint)?;
        balance::is_usable(set, index, now).then_some(index)
    }

    /// What the answer of an endpoint says of the session. None: what the client has stays as it is.
    pub(super) fn answer(mut self, set: &EndpointSet, index: usize) -> Option<(HeaderName, HeaderValue)> {
        let endpoint = set.members.get(index)?.session_id();
        let same = self.place.filter(|place| place.endpoint == endpoint);
        let began = same.map_or(self.now, |place| place.began);
        // How long it is idle is known only if each request is told.
        if let (Some(_), Some(shown), 0) = (same, &self.shown, self.rules.idle_ms) {
            return match &self.rules.carrier {
                Carrier::Cookie { .. } => None,
                // Nobody keeps headers for a client: each answer has it.
                Carrier::Header(name) => Some((name.clone(), shown.clone())),
            };
        }
        self.token.put(Place { destination: self.destination, endpoint, began, seen: self.now });
        let value = self.keys.seal(&self.token.write(), self.rules.used_for())?;
        let left = self.rules.absolute_ms.saturating_sub(self.now.saturating_sub(began));
        self.rules.header(&value, left, self.tls)
    }
}

/// The values that a client shows, at most [`MOST_SHOWN`].
fn shown<'h>(carrier: &Carrier, headers: &'h HeaderMap) -> Vec<&'h [u8]> {
    match carrier {
        Carrier::Header(name) => headers.get_all(name).iter().map(HeaderValue::as_bytes).take(MOST_SHOWN).collect(),
        Carrier::Cookie { name, .. } => {
            let lines = headers.get_all(header::COOKIE).iter();
            let pairs = lines.flat_map(|line| line.as_bytes().split(|b| *b == b';')).map(<[u8]>::trim_ascii);
            let values = pairs.filter_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
            let bare = |v: &'h [u8]| v.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(v);
            values.map(bare).take(MOST_SHOWN).collect()
        }
    }
}

/// Adds what an answer says of a session. A header is that of the session alone; cookies stand beside others.
pub(super) fn tell(told: Option<(HeaderName, HeaderValue)>, headers: &mut HeaderMap) {
    let Some((name, value)) = told else { return };
    if name == header::SET_COOKIE {
        headers.append(name, value);
    } else {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_api::route as ir;

    #[test]
    fn the_values_of_one_name_are_found_among_all_cookies() {
        let cookie = |name: &str| {
            let rules = SessionRules::new(&ir::Session { name: name.into(), ..Default::default() });
            rules.unwrap().carrier
        };
        let mut headers = HeaderMap::new();
        let found = |carrier: &Carrier, headers: &HeaderMap| {
            let all = shown(carrier, headers);
            all.iter().map(|v| String::from_utf8_lossy(v).into_owned()).collect::<Vec<_>>()
        };
        assert!(found(&cookie("s"), &headers).is_empty());
        headers.append(header::COOKIE, HeaderValue::from_static("ss=0; s=1;s=\"2\" ; S=0;x=s=0; s"));
        headers.append(header::COOKIE, HeaderValue::from_static("s="));
        assert_eq!(found(&cookie("s"), &headers), ["1", "2", ""]);
        let many = "s=3; ".repeat(1000);
        headers.append(header::COOKIE, HeaderValue::from_str(&many).unwrap());
        assert_eq!(found(&cookie("s"), &headers), ["1", "2", "", "3"]);
        let header = Carrier::Header(HeaderName::from_static("x-session"));
        for n in 0..9 {
            headers.append("x-session", HeaderValue::from(n));
        }
        assert_eq!(found(&header, &headers), ["0", "1", "2", "3"]);
    }
}
