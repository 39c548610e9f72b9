//! Who may read the page: whoever has the secret that this process has made, from a page of this very origin.
//!
//! - Another user of this machine can reach the port, and has no secret. It is in the part of the URL that is never sent (`#`), and
//!   then in a header of the page's own requests. A cookie would be sent to every port of this address, also to another user's.
//! - The URL that a browser is started with is in the list of processes. It has a code in place of the secret, good for one use.
//! - A web site that the user visits can send requests here, but has another origin, cannot set the header, and may not read the
//!   answer. One whose name it has turned to 127.0.0.1 (DNS rebinding) is told by the Host header.

use super::request::{Refused, TOKEN, own_site, random, same, text};
use hyper::{
    HeaderMap, StatusCode,
    header::{HOST, HeaderName},
};
use std::cell::RefCell;

const CODE: HeaderName = HeaderName::from_static("x-karst-code");

/// What is asked of each request.
pub struct Door {
    hosts: [String; 2],
    secret: String,
    code: RefCell<Option<String>>,
}

impl Door {
    /// Of the server on this port, with a new secret.
    pub fn new(port: u16) -> Self {
        // Browsers leave HTTP's own port out.
        let port = if port == 80 { String::new() } else { format!(":{port}") };
        let hosts = [format!("127.0.0.1{port}"), format!("localhost{port}")];
        Self { hosts, secret: random(), code: RefCell::new(Some(random())) }
    }

    /// The address for the user, with the secret.
    pub fn address(&self) -> String {
        format!("http://{}/#token={}", self.hosts[0], self.secret)
    }

    /// The address that a browser is started with: good once.
    pub fn address_once(&self) -> String {
        format!("http://{}/#code={}", self.hosts[0], self.code.borrow().as_deref().unwrap_or_default())
    }

    /// Is the request meant for this server, and not sent by another origin?
    ///
    /// # Errors
    /// The status to answer with, and why.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let host = text(headers, HOST).unwrap_or_default();
        let own = |name: &str| self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name));
        if !own(host) {
            return Err((StatusCode::MISDIRECTED_REQUEST, "not the name of this server"));
        }
        own_site(headers, host, &["http://"])
    }

    /// Has it the secret?
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        text(headers, TOKEN).is_some_and(|token| same(token, &self.secret))
    }

    /// The secret, for the code that is good once.
    pub fn exchange(&self, headers: &HeaderMap) -> Option<&str> {
        let given = text(headers, CODE)?;
        let mut code = self.code.borrow_mut();
        code.take_if(|code| same(code, given)).map(|_| self.secret.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_the_own_name_and_origin_come_in() {
        let door = Door::new(8080);
        let status = |all: &[(&'static str, &str)]| door.check(&headers(all)).err().map(|(status, _)| status.as_u16());
        for host in ["127.0.0.1:8080", "localhost:8080", "LocalHost:8080"] {
            assert_eq!(status(&[("host", host)]), None, "{host}");
        }
        for host in ["", "evil.example:8080", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8080.evil.example"] {
            assert_eq!(status(&[("host", host)]), Some(421), "{host}");
        }
        assert_eq!(status(&[]), Some(421), "no Host");
        let own = ("host", "127.0.0.1:8080");
        assert_eq!(status(&[own, ("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "same-origin")]), None);
        for origin in ["null", "", "https://127.0.0.1:8080", "http://127.0.0.1:9090", "http://evil.example"] {
            assert_eq!(status(&[own, ("origin", origin)]), Some(403), "{origin}");
        }
        assert_eq!(status(&[own, ("sec-fetch-site", "none")]), None);
        assert_eq!(status(&[own, ("sec-fetch-site", "same-site")]), Some(403), "another port of this machine");
        assert_eq!(status(&[own, ("sec-fetch-site", "cross-site")]), Some(403));
        let http = Door::new(80);
        assert!(http.check(&headers(&[("host", "localhost"), ("origin", "http://localhost")])).is_ok());
        assert!(http.address().starts_with("http://127.0.0.1/#token="));
        let mut twice = headers(&[own]);
        twice.append(HOST, "127.0.0.1:8080".parse().unwrap());
        assert!(door.check(&twice).is_err());
    }

    #[test]
    fn the_secret_admits_and_the_code_is_good_once() {
        let (door, other) = (Door::new(1), Door::new(1));
        let token = door.address().split_once("#token=").unwrap().1.to_owned();
        assert_eq!(token.len(), 64);
        assert!(door.admits(&headers(&[("x-karst-token", &token)])));
        assert!(!other.admits(&headers(&[("x-karst-token", &token)])), "each process has its own");
        assert!(!door.admits(&headers(&[])) && !door.admits(&headers(&[("x-karst-token", &token[1..])])));
        let code = door.address_once().split_once("#code=").unwrap().1.to_owned();
        assert_eq!(door.exchange(&headers(&[("x-karst-code", &token)])), None, "another text does not use it up");
        assert_eq!(door.exchange(&headers(&[("x-karst-code", &code)])), Some(token.as_str()));
        assert_eq!(door.exchange(&headers(&[("x-karst-code", &code)])), None);
        assert!(!door.admits(&headers(&[("x-karst-token", &code)])));
    }
}
