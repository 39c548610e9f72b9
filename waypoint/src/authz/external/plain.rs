//! Providers that are asked by HTTP: the question is a request like the one that is asked about, and the status of the answer says yes
//! (200) or no; 5xx is no answer.

use crate::{
    authz::external::{
        answer::{Answer, Change, Changes, How, Invalid, Refusal, name, refusal_status},
        provider::{HttpRules, NamePattern},
        question::{PARTIAL_BODY, Prepared, Question},
    },
    http::entry,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, EXPECT, HOST, LOCATION, SERVER,
        WWW_AUTHENTICATE,
    },
    uri::PathAndQuery,
};

/// Names of headers, with commas, that the request is to lose (Envoy's).
const TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// What an answer has of its own, and does not say of the request.
static OF_ANSWER: [HeaderName; 5] = [CONTENT_TYPE, CONTENT_ENCODING, DATE, SERVER, TO_REMOVE];

/// The question as a request.
///
/// # Errors
/// With the prefix its path is none.
pub fn request(question: &Question<'_>, rules: &HttpRules) -> Result<Prepared, Invalid> {
    let path = PathAndQuery::try_from(format!("{}{}", rules.path_prefix, question.path));
    let mut headers = HeaderMap::new();
    let is_sent = |name: &HeaderName| *name == AUTHORIZATION || NamePattern::any(&rules.request, name);
    // How much of the body it gets the client does not say for us.
    let is_own = |name: &HeaderName| is_of_message(name) || *name == PARTIAL_BODY;
    for (name, value) in question.headers.iter().filter(|(name, _)| is_sent(name) && !is_own(name)) {
        headers.append(name, value.clone());
    }
    for (name, value) in &rules.additional {
        headers.insert(name, value.clone());
    }
    let body = question.body.as_ref().map(|part| part.bytes.clone()).unwrap_or_default();
    if let Some(part) = &question.body {
        headers.insert(PARTIAL_BODY, HeaderValue::from_static(part.told()));
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.remove(EXPECT);
    Ok(Prepared {
        method: question.method.clone(),
        path: path.map_err(|_| Invalid::Query)?,
        authority: Some(HeaderValue::from_str(question.authority).map_err(|_| Invalid::Query)?),
        headers,
        body,
    })
}

/// Is it about the message that it stands in, and never about the request?
fn is_of_message(name: &HeaderName) -> bool {
    *name == HOST || *name == CONTENT_LENGTH || entry::concerns_connection(name)
}

/// What the provider has said.
///
/// # Errors
/// It is no answer.
pub fn answer(rules: &HttpRules, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Result<Answer, Invalid> {
    if status == StatusCode::OK {
        return Ok(Answer::Allowed(changes(rules, headers)?));
    }
    if status.is_server_error() {
        return Err(Invalid::Status(status.as_u16()));
    }
    Ok(Answer::Denied(refusal(rules, status, headers, body)))
}

fn changes(rules: &HttpRules, headers: &HeaderMap) -> Result<Changes, Invalid> {
    let listed = |patterns: Option<&[NamePattern]>, how: How| {
        let is_listed = |name: &HeaderName| match patterns {
            Some(patterns) => NamePattern::any(patterns, name),
            None => !OF_ANSWER.contains(name),
        };
        let all = headers.iter().filter(|(name, _)| is_listed(name) && !is_of_message(name));
        all.map(|(name, value)| Change { name: name.clone(), value: value.clone(), how }).collect::<Vec<_>>()
    };
    let remove = headers.get_all(TO_REMOVE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let named = |text: &[u8]| name(&String::from_utf8_lossy(text));
    let changes = Changes {
        headers: listed(rules.upstream_on_allow.as_deref(), How::Overwrite),
        remove: remove.map(<[u8]>::trim_ascii).filter(|text| !text.is_empty()).map(named).collect::<Result<_, _>>()?,
        response: listed(Some(rules.downstream_on_allow.as_slice()), How::Append),
        ..Changes::default()
    };
    changes.counted()
}

fn refusal(rules: &HttpRules, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Refusal {
    let listed = &rules.downstream_on_deny;
    let is_told = |name: &HeaderName| {
        listed.is_empty() || [WWW_AUTHENTICATE, LOCATION].contains(name) || NamePattern::any(listed, name)
    };
    let mut told = HeaderMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| is_told(name) && !is_of_message(name)) {
        told.append(name, value.clone());
    }
    Refusal { status: refusal_status(i32::from(status.as_u16())), headers: told, body }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::authz::external::{
        provider::{Protocol, Provider},
        question::{BodyPart, example},
    };
    use http::Method;
    use karst_api::route::{self as ir, AuthzProtocol};

    fn rules(change: impl FnOnce(&mut ir::AuthzProvider)) -> Box<HttpRules> {
        let mut said = ir::AuthzProvider {
            name: "p".into(),
            service: "s".into(),
            port: 80,
            protocol: AuthzProtocol::AuthzHttp as i32,
            ..Default::default()
        };
        change(&mut said);
        match Provider::new(&said).unwrap().protocol {
            Protocol::Http(rules) => rules,
            Protocol::Grpc(_) => panic!("it is asked by HTTP"),
        }
    }

    fn map(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut out = HeaderMap::new();
        for (name, value) in all {
            out.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        out
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut all: Vec<_> = headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
        all.sort();
        all
    }

    #[test]
    fn the_question_is_like_the_request() {
        let headers = map(&[
            ("authorization", "Bearer t"),
            ("cookie", "a=b"),
            ("host", "shop"),
            ("content-length", "7"),
            ("x-ext-a", "1"),
            ("x-ext-a", "2"),
            ("x-other", "1"),
            ("expect", "100-continue"),
            ("x-envoy-auth-partial-body", "forged"),
        ]);
        let (method, path) = (Method::PUT, "/orders?x=%2f");
        let mut question = example(&method, path, &headers);
        let own = rules(|p| {
            (p.path_prefix, p.request_headers) =
                ("/check/".into(), vec!["x-e*".into(), "Cookie".into(), "expect".into()]);
            let header = |name: &str, value: &str| ir::CheckHeader { name: name.into(), value: value.into() };
            p.additional_headers = vec![header("x-ext-b", "3"), header("cookie", "c=d")];
        });
        let asked = request(&question, &own).unwrap();
        assert_eq!((asked.method, asked.path.as_str()), (Method::PUT, "/check/orders?x=%2f"));
        assert_eq!(asked.authority.unwrap(), "shop:8080");
        let wanted =
            ["authorization=Bearer t", "content-length=0", "cookie=c=d", "x-ext-a=1", "x-ext-a=2", "x-ext-b=3"];
        assert_eq!(lines(&asked.headers), wanted);
        question.body = Some(BodyPart { bytes: Bytes::from_static(b"order"), is_partial: false });
        let asked = request(&question, &rules(|_| {})).unwrap();
        assert_eq!((asked.path.as_str(), &asked.body[..]), (path, &b"order"[..]));
        let wanted = ["authorization=Bearer t", "content-length=5", "x-envoy-auth-partial-body=false"];
        assert_eq!(lines(&asked.headers), wanted);
    }

    #[test]
    fn two_hundred_is_yes_and_nothing_else_is() {
        let all = rules(|p| p.all_upstream_on_allow = true);
        let rules = rules(|p| {
            (p.upstream_on_allow, p.downstream_on_allow) =
                (vec!["x-user".into(), "co*".into()], vec!["set-cookie".into()]);
        });
        let headers = map(&[
            ("x-user", "alice"),
            ("x-other", "1"),
            ("content-length", "3"),
            ("connection", "close"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("x-envoy-auth-headers-to-remove", "Authorization, x-secret,"),
        ]);
        let said = |status: u16| answer(&rules, StatusCode::from_u16(status).unwrap(), &headers, Bytes::new());
        let Ok(Answer::Allowed(changes)) = said(200) else { panic!() };
        let names: Vec<_> = changes.headers.iter().map(|change| change.name.as_str()).collect();
        let removed: Vec<_> = changes.remove.iter().map(HeaderName::as_str).collect();
        assert_eq!((names, removed), (vec!["x-user"], vec!["authorization", "x-secret"]));
        assert_eq!(changes.response.len(), 2, "both cookies");
        for (status, told) in [(201, 201), (204, 204), (302, 302), (401, 401), (403, 403), (101, 403)] {
            let Ok(Answer::Denied(refusal)) = said(status) else { panic!("{status}") };
            assert_eq!(refusal.status.as_u16(), told);
        }
        for status in [500, 502, 503, 599] {
            assert_eq!(said(status), Err(Invalid::Status(status)));
        }
        let Ok(Answer::Allowed(changes)) = answer(&all, StatusCode::OK, &headers, Bytes::new()) else { panic!() };
        let mut names: Vec<_> = changes.headers.iter().map(|change| change.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["set-cookie", "set-cookie", "x-other", "x-user"], "all that is about the request");
        let bad = map(&[("x-envoy-auth-headers-to-remove", "host")]);
        assert_eq!(answer(&rules, StatusCode::OK, &bad, Bytes::new()), Err(Invalid::Header("host".into())));
    }

    #[test]
    fn a_refusal_reaches_the_client_as_it_is_or_as_listed() {
        let headers = map(&[
            ("content-type", "text/html"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("location", "/login"),
            ("www-authenticate", "Basic"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("x-reason", "r"),
        ]);
        let said = |list: &[&str]| {
            let rules = rules(|p| p.downstream_on_deny = list.iter().map(ToString::to_string).collect());
            match answer(&rules, StatusCode::FOUND, &headers, Bytes::from_static(b"login")) {
                Ok(Answer::Denied(refusal)) => (lines(&refusal.headers), refusal.body),
                other => panic!("{other:?}"),
            }
        };
        let all = [
            "content-type=text/html",
            "location=/login",
            "set-cookie=a=1",
            "set-cookie=b=2",
            "www-authenticate=Basic",
            "x-reason=r",
        ];
        assert_eq!(said(&[]), (all.map(String::from).into(), Bytes::from_static(b"login")));
        let some = ["location=/login", "set-cookie=a=1", "set-cookie=b=2", "www-authenticate=Basic"];
        assert_eq!(said(&["Set-Cookie"]), (some.map(String::from).into(), Bytes::from_static(b"login")));
    }
}
