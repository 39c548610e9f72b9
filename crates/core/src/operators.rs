//! Values of headers with Envoy's operators (`%REQ(x-user)%`), read once: by the controller, which refuses what is not here, and by the
//! proxies, which put in what they stand for.

use crate::civil::Civil;
use std::{fmt::Write as _, time::SystemTime};

/// How the start of a request is written where nothing is said.
const START_TIME: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";

/// A part of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// As it is.
    Text(String),
    /// What an operator stands for, and how many bytes of it at most.
    Operator(Operator, Option<usize>),
}

/// What stands for something of a request or its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `REQ(NAME?OTHER)`: a header of the request, in lower case (also `:path`, `:authority`, `:method`, `:scheme`).
    Request(Header),
    /// `RESP(NAME?OTHER)`: a header of the response (also `:status`).
    Response(Header),
    /// Who calls. (No proxy before us is trusted to name another.)
    RemoteAddress(Piece),
    /// Where that has come.
    LocalAddress(Piece),
    /// The endpoint.
    UpstreamAddress(Piece),
    /// The destination, as Envoy names clusters.
    UpstreamCluster,
    /// `HTTP/1.1` or `HTTP/2`.
    Protocol,
    /// The proxy's pod.
    Hostname,
    /// The status.
    ResponseCode,
    /// Why it is that one.
    ResponseFlags,
    /// `START_TIME(FORMAT)`: when the request began, see [`time`].
    StartTime(String),
    /// The route.
    RouteName,
    /// The caller's SPIFFE id.
    PeerUriSan,
    /// The name in the TLS hello.
    ServerName,
}

/// A header, and the one that counts where it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// The other's.
    pub or: Option<String>,
}

/// What of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Address and port.
    Whole,
    /// Without the port.
    Ip,
    /// The port alone.
    Port,
}

/// Why a value cannot be taken.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum OperatorError {
    /// A sign that begins no operator.
    #[error(
        "contains a % that starts no operator: write %% for a literal %, or an operator such as %REQ(x-user)% [KARST-0025]"
    )]
    Percent,
    /// An operator that is not here.
    #[error(
        "contains the unsupported operator {0}: use REQ, RESP, DOWNSTREAM_REMOTE_ADDRESS, DOWNSTREAM_LOCAL_ADDRESS or UPSTREAM_REMOTE_ADDRESS (also with _WITHOUT_PORT), UPSTREAM_HOST, UPSTREAM_CLUSTER, PROTOCOL, HOSTNAME, RESPONSE_CODE, RESPONSE_FLAGS, START_TIME, ROUTE_NAME, DOWNSTREAM_PEER_URI_SAN or REQUESTED_SERVER_NAME [KARST-0025]"
    )]
    Unknown(String),
    /// What stands in its parentheses.
    #[error("contains the operator {0} with an invalid argument: {1} [KARST-0025]")]
    Argument(String, &'static str),
}

/// A part of a format that may have expressions, as tags of traces have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment<'a> {
    /// For [`parse`].
    Plain(&'a str),
    /// What stands in `%CEL(…)%`.
    Expression(&'a str),
}

/// The parts of a format, in their order. An expression ends at the first `)%` after its beginning.
pub fn fragments(text: &str) -> Vec<Fragment<'_>> {
    let (mut out, mut rest) = (vec![], text);
    while let Some((before, after)) = rest.split_once("%CEL(") {
        let Some((expression, next)) = after.split_once(")%") else { break };
        if !before.is_empty() {
            out.push(Fragment::Plain(before));
        }
        out.push(Fragment::Expression(expression));
        rest = next;
    }
    if !rest.is_empty() {
        out.push(Fragment::Plain(rest));
    }
    out
}

/// Reads a value.
///
/// # Errors
/// It has an operator that is not here.
pub fn parse(text: &str) -> Result<Vec<Part>, OperatorError> {
    let (mut out, mut plain, mut rest) = (vec![], String::new(), text);
    while let Some((before, after)) = rest.split_once('%') {
        plain.push_str(before);
        if let Some(next) = after.strip_prefix('%') {
            plain.push('%');
            rest = next;
            continue;
        }
        let (operator, longest, next) = one(after)?;
        if !plain.is_empty() {
            out.push(Part::Text(std::mem::take(&mut plain)));
        }
        out.push(Part::Operator(operator, longest));
        rest = next;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        out.push(Part::Text(plain));
    }
    Ok(out)
}

/// The same value with each `%` written twice that begins no operator: it stands for itself.
pub fn literal(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once('%') {
        let next = after.strip_prefix('%').or_else(|| one(after).ok().map(|(_, _, next)| next));
        out.push_str(before);
        match next {
            Some(next) => {
                out.push('%');
                out.push_str(&after[..after.len() - next.len()]);
                rest = next;
            }
            None => {
                out.push_str("%%");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The operator at the start of a text, its longest value, and what comes after it: `NAME(ARGUMENT):LENGTH%…`.
fn one(text: &str) -> Result<(Operator, Option<usize>, &str), OperatorError> {
    let name_ends = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    let (name, mut rest) = text.split_at(name_ends.ok_or(OperatorError::Percent)?);
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let (a, after) = inner.split_once(')').ok_or(OperatorError::Percent)?;
        (argument, rest) = (Some(a), after);
    }
    let mut longest = None;
    if let Some(after) = rest.strip_prefix(':') {
        let (n, _) = after.split_once('%').ok_or(OperatorError::Percent)?;
        longest = Some(n.parse().map_err(|_| OperatorError::Percent)?);
        rest = &after[n.len()..];
    }
    let rest = rest.strip_prefix('%').filter(|_| !name.is_empty()).ok_or(OperatorError::Percent)?;
    Ok((operator(name, argument)?, longest, rest))
}

fn operator(name: &str, argument: Option<&str>) -> Result<Operator, OperatorError> {
    let wrong = |why| Err(OperatorError::Argument(name.to_string(), why));
    let plain = match name {
        "REQ" | "RESP" => {
            let Some(header) = argument.and_then(header) else { return wrong("specify a header, as in REQ(x-user)") };
            return Ok(if name == "REQ" { Operator::Request(header) } else { Operator::Response(header) });
        }
        "START_TIME" => {
            let format = argument.filter(|a| !a.is_empty()).unwrap_or(START_TIME);
            return match time(format, SystemTime::UNIX_EPOCH) {
                Some(_) => Ok(Operator::StartTime(format.into())),
                None => wrong("only %Y, %y, %m, %d, %H, %M, %S, %F, %T, %s, %f, %1f to %9f, %z and %Z are supported"),
            };
        }
        "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Operator::RemoteAddress(Piece::Whole),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
            Operator::RemoteAddress(Piece::Ip)
        }
        "DOWNSTREAM_REMOTE_PORT" | "DOWNSTREAM_DIRECT_REMOTE_PORT" => Operator::RemoteAddress(Piece::Port),
        "DOWNSTREAM_LOCAL_ADDRESS" => Operator::LocalAddress(Piece::Whole),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::LocalAddress(Piece::Ip),
        "DOWNSTREAM_LOCAL_PORT" => Operator::LocalAddress(Piece::Port),
        "UPSTREAM_REMOTE_ADDRESS" | "UPSTREAM_HOST" => Operator::UpstreamAddress(Piece::Whole),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::UpstreamAddress(Piece::Ip),
        "UPSTREAM_REMOTE_PORT" => Operator::UpstreamAddress(Piece::Port),
        "UPSTREAM_CLUSTER" => Operator::UpstreamCluster,
        "PROTOCOL" => Operator::Protocol,
        "HOSTNAME" => Operator::Hostname,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_FLAGS" => Operator::ResponseFlags,
        "ROUTE_NAME" => Operator::RouteName,
        "DOWNSTREAM_PEER_URI_SAN" => Operator::PeerUriSan,
        "REQUESTED_SERVER_NAME" => Operator::ServerName,
        _ => return Err(OperatorError::Unknown(name.to_string())),
    };
    if argument.is_some() { wrong("it takes no argument") } else { Ok(plain) }
}

/// `NAME` or `NAME?OTHER`.
fn header(argument: &str) -> Option<Header> {
    // RFC 9110 §5.6.2; a colon begins the names that HTTP/2 has for parts of the first line.
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&b);
    let name = |n: &str| {
        let bare = n.strip_prefix(':').unwrap_or(n);
        (!bare.is_empty() && bare.bytes().all(token)).then(|| n.to_ascii_lowercase())
    };
    match argument.split_once('?') {
        None => Some(Header { name: name(argument)?, or: None }),
        Some((a, b)) => Some(Header { name: name(a)?, or: Some(name(b)?) }),
    }
}

/// A moment, in UTC, written as strftime(3) would, and with fractions of a second (`%3f`: milliseconds, `%f`: nanoseconds). None:
/// the format has something else.
pub fn time(format: &str, moment: SystemTime) -> Option<String> {
    let at = Civil::from(moment);
    let mut out = String::with_capacity(32);
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let _ = match rest.next()? {
            'Y' => write!(out, "{:04}", at.year),
            'y' => write!(out, "{:02}", at.year % 100),
            'm' => write!(out, "{:02}", at.month),
            'd' => write!(out, "{:02}", at.day),
            'H' => write!(out, "{:02}", at.hour),
            'M' => write!(out, "{:02}", at.minute),
            'S' => write!(out, "{:02}", at.second),
            'F' => write!(out, "{:04}-{:02}-{:02}", at.year, at.month, at.day),
            'T' => write!(out, "{:02}:{:02}:{:02}", at.hour, at.minute, at.second),
            's' => write!(out, "{}", moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()),
            'f' => write!(out, "{:09}", at.nanosecond),
            n @ '1'..='9' if rest.next() == Some('f') => {
                let digits = n.to_digit(10).unwrap_or(9);
                write!(out, "{:0width$}", at.nanosecond / 10_u32.pow(9 - digits), width = digits as usize)
            }
            'z' => out.write_str("+0000"),
            'Z' => out.write_str("UTC"),
            '%' => out.write_str("%"),
            _ => return None,
        };
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn expressions_stand_between_operators() {
        let parts = fragments("a %REQ(x)% %CEL(response.code)%%CEL(f(1))% z");
        let wanted = [
            Fragment::Plain("a %REQ(x)% "),
            Fragment::Expression("response.code"),
            Fragment::Expression("f(1)"),
            Fragment::Plain(" z"),
        ];
        assert_eq!(parts, wanted);
        assert_eq!(fragments("%CEL(a"), [Fragment::Plain("%CEL(a")], "which is no operator");
        assert!(fragments("").is_empty());
    }

    #[test]
    fn values_are_read() {
        let text = |t: &str| Part::Text(t.into());
        let req =
            |name: &str, or: Option<&str>| Operator::Request(Header { name: name.into(), or: or.map(String::from) });
        for (value, want) in [
            ("plain", vec![text("plain")]),
            ("", vec![]),
            ("50%%", vec![text("50%")]),
            ("%%REQ(x)%%", vec![text("%REQ(x)%")]),
            ("%REQ(X-User)%", vec![Part::Operator(req("x-user", None), None)]),
            ("a %REQ(:path?X)%:%REQ(b):7%c", {
                let (first, second) = (req(":path", Some("x")), req("b", None));
                let (first, second) = (Part::Operator(first, None), Part::Operator(second, Some(7)));
                vec![text("a "), first, text(":"), second, text("c")]
            }),
            (
                "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%%PROTOCOL%",
                vec![
                    Part::Operator(Operator::RemoteAddress(Piece::Ip), None),
                    Part::Operator(Operator::Protocol, None),
                ],
            ),
            ("%START_TIME%", vec![Part::Operator(Operator::StartTime(START_TIME.into()), None)]),
            ("t=%START_TIME(%s.%3f)%", {
                vec![text("t="), Part::Operator(Operator::StartTime("%s.%3f".into()), None)]
            }),
        ] {
            assert_eq!(parse(value), Ok(want), "{value}");
            assert_eq!(literal(value), value);
        }
    }

    #[test]
    fn what_is_not_here_is_refused_with_its_name() {
        for (value, want) in [
            ("50%", "starts no operator"),
            ("50% off", "starts no operator"),
            ("a%20b", "starts no operator"),
            ("%REQ(x", "starts no operator"),
            ("%REQ(x)", "starts no operator"),
            ("%PROTOCOL", "starts no operator"),
            ("%REQ(x):y%", "starts no operator"),
            ("%%%", "starts no operator"),
            ("%()%", "starts no operator"),
            ("%FOO%", "the unsupported operator FOO"),
            ("%DYNAMIC_METADATA(a:b)%", "the unsupported operator DYNAMIC_METADATA"),
            ("%REQ%", "the operator REQ with an invalid argument"),
            ("%REQ()%", "the operator REQ with an invalid argument"),
            ("%REQ(a b)%", "the operator REQ with an invalid argument"),
            ("%PROTOCOL(x)%", "it takes no argument"),
            ("%START_TIME(%Q)%", "the operator START_TIME with an invalid argument"),
        ] {
            let e = parse(value).unwrap_err().to_string();
            assert!(e.contains(want), "{value}: {e}");
        }
    }

    #[test]
    fn what_begins_no_operator_stands_for_itself() {
        for (value, want) in [
            ("50%", "50%%"),
            ("/a%20b", "/a%%20b"),
            ("%", "%%"),
            ("%%%", "%%%%"),
            ("%REQ(x", "%%REQ(x"),
            ("%FOO%bar", "%%FOO%%bar"),
            ("%REQ%REQ(x)%", "%%REQ%REQ(x)%"),
            ("%START_TIME(%Q)%", "%%START_TIME(%%Q)%%"),
            ("ü%20 %REQ(x):7%% of", "ü%%20 %REQ(x):7%%% of"),
        ] {
            assert_eq!(literal(value), want, "{value}");
            assert!(parse(want).is_ok(), "{want}");
        }
    }

    #[test]
    fn times_are_written() {
        let t = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_709_210_096_012_345_678);
        for (format, want) in [
            (START_TIME, "2024-02-29T12:34:56.012Z"),
            ("%F %T.%6f%z", "2024-02-29 12:34:56.012345+0000"),
            ("%s.%f", "1709210096.012345678"),
            ("%y%%%Z", "24%UTC"),
        ] {
            assert_eq!(time(format, t).as_deref(), Some(want));
        }
        assert_eq!((time("%", t), time("%3S", t), time("%Q", t)), (None, None, None));
    }
}
