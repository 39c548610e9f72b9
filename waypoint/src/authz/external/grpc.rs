//! Providers that are asked by gRPC: `envoy.service.auth.v3.Authorization/Check`.

use crate::{
    authz::external::{
        answer::{Answer, Change, Changes, How, Invalid, Refusal, name, refusal_status},
        provider::{GrpcRules, NamePattern},
        question::{PARTIAL_BODY, Party, Question},
    },
    http::{entry::joined, names},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use karst_api::ext_authz::{
    Address, AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderAppendAction, HeaderValueOption,
    HttpRequest, OkHttpResponse, Peer, Request, SocketAddress, Timestamp, TlsSession, check_response::HttpResponse,
};
use prost::Message;
use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

/// What is called.
pub const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The question as a message. `as_bytes`: the body is bytes and not text.
pub fn request(question: &Question<'_>, rules: &GrpcRules, as_bytes: bool) -> CheckRequest {
    let (mut body, mut raw_body) = (String::new(), vec![]);
    match &question.body {
        None => {}
        Some(part) if as_bytes => raw_body = part.bytes.to_vec(),
        Some(part) => body = String::from_utf8_lossy(&part.bytes).into_owned(),
    }
    let id = question.headers.get(names::REQUEST_ID).map(|id| text(id.as_bytes()));
    let headers = headers(question, rules);
    let http = HttpRequest {
        id: id.unwrap_or_default(),
        method: question.method.to_string(),
        headers,
        path: question.path.into(),
        host: question.authority.into(),
        scheme: question.scheme.into(),
        size: question.size.and_then(|size| i64::try_from(size).ok()).unwrap_or(-1),
        protocol: question.protocol.into(),
        body,
        raw_body,
    };
    let attributes = AttributeContext {
        source: Some(peer(&question.source)),
        destination: Some(peer(&question.destination)),
        request: Some(Request { time: Some(timestamp(question.time)), http: Some(http) }),
        tls_session: (!question.sni.is_empty()).then(|| TlsSession { sni: question.sni.into() }),
    };
    CheckRequest { attributes: Some(attributes) }
}

fn peer(party: &Party<'_>) -> Peer {
    let address = party.address.ip().to_canonical().to_string();
    let socket_address = SocketAddress { address, port_value: party.address.port().into() };
    Peer {
        address: Some(Address { socket_address: Some(socket_address) }),
        service: party.service.into(),
        principal: party.principal.into(),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or_default(), nanos: since.subsec_nanos() as i32 }
}

/// The headers, as Envoy has them: several of one name are one, bytes that are no text are `!`, the host is `:authority`.
fn headers(question: &Question<'_>, rules: &GrpcRules) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let is_sent = |key: &HeaderName| rules.request.is_empty() || NamePattern::any(&rules.request, key);
    for key in question.headers.keys().filter(|key| **key != header::HOST && is_sent(key)) {
        let value = joined(question.headers, key).map(|value| text(&value)).unwrap_or_default();
        out.insert(key.to_string(), value);
    }
    let pseudo = [
        (":method", question.method.as_str()),
        (":path", question.path),
        (":authority", question.authority),
        (":scheme", question.scheme),
    ];
    out.extend(pseudo.map(|(key, value)| (key.to_string(), value.to_string())));
    match &question.body {
        Some(part) => drop(out.insert(PARTIAL_BODY.to_string(), part.told().into())),
        // A client does not say it for us.
        None => drop(out.remove(PARTIAL_BODY.as_str())),
    }
    out
}

fn text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => text.into(),
        Err(_) => value.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '!' }).collect(),
    }
}

/// A message of gRPC: not compressed, its length, itself.
pub fn framed(message: &CheckRequest) -> Bytes {
    let length = message.encoded_len();
    let mut out = Vec::with_capacity(length + 5);
    out.push(0);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&message.encode_to_vec());
    out.into()
}

/// What the provider has said. `trailers`: of the call, or its head where it has none.
///
/// # Errors
/// It is no answer.
pub fn answer(body: &[u8], trailers: &HeaderMap) -> Result<Answer, Invalid> {
    /// gRPC: nobody knows.
    const UNKNOWN: u16 = 2;
    let status = trailers.get("grpc-status").and_then(|status| status.to_str().ok()?.parse().ok()).unwrap_or(UNKNOWN);
    if status != 0 {
        return Err(Invalid::Grpc(status));
    }
    let (Some((head, message)), true) =
        (body.split_first_chunk::<5>(), trailers.get_all("grpc-status").iter().count() == 1)
    else {
        return Err(Invalid::Frame);
    };
    let [compressed, length @ ..] = *head;
    if compressed != 0 || usize::try_from(u32::from_be_bytes(length)).ok() != Some(message.len()) {
        return Err(Invalid::Frame);
    }
    said(CheckResponse::decode(message).map_err(Invalid::Decode)?)
}

/// A refusal is one whatever stands beside it.
fn said(response: CheckResponse) -> Result<Answer, Invalid> {
    let is_ok = response.status.as_ref().map(|status| status.code == 0);
    match (is_ok, response.http_response) {
        (_, Some(HttpResponse::DeniedResponse(denied))) => Ok(Answer::Denied(refusal(denied))),
        (_, Some(HttpResponse::ErrorResponse(_))) => Err(Invalid::Error),
        (Some(false), Some(HttpResponse::OkResponse(_)) | None) => {
            Ok(Answer::Denied(refusal(DeniedHttpResponse::default())))
        }
        (Some(true) | None, Some(HttpResponse::OkResponse(ok))) => Ok(Answer::Allowed(changes(ok)?)),
        (Some(true), None) => Ok(Answer::Allowed(Changes::default())),
        (None, None) => Err(Invalid::Empty),
    }
}

/// What of it cannot be said to the client is left out.
fn refusal(denied: DeniedHttpResponse) -> Refusal {
    let mut headers = HeaderMap::new();
    for change in denied.headers.iter().filter_map(|option| change(option, How::Append).ok()) {
        headers.append(change.name, change.value);
    }
    let status = refusal_status(denied.status.map_or(0, |status| status.code));
    Refusal { status, headers, body: denied.body.into() }
}

fn changes(ok: OkHttpResponse) -> Result<Changes, Invalid> {
    let all = |options: &[HeaderValueOption]| {
        options.iter().map(|option| change(option, How::Overwrite)).collect::<Result<Vec<_>, _>>()
    };
    let changes = Changes {
        headers: all(&ok.headers)?,
        remove: ok.headers_to_remove.iter().map(|key| name(key)).collect::<Result<_, _>>()?,
        set_query: ok.query_parameters_to_set.into_iter().map(|p| (p.key, p.value)).collect(),
        remove_query: ok.query_parameters_to_remove,
        response: all(&ok.response_headers_to_add)?,
    };
    changes.counted()
}

/// `default`: where nothing is said, which Envoy's documentation has as `append: false`. (The first of the newer actions has the same
/// number as none, and would let a client's own value stand beside the provider's.)
fn change(option: &HeaderValueOption, default: How) -> Result<Change, Invalid> {
    let header = option.header.as_ref().ok_or_else(|| Invalid::Header(String::new()))?;
    let wrong = || Invalid::Header(header.key.chars().take(100).collect());
    let bytes = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value[..] };
    let how = match (&option.append, HeaderAppendAction::try_from(option.append_action)) {
        (Some(append), _) if append.value => How::Append,
        (Some(_), _) => How::Overwrite,
        (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => default,
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => How::AddIfAbsent,
        (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => How::Overwrite,
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => How::OverwriteIfExists,
        (None, Err(_)) => return Err(wrong()),
    };
    let value = HeaderValue::from_bytes(bytes).map_err(|_| wrong())?;
    Ok(Change { name: name(&header.key)?, value, how })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::authz::external::question::{BodyPart, example};
    use http::Method;
    use karst_api::ext_authz::{self as pb, BoolValue, HttpStatus, QueryParameter, RpcStatus};

    fn trailers(status: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))])
    }

    fn message(response: &CheckResponse) -> Vec<u8> {
        let message = response.encode_to_vec();
        [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
    }

    fn read(code: Option<i32>, response: Option<HttpResponse>) -> Result<Answer, Invalid> {
        let status = code.map(|code| RpcStatus { code, message: String::new() });
        answer(&message(&CheckResponse { status, http_response: response }), &trailers("0"))
    }

    fn option(key: &str, value: &str) -> HeaderValueOption {
        let header = pb::HeaderValue { key: key.into(), value: value.into(), raw_value: vec![] };
        HeaderValueOption { header: Some(header), ..Default::default() }
    }

    fn denied(code: i32, headers: Vec<HeaderValueOption>) -> Option<HttpResponse> {
        let status = Some(HttpStatus { code });
        Some(HttpResponse::DeniedResponse(DeniedHttpResponse { status, headers, body: "no".into() }))
    }

    #[test]
    fn the_question_has_what_envoy_tells() {
        let mut headers = HeaderMap::new();
        for (key, value) in [
            ("host", &b"shop:8080"[..]),
            ("x-a", &b"1"[..]),
            ("x-a", &b"2"[..]),
            ("x-b", &b"\xe9t\xe9"[..]),
            ("x-request-id", &b"id"[..]),
            ("x-envoy-auth-partial-body", &b"forged"[..]),
        ] {
            headers.append(HeaderName::from_static(key), HeaderValue::from_bytes(value).unwrap());
        }
        let (method, path) = (Method::POST, "/orders?x=%2f");
        let mut question = example(&method, path, &headers);
        let asked = |question: &Question<'_>, as_bytes| {
            let attributes = request(question, &GrpcRules { request: vec![] }, as_bytes).attributes.unwrap();
            (attributes.request.clone().unwrap().http.unwrap(), attributes)
        };
        let (http, attributes) = asked(&question, false);
        assert_eq!((&*http.method, &*http.path, &*http.host), ("POST", path, "shop:8080"));
        assert_eq!((&*http.scheme, &*http.protocol, &*http.id, http.size), ("http", "HTTP/1.1", "id", -1));
        let told: Vec<_> = http.headers.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let wanted = [
            ":authority=shop:8080",
            ":method=POST",
            ":path=/orders?x=%2f",
            ":scheme=http",
            "x-a=1,2",
            "x-b=!t!",
            "x-request-id=id",
        ];
        assert_eq!(told, wanted);
        let source = attributes.source.unwrap();
        assert_eq!((&*source.service, &*source.principal), ("web", "spiffe://cluster.local/ns/app/sa/web"));
        let address = source.address.unwrap().socket_address.unwrap();
        assert_eq!((&*address.address, address.port_value), ("10.0.0.1", 4000));
        assert_eq!(attributes.destination.unwrap().principal, "spiffe://cluster.local/ns/shop/sa/waypoint");
        let time = attributes.request.unwrap().time.unwrap();
        assert_eq!((time.seconds, time.nanos, attributes.tls_session), (1, 500_000_000, None));
        question.body = Some(BodyPart { bytes: Bytes::from_static(b"a\xff"), is_partial: true });
        (question.size, question.sni) = (Some(9), "shop");
        let (http, attributes) = asked(&question, false);
        assert_eq!((&*http.body, http.raw_body.len(), http.size), ("a\u{fffd}", 0, 9));
        assert_eq!(http.headers["x-envoy-auth-partial-body"], "true");
        assert_eq!(attributes.tls_session.unwrap().sni, "shop");
        let some = GrpcRules { request: vec![NamePattern::new("x-a").unwrap()] };
        let some = request(&question, &some, false).attributes.unwrap().request.unwrap().http.unwrap();
        let told: Vec<&str> = some.headers.keys().map(String::as_str).filter(|key| !key.starts_with(':')).collect();
        assert_eq!((told, &*some.id), (vec!["x-a", "x-envoy-auth-partial-body"], "id"));
        let (http, _) = asked(&question, true);
        assert_eq!((&*http.body, &http.raw_body[..]), ("", &b"a\xff"[..]));
    }

    #[test]
    fn a_no_is_a_no_however_it_is_said() {
        let plain = |status: u16| {
            Answer::Denied(Refusal {
                status: http::StatusCode::from_u16(status).unwrap(),
                headers: HeaderMap::new(),
                body: Bytes::new(),
            })
        };
        assert_eq!(read(Some(7), None), Ok(plain(403)));
        assert_eq!(read(Some(7), Some(HttpResponse::OkResponse(OkHttpResponse::default()))), Ok(plain(403)));
        for code in [None, Some(0), Some(7)] {
            for (number, status) in [(401, 401), (302, 302), (200, 200), (0, 403), (100, 403), (-1, 403), (1000, 403)] {
                let bad = vec![
                    option("content-length", "5"),
                    option(":status", "200"),
                    option("x-a", "\n"),
                    option("x-a", "1"),
                ];
                let Ok(Answer::Denied(refusal)) = read(code, denied(number, bad)) else { panic!("{number}") };
                assert_eq!((refusal.status.as_u16(), &refusal.body[..]), (status, &b"no"[..]));
                assert_eq!((refusal.headers.len(), &refusal.headers["x-a"]), (1, &HeaderValue::from_static("1")));
            }
        }
        let cookies = vec![option("set-cookie", "a=1"), option("set-cookie", "b=2"), option("location", "/login")];
        let Ok(Answer::Denied(refusal)) = read(Some(16), denied(302, cookies)) else { panic!() };
        assert_eq!(refusal.headers.get_all("set-cookie").iter().count(), 2, "a login needs both");
    }

    #[test]
    fn a_yes_is_one_only_if_all_of_it_can_be_done() {
        assert_eq!(read(Some(0), None), Ok(Answer::Allowed(Changes::default())));
        let ok = |change: fn(&mut OkHttpResponse)| {
            let mut response = OkHttpResponse::default();
            change(&mut response);
            read(Some(0), Some(HttpResponse::OkResponse(response)))
        };
        let good = ok(|ok| {
            let append = |value| HeaderValueOption { append: Some(BoolValue { value }), ..option("x-a", "1") };
            let action =
                |action: HeaderAppendAction| HeaderValueOption { append_action: action as i32, ..option("x-a", "1") };
            ok.headers = vec![
                option("X-A", "1"),
                append(true),
                append(false),
                action(HeaderAppendAction::AddIfAbsent),
                action(HeaderAppendAction::OverwriteIfExists),
            ];
            ok.headers_to_remove = vec!["Authorization".into()];
            ok.query_parameters_to_set = vec![QueryParameter { key: "q".into(), value: "1".into() }];
            ok.query_parameters_to_remove = vec!["token".into()];
            ok.response_headers_to_add = vec![option("x-seen", "1")];
        });
        let Ok(Answer::Allowed(changes)) = good else { panic!("{good:?}") };
        let how: Vec<How> = changes.headers.iter().map(|change| change.how).collect();
        assert_eq!(how, [How::Overwrite, How::Append, How::Overwrite, How::AddIfAbsent, How::OverwriteIfExists]);
        assert_eq!((changes.remove[0].as_str(), &*changes.remove_query[0]), ("authorization", "token"));
        assert_eq!((changes.set_query.len(), changes.response.len()), (1, 1));
        for bad in [
            ok(|ok| ok.headers = vec![option(":path", "/admin")]),
            ok(|ok| ok.headers = vec![option("host", "other")]),
            ok(|ok| ok.headers = vec![option("x-a", "1\r\nx-b: 2")]),
            ok(|ok| ok.headers = vec![HeaderValueOption::default()]),
            ok(|ok| ok.headers = vec![HeaderValueOption { append_action: 9, ..option("x-a", "1") }]),
            ok(|ok| ok.headers_to_remove = vec!["host".into()]),
            ok(|ok| ok.response_headers_to_add = vec![option("content-length", "1")]),
        ] {
            assert!(matches!(bad, Err(Invalid::Header(_))), "{bad:?}");
        }
        assert_eq!(ok(|ok| ok.headers = vec![option("x-a", "1"); 101]), Err(Invalid::TooMany));
    }

    #[test]
    fn what_is_no_answer() {
        let error = Some(HttpResponse::ErrorResponse(DeniedHttpResponse::default()));
        assert_eq!(read(None, None), Err(Invalid::Empty));
        assert_eq!(read(Some(0), error.clone()), Err(Invalid::Error));
        assert_eq!(read(Some(7), error), Err(Invalid::Error));
        let yes = message(&CheckResponse { status: Some(RpcStatus::default()), http_response: None });
        assert_eq!(answer(&yes, &trailers("0")), Ok(Answer::Allowed(Changes::default())));
        assert_eq!(answer(&yes, &trailers("14")), Err(Invalid::Grpc(14)));
        assert_eq!(answer(&yes, &trailers("x")), Err(Invalid::Grpc(2)));
        assert_eq!(answer(&yes, &HeaderMap::new()), Err(Invalid::Grpc(2)), "it has broken off");
        let mut both = trailers("0");
        both.append("grpc-status", HeaderValue::from_static("7"));
        let twice = [&yes[..], &yes].concat();
        let compressed = [&[1][..], &yes[1..]].concat();
        for (body, trailers) in [
            (&b""[..], trailers("0")),
            (&yes[..4], trailers("0")),
            (&yes[..yes.len() - 1], trailers("0")),
            (&twice[..], trailers("0")),
            (&compressed[..], trailers("0")),
            (&yes[..], both),
        ] {
            assert_eq!(answer(body, &trailers), Err(Invalid::Frame), "{body:?}");
        }
        let wrong = answer(&[&[0, 0, 0, 0, 2][..], b"\x0a\x7f"].concat(), &trailers("0"));
        assert!(matches!(wrong, Err(Invalid::Decode(_))), "{wrong:?}");
    }
}
