//! Services that this proxy calls for itself: collectors of traces, providers of authorization. They are called as any other
//! destination is: by its endpoints, with the limits, the balancing and the TLS that its rules ask for.

use crate::{
    cluster::{endpoint_set::EndpointSet, key::ClusterKeyRef},
    http::names,
    snapshot::Snapshot,
    worker::Worker,
};
use http::{
    HeaderMap, HeaderValue, Request, Uri, Version, header,
    uri::{PathAndQuery, Scheme},
};
use karst_proxy::state::{Service, Workload};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

/// Longest that gRPC can say of a call's time (8 digits), in milliseconds.
const MAX_GRPC_TIMEOUT: u128 = 99_999_999;

/// The endpoints of a service that the mesh configuration names, and the address that we call it from.
pub struct OwnCall {
    pub set: Rc<EndpointSet>,
    pub from: SocketAddr,
}

impl OwnCall {
    /// Of a service, as `NAMESPACE/HOST`, or as a host that is looked for as this proxy's own namespace sees it. None: there is no
    /// such service or port.
    pub fn to(worker: &Worker, snapshot: &Arc<Snapshot>, name: &str, port: u16) -> Option<Self> {
        let own = worker.own(snapshot)?;
        let service = service(snapshot, own, name)?;
        let ip = own.ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        // A DestinationRule of this proxy's namespace counts, as for its other calls.
        let backend = snapshot.backend_by_client(&service.key);
        let client = backend.filter(|b| b.has_client(&own.namespace)).map_or("", |_| &*own.namespace);
        let subset: Arc<str> = "".into();
        let key = ClusterKeyRef { service: &service.key, port, subset: &subset, client, udp: false };
        Some(Self { set: worker.set(snapshot, key, ip)?, from: SocketAddr::new(ip, 0) })
    }
}

/// Who we are to those that we call for ourselves.
pub fn user_agent() -> HeaderValue {
    HeaderValue::from_static(concat!("karst/", env!("CARGO_PKG_VERSION")))
}

/// Says for whom and for what a request of ours is, as HTTP/2 or as HTTP/1.1 does. None: the authority is none that HTTP/2 can ask for.
pub fn address<B>(request: &mut Request<B>, is_http2: bool, authority: HeaderValue, path: PathAndQuery) -> Option<()> {
    if is_http2 {
        let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority.to_str().ok()?).path_and_query(path);
        *request.uri_mut() = uri.build().ok()?;
        *request.version_mut() = Version::HTTP_2;
    } else {
        request.headers_mut().insert(header::HOST, authority);
        *request.uri_mut() = Uri::from(path);
    }
    Some(())
}

/// Says how long a call of gRPC may take, in whole milliseconds; what is longer than gRPC can say, as the longest that it can.
pub fn insert_grpc_timeout(headers: &mut HeaderMap, time: Duration) -> Option<()> {
    let text = format!("{}m", time.as_millis().min(MAX_GRPC_TIMEOUT));
    headers.insert(names::GRPC_TIMEOUT, HeaderValue::try_from(text).ok()?);
    Some(())
}

fn service<'a>(snapshot: &'a Snapshot, own: &Workload, name: &str) -> Option<&'a Arc<Service>> {
    match name.contains('/') {
        true => snapshot.mesh.services.get(name),
        false => snapshot.mesh.host(name, &own.namespace),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn a_calls_time_is_said_in_eight_digits_at_most() {
        let day = Duration::from_secs(86_400);
        let table = [(Duration::from_micros(1500), "1m"), (day, "86400000m"), (2 * day, "99999999m")];
        for (time, want) in table {
            let mut headers = HeaderMap::new();
            insert_grpc_timeout(&mut headers, time).unwrap();
            assert_eq!(headers.get(names::GRPC_TIMEOUT).unwrap(), want, "{time:?}");
        }
    }

    #[test]
    fn a_request_says_for_whom_it_is_as_its_version_does() {
        let of = |is_http2, authority| {
            let mut request = Request::new(());
            let authority = HeaderValue::from_bytes(authority).unwrap();
            address(&mut request, is_http2, authority, PathAndQuery::from_static("/a?b"))?;
            let host = request.headers().get(header::HOST).map(|host| host.as_bytes().to_vec());
            Some((request.uri().to_string(), request.version(), host))
        };
        assert_eq!(of(true, b"a.b:80"), Some(("http://a.b:80/a?b".to_string(), Version::HTTP_2, None)));
        assert_eq!(of(false, b"a.b:80"), Some(("/a?b".to_string(), Version::HTTP_11, Some(b"a.b:80".to_vec()))));
        for odd in [&b"a b"[..], b"\xe9"] {
            assert_eq!(of(true, odd), None);
            assert_eq!(of(false, odd), Some(("/a?b".to_string(), Version::HTTP_11, Some(odd.to_vec()))));
        }
    }
}
