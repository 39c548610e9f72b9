//! What a provider has said, and what it changes of a request and of the answer to it.
//!
//! Changes are all done or none: one that cannot be makes the whole answer none. What a refusal says to the client is not so
//! strict: it refuses all the same.

use crate::http::{
    codec::HeadLimits,
    entry::{self, Names},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header,
    request::Parts,
    uri::{self, PathAndQuery},
};

/// Most changes of one answer.
const MAX_CHANGES: usize = 100;

/// What a provider has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request goes on, with these changes.
    Allowed(Changes),
    /// It does not.
    Denied(Refusal),
}

/// What the client of a request is answered that does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Of the request.
    pub headers: Vec<Change>,
    pub remove: Vec<HeaderName>,
    /// Parameters of its query.
    pub set_query: Vec<(String, String)>,
    pub remove_query: Vec<String>,
    /// Of the answer to it.
    pub response: Vec<Change>,
}

/// A header that is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub name: HeaderName,
    pub value: HeaderValue,
    pub how: How,
}

/// What becomes of a header that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Both are there.
    Append,
    /// It stays.
    AddIfAbsent,
    /// It goes.
    Overwrite,
    /// It goes; if there is none, none is written.
    OverwriteIfExists,
}

/// Why an answer is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Invalid {
    #[error("not a message of envoy.service.auth.v3: {0}")]
    Decode(prost::DecodeError),
    #[error("not one uncompressed message of gRPC")]
    Frame,
    #[error("says neither yes nor no")]
    Empty,
    #[error("says that the provider cannot decide")]
    Error,
    #[error("answered with HTTP status {0}")]
    Status(u16),
    #[error("answered with gRPC status {0}")]
    Grpc(u16),
    #[error("sets or removes header {0:?}, which cannot be changed, or has a value that cannot be sent")]
    Header(String),
    #[error("changes more than {most} headers and parameters", most = MAX_CHANGES)]
    TooMany,
    #[error("makes the head of the request too large")]
    TooLarge,
    #[error("makes the query of the request one that cannot be sent")]
    Query,
    #[error("longer than {0} bytes")]
    TooLong(usize),
}

/// A header that a provider may write or take away: not what makes the request another one, nor what the connection is made of.
///
/// # Errors
/// It is another.
pub fn name(name: &str) -> Result<HeaderName, Invalid> {
    let wrong = || Invalid::Header(name.chars().take(100).collect());
    let read = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
    let is_fixed = read == header::HOST || read == header::CONTENT_LENGTH || entry::concerns_connection(&read);
    if is_fixed { Err(wrong()) } else { Ok(read) }
}

impl Changes {
    /// Are there too many of them?
    ///
    /// # Errors
    /// There are.
    pub fn counted(self) -> Result<Self, Invalid> {
        let query = self.set_query.len() + self.remove_query.len();
        match self.headers.len() + self.remove.len() + self.response.len() + query > MAX_CHANGES {
            true => Err(Invalid::TooMany),
            false => Ok(self),
        }
    }

    /// Changes a request, whose head may be so large; what is judged and sent on is what comes of it.
    ///
    /// # Errors
    /// It cannot be done; then nothing is.
    pub fn apply(&self, parts: &mut Parts, limits: HeadLimits) -> Result<(), Invalid> {
        if self.headers.is_empty()
            && self.remove.is_empty()
            && self.set_query.is_empty()
            && self.remove_query.is_empty()
        {
            return Ok(());
        }
        let uri = self.uri(&parts.uri)?;
        let mut headers = parts.headers.clone();
        self.remove.iter().for_each(|name| drop(headers.remove(name)));
        write(&self.headers, &mut headers);
        // An application may take these for what the provider has said.
        let written: Names = self.headers.iter().map(|change| &change.name).chain(&self.remove).collect();
        written.drop_alike(&mut headers);
        if !entry::fits(&headers, limits) {
            return Err(Invalid::TooLarge);
        }
        parts.headers = headers;
        if let Some(uri) = uri {
            parts.uri = uri;
        }
        Ok(())
    }

    /// Changes the answer to the request.
    pub fn apply_to_response(&self, headers: &mut HeaderMap) {
        write(&self.response, headers);
    }

    /// The request's URI with another query; None: it stays as it is.
    fn uri(&self, uri: &Uri) -> Result<Option<Uri>, Invalid> {
        if self.set_query.is_empty() && self.remove_query.is_empty() {
            return Ok(None);
        }
        let goes =
            |key: &str| self.set_query.iter().any(|(k, _)| k == key) || self.remove_query.iter().any(|k| k == key);
        let key = |pair: &str| {
            form_urlencoded::parse(pair.as_bytes()).next().map(|(key, _)| key.into_owned()).unwrap_or_default()
        };
        // What stays, stays as it is written.
        let own = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty() && !goes(&key(pair)));
        let set = self
            .set_query
            .iter()
            .map(|(key, value)| form_urlencoded::Serializer::new(String::new()).append_pair(key, value).finish());
        let query = own.map(String::from).chain(set).collect::<Vec<_>>().join("&");
        let whole = if query.is_empty() { uri.path().to_string() } else { format!("{}?{query}", uri.path()) };
        let mut parts: uri::Parts = uri.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(whole).map_err(|_| Invalid::Query)?);
        Uri::from_parts(parts).map(Some).map_err(|_| Invalid::Query)
    }
}

/// Writes headers. Several of one name are all there.
fn write(changes: &[Change], headers: &mut HeaderMap) {
    let mut begun: Vec<&HeaderName> = vec![];
    let mut absent: Vec<&HeaderName> = vec![];
    for Change { name, value, how } in changes {
        let is_first = !begun.contains(&name);
        begun.push(name);
        let was_there = headers.contains_key(name);
        if is_first && !was_there {
            absent.push(name);
        }
        let (is_written, is_instead) = match how {
            How::Append => (true, false),
            How::Overwrite => (true, is_first),
            How::OverwriteIfExists => (was_there, is_first),
            // Of what the client has sent.
            How::AddIfAbsent => (absent.contains(&name), false),
        };
        if is_instead {
            headers.remove(name);
        }
        if is_written {
            headers.append(name, value.clone());
        }
    }
}

/// Of a refusal: its status if it is one, else 403.
pub fn refusal_status(number: i32) -> StatusCode {
    u32::try_from(number).ok().and_then(super::provider::status).unwrap_or(StatusCode::FORBIDDEN)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn request(uri: &str, headers: &[(&'static str, &'static str)]) -> Parts {
        let mut request = http::Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn change(name: &'static str, value: &'static str, how: How) -> Change {
        Change { name: HeaderName::from_static(name), value: HeaderValue::from_static(value), how }
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut all: Vec<_> = headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
        all.sort();
        all
    }

    #[test]
    fn headers_are_written_over_what_the_client_has_sent() {
        let sent = [("x-user", "mallory"), ("x-user", "eve"), ("x_user", "forged"), ("x-old", "1"), ("x-b", "1")];
        let mut parts = request("/", &sent);
        let changes = Changes {
            headers: vec![
                change("x-user", "alice", How::Overwrite),
                change("x-user", "admin", How::Overwrite),
                change("x-b", "2", How::Append),
                change("x-old", "2", How::AddIfAbsent),
                change("x-new", "1", How::AddIfAbsent),
                change("x-none", "1", How::OverwriteIfExists),
                change("x-host", "1", How::Append),
            ],
            remove: vec![HeaderName::from_static("x-host")],
            ..Changes::default()
        };
        changes.apply(&mut parts, HeadLimits::default()).unwrap();
        let wanted = ["x-b=1", "x-b=2", "x-host=1", "x-new=1", "x-old=1", "x-user=admin", "x-user=alice"];
        assert_eq!(lines(&parts.headers), wanted);
    }

    #[test]
    fn what_makes_it_another_request_is_not_changed() {
        for bad in [
            "host",
            "Host",
            ":path",
            ":authority",
            "content-length",
            "transfer-encoding",
            "connection",
            "upgrade",
            "te",
            "",
            "a b",
            "x\n",
        ] {
            assert!(matches!(name(bad), Err(Invalid::Header(_))), "{bad:?}");
        }
        assert_eq!(name("X-User").unwrap(), "x-user");
    }

    #[test]
    fn parameters_of_the_query() {
        let changed = |uri: &str, set: &[(&str, &str)], remove: &[&str]| {
            let mut parts = request(uri, &[]);
            let changes = Changes {
                set_query: set.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
                remove_query: remove.iter().map(ToString::to_string).collect(),
                ..Changes::default()
            };
            changes.apply(&mut parts, HeadLimits::default()).unwrap();
            parts.uri.to_string()
        };
        assert_eq!(changed("/a?x=1&y=%2f&x=2", &[("z", "a b&c")], &["x"]), "/a?y=%2f&z=a+b%26c");
        assert_eq!(changed("/a?x=1", &[("x", "2")], &[]), "/a?x=2");
        assert_eq!(changed("/a?%78=1", &[], &["x"]), "/a", "whichever way it is written");
        assert_eq!(changed("/a", &[], &["x"]), "/a");
        assert_eq!(changed("http://shop/a?x", &[("y", "#\r\n")], &[]), "http://shop/a?x&y=%23%0D%0A");
    }

    #[test]
    fn what_is_too_much_is_nothing() {
        let mut parts = request("/a", &[("x-old", "1")]);
        let many = |n: usize| Changes { headers: vec![change("x-a", "1", How::Append); n], ..Changes::default() };
        assert_eq!(many(101).counted(), Err(Invalid::TooMany));
        let limits = HeadLimits::default();
        assert_eq!(many(100).apply(&mut parts, limits), Err(Invalid::TooLarge), "with its own there are too many");
        let value = HeaderValue::from_str(&"x".repeat(61 << 10)).unwrap();
        let long = Change { value, ..change("x-a", "", How::Append) };
        let long =
            Changes { headers: vec![long], remove: vec![HeaderName::from_static("x-old")], ..Changes::default() };
        assert_eq!(long.apply(&mut parts, limits), Err(Invalid::TooLarge));
        assert_eq!(lines(&parts.headers), ["x-old=1"], "nothing is done");
        // Where clients may send more, there may be more of it.
        let limits = HeadLimits { bytes: 128 << 10, fields: 101 };
        assert_eq!(many(100).apply(&mut parts.clone(), limits), Ok(()));
        assert_eq!(long.apply(&mut parts, limits), Ok(()));
    }
}
