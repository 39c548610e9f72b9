//! What Envoy is told beside our layer 7 proxy: its configuration as a gateway and as a waypoint, and its certificates.

use anyhow::{Context, Result};
use karst_world::Pod;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Where the servers' TLS relay to HTTP/1.1 listens.
pub const HTTP_IN_TLS: u16 = 9443;
/// Where the one to HTTP/2 does.
pub const HTTP2_IN_TLS: u16 = 9444;
const RELEASES: [&str; 2] = ["v1", "v2"];

/// A gateway.
pub struct Gateway<'a> {
    /// Both releases, whose TLS relays are called.
    pub servers: &'a [Pod; 2],
    /// What it shows to them.
    pub own: &'a Files,
    /// Where its access log is written.
    pub log: Option<PathBuf>,
    /// Where it listens.
    pub port: u16,
    /// Prefix routes of `few.example`, and of `many.example`.
    pub routes: [usize; 2],
    /// Where it ends TLS, too, and what it shows there; `grpc.example` is there with it.
    pub edge: Option<(u16, &'a Files)>,
}

impl Gateway<'_> {
    /// What Envoy is told.
    pub fn config(&self) -> Value {
        let routes = |n: usize| -> Vec<Value> {
            // As Istio and Envoy's own gateway write Gateway API's PathPrefix.
            (0..n)
                .map(|i| json!({"match": {"path_separated_prefix": format!("/r{i}")}, "route": {"cluster": "v1"}}))
                .collect()
        };
        let mut hosts = vec![
            json!({"name": "split", "domains": ["split.example"], "routes": split("")}),
            json!({"name": "few", "domains": ["few.example"], "routes": routes(self.routes[0])}),
            json!({"name": "many", "domains": ["many.example"], "routes": routes(self.routes[1])}),
        ];
        let mut clusters = self.clusters("", HTTP_IN_TLS, false);
        if self.edge.is_some() {
            hosts.push(json!({"name": "grpc", "domains": ["grpc.example"], "routes": split("grpc-")}));
            clusters.extend(self.clusters("grpc-", HTTP2_IN_TLS, true));
        }
        let http = http_manager("gateway", json!({"route_config": {"virtual_hosts": hosts}}), self.log.as_deref());
        let listener = |name: &str, port: u16, chain: Value| {
            let address = at(([0, 0, 0, 0], port).into());
            json!({"name": name, "address": address, "filter_chains": [chain]})
        };
        let mut listeners = vec![listener("web", self.port, json!({"filters": [http]}))];
        if let Some((port, files)) = self.edge {
            let tls = tls("Downstream", files, &["h2", "http/1.1"], false);
            listeners.push(listener("edge", port, json!({"transport_socket": tls, "filters": [http]})));
        }
        json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
    }

    /// Both releases, by their TLS relays at this port.
    fn clusters(&self, prefix: &str, port: u16, h2: bool) -> Vec<Value> {
        let one = |(v, p): (&&str, &Pod)| {
            cluster(&format!("{prefix}{v}"), at(p.at(port)), tls("Upstream", self.own, &[], false), h2)
        };
        RELEASES.iter().zip(self.servers).map(one).collect()
    }
}

/// What Envoy is told as a waypoint of these servers. `log`: where its access log is written.
pub fn waypoint(servers: &[Pod; 2], f: &Files, log: Option<PathBuf>) -> Value {
    let internal = |listener: &str| json!({"envoy_internal_address": {"server_listener_name": listener}});
    let raw = typed("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", json!({}));
    let pipe = typed(
        "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        json!({"transport_socket": {"name": "raw", "typed_config": raw}}),
    );
    let pipe = json!({"name": "internal", "typed_config": pipe});
    let terminate = http_manager(
        "terminate",
        json!({
            "codec_type": "HTTP2",
            "http2_protocol_options": {"allow_connect": true},
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{
                "match": {"connect_matcher": {}},
                "route": {"cluster": "main", "timeout": "0s", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
            }]}]},
        }),
        None,
    );
    let main = http_manager(
        "main",
        json!({"route_config": {"virtual_hosts": [{"name": "shop", "domains": ["*"], "routes": split("")}]}}),
        log.as_deref(),
    );
    let mut listeners = vec![
        json!({"name": "terminate", "address": at(([0, 0, 0, 0], 15008).into()), "filter_chains": [{
            "transport_socket": tls("Downstream", f, &["h2"], true), "filters": [terminate],
        }]}),
        json!({"name": "main", "internal_listener": {}, "filter_chains": [{"filters": [main]}]}),
    ];
    let mut clusters = vec![cluster("main", internal("main"), pipe.clone(), false)];
    for (v, p) in RELEASES.iter().zip(servers) {
        let (originate, tunnel) = (format!("originate-{v}"), format!("tunnel-{v}"));
        let tcp = typed(
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            json!({"stat_prefix": originate, "cluster": tunnel, "tunneling_config": {"hostname": p.at(8080).to_string()}}),
        );
        listeners.push(json!({"name": originate, "internal_listener": {}, "filter_chains": [{"filters": [{"name": "tcp", "typed_config": tcp}]}]}));
        clusters.push(cluster(v, internal(&originate), pipe.clone(), false));
        clusters.push(cluster(&tunnel, at(p.at(15008)), tls("Upstream", f, &["h2"], true), true));
    }
    let bootstrap = typed("envoy.extensions.bootstrap.internal_listener.v3.InternalListener", json!({}));
    json!({
        "bootstrap_extensions": [{"name": "internal", "typed_config": bootstrap}],
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

/// Files of a certificate: chain and key; and the roots of the mesh.
pub struct Files {
    chain: PathBuf,
    key: PathBuf,
    roots: PathBuf,
}

impl Files {
    /// Writes chain and key, PEM, in a world's directory.
    pub fn new(dir: &Path, name: &str, (chain, key): (&str, &str)) -> Result<Self> {
        let file = |what: &str| dir.join(format!("{name}-{what}.pem"));
        let own = Self { chain: file("chain"), key: file("key"), roots: dir.join("controller/root-cert.pem") };
        fs::write(&own.chain, chain)?;
        fs::write(&own.key, key)?;
        Ok(own)
    }
}

/// Writes a certificate of the world's authority for a service account.
pub fn certificate(dir: &Path, namespace: &str, account: &str) -> Result<Files> {
    let ca = dir.join("controller");
    let read = |name: &str| fs::read_to_string(ca.join(name)).with_context(|| name.to_string());
    let issuer = Issuer::from_ca_cert_pem(&read("ca-cert.pem")?, KeyPair::from_pem(&read("ca-key.pem")?)?)?;
    let mut p = CertificateParams::default();
    p.subject_alt_names = vec![SanType::URI(format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").try_into()?)];
    p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let cert = p.signed_by(&key, &issuer)?;
    Files::new(dir, account, (&cert.pem(), &key.serialize_pem()))
}

/// Envoy's `typed_config`.
fn typed(kind: &str, mut body: Value) -> Value {
    body["@type"] = json!(format!("type.googleapis.com/{kind}"));
    body
}

/// TLS 1.3 with a certificate; `checked`: the peer must have one of the mesh.
fn tls(side: &str, f: &Files, alpn: &[&str], checked: bool) -> Value {
    let mut common = json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": {"filename": f.chain}, "private_key": {"filename": f.key}}],
        "alpn_protocols": alpn,
    });
    if checked {
        common["validation_context"] = json!({
            "trusted_ca": {"filename": f.roots},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}],
        });
    }
    let mut body = json!({"common_tls_context": common});
    if side == "Downstream" {
        body["require_client_certificate"] = json!(checked);
    }
    let kind = format!("envoy.extensions.transport_sockets.tls.v3.{side}TlsContext");
    json!({"name": "tls", "typed_config": typed(&kind, body)})
}

/// `log`: where its access log is written.
fn http_manager(name: &str, mut body: Value, log: Option<&Path>) -> Value {
    if let Some(path) = log {
        let file = typed("envoy.extensions.access_loggers.file.v3.FileAccessLog", json!({ "path": path }));
        body["access_log"] = json!([{"name": "file", "typed_config": file}]);
    }
    let router = typed("envoy.extensions.filters.http.router.v3.Router", json!({}));
    body["stat_prefix"] = json!(name);
    body["http_filters"] = json!([{"name": "envoy.filters.http.router", "typed_config": router}]);
    let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    json!({"name": "http", "typed_config": typed(kind, body)})
}

fn at(a: SocketAddr) -> Value {
    json!({"socket_address": {"address": a.ip().to_string(), "port_value": a.port()}})
}

fn cluster(name: &str, address: Value, socket: Value, h2: bool) -> Value {
    let mut c = json!({
        "name": name, "type": "STATIC", "connect_timeout": "2s", "transport_socket": socket,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
    });
    if h2 {
        let options = typed(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            json!({"explicit_http_config": {"http2_protocol_options": {}}}),
        );
        c["typed_extension_protocol_options"] =
            json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options});
    }
    c
}

/// 90/10, to the clusters of both releases whose names begin so.
fn split(prefix: &str) -> Value {
    let one = |v: &str, weight: u32| json!({"name": format!("{prefix}{v}"), "weight": weight});
    json!([{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [one("v1", 90), one("v2", 10)]}}}])
}
