//! The state-of-the-world stream, for debug types only: what istioctl asks on 15012. The mesh's resources are never served here.

use super::{
    pages::{self, View},
    status::{CLIENT_CONFIG_TYPE, client_config},
    subscribers::serving,
};
use karst_api::ads::{ControlPlane, DiscoveryRequest, DiscoveryResponse};
use prost::Message;
use prost_types::Any;
use serde_json::json;
use std::time::Duration;
use tonic::Status;

/// One page, named by the request's only name.
pub const DEBUG_TYPE: &str = "istio.io/debug";
const SYNCZ_TYPE: &str = "istio.io/debug/syncz";
const CONFIG_DUMP_TYPE: &str = "istio.io/debug/config_dump";

/// How long a stream is answered; istioctl takes one answer and goes.
pub const LONGEST: Duration = Duration::from_secs(60);

/// The answer to a request. `nonce`: the number of the response on its stream.
///
/// # Errors
/// If the type is none of ours to tell.
pub fn answer(request: &DiscoveryRequest, view: &View, nonce: u64) -> Result<DiscoveryResponse, Status> {
    let resources = match request.type_url.as_str() {
        SYNCZ_TYPE => serving(&view.subscribers)
            .into_iter()
            .map(|one| Any {
                type_url: CLIENT_CONFIG_TYPE.into(),
                value: client_config(one, pages::ISTIO_LEVEL).encode_to_vec(),
            })
            .collect(),
        DEBUG_TYPE => {
            let name = request.resource_names.first().map_or("list", String::as_str);
            vec![Any { type_url: DEBUG_TYPE.into(), value: page(name, view) }]
        }
        CONFIG_DUMP_TYPE => {
            return Err(Status::unimplemented(
                "Karst sends proxies no Envoy configuration to compare with: use istioctl proxy-config or ztunnel-config, which ask the proxy itself",
            ));
        }
        other => {
            return Err(Status::invalid_argument(format!(
                "type {other:?} is not served on this stream: debug types only; proxies use the delta stream"
            )));
        }
    };
    Ok(DiscoveryResponse {
        version_info: view.version.to_string(),
        resources,
        type_url: request.type_url.clone(),
        nonce: nonce.to_string(),
        control_plane: Some(ControlPlane { identifier: identifier(&view.pod) }),
    })
}

/// Is it a request of its own, not the acknowledgement of one of the answers that were sent (nonces 1 to `sent`)? istioctl's first
/// request has a nonce, too: the time.
pub fn asks(request: &DiscoveryRequest, sent: u64) -> bool {
    let acknowledged = request.response_nonce.parse().is_ok_and(|nonce: u64| (1..=sent).contains(&nonce));
    !acknowledged && request.error_detail.is_none()
}

/// The raw page; an unknown one is told with the words that make istioctl ask for the list.
fn page(name: &str, view: &View) -> Vec<u8> {
    let (name, query) = name.split_once('?').unwrap_or((name, ""));
    match name {
        "list" => pages::index(),
        _ => match pages::page(name, query, view) {
            Some(value) => return serde_json::to_vec_pretty(&value).unwrap_or_default(),
            None => "404 page not found".into(),
        },
    }
    .into_bytes()
}

/// Who answers, as istioctl reads it for its column ISTIOD.
fn identifier(pod: &str) -> String {
    json!({ "Component": "istiod", "ID": pod, "Info": pages::build_info() }).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::{super::subscribers::Subscriber, *};
    use karst_api::status::ClientConfig;
    use std::time::SystemTime;

    fn view() -> View {
        let one = Subscriber::new("n".into(), "istio-system".into(), "zt".into(), SystemTime::UNIX_EPOCH);
        View { subscribers: vec![one], pod: "istiod-1".into(), version: 3, ..View::empty() }
    }
    fn ask(type_url: &str, names: &[&str]) -> DiscoveryRequest {
        let resource_names = names.iter().map(ToString::to_string).collect();
        DiscoveryRequest { type_url: type_url.into(), resource_names, ..Default::default() }
    }

    #[test]
    fn proxy_status_is_told_every_proxy_and_who_answers() {
        let response = answer(&ask(SYNCZ_TYPE, &[]), &view(), 1).unwrap();
        assert_eq!((response.type_url.as_str(), response.resources.len()), (SYNCZ_TYPE, 1));
        assert_eq!(response.resources[0].type_url, CLIENT_CONFIG_TYPE);
        let config = ClientConfig::decode(&response.resources[0].value[..]).unwrap();
        assert_eq!(config.node.unwrap().id, "zt.istio-system");
        let who: serde_json::Value = serde_json::from_str(&response.control_plane.unwrap().identifier).unwrap();
        assert_eq!((&who["Component"], &who["ID"]), (&json!("istiod"), &json!("istiod-1")));
        assert_eq!(who["Info"]["version"], pages::ISTIO_LEVEL);
    }

    #[test]
    fn a_page_is_told_raw() {
        let told = |name: &str| {
            let response = answer(&ask(DEBUG_TYPE, &[name]), &view(), 1).unwrap();
            String::from_utf8(response.resources[0].value.clone()).unwrap()
        };
        let page: serde_json::Value = serde_json::from_str(&told("syncz")).unwrap();
        assert_eq!(page[0]["proxy"], "zt.istio-system");
        assert_eq!(told("nonsense"), "404 page not found");
        assert!(told("list").contains("/debug/syncz"));
    }

    #[test]
    fn the_mesh_is_not_told_here() {
        for type_url in
            [karst_api::ADDRESS_TYPE, karst_api::ROUTES_TYPE, karst_api::GATEWAY_TYPE, "", "istio.io/debugx"]
        {
            let refused = answer(&ask(type_url, &[]), &view(), 1).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{type_url}");
        }
        let with = |nonce: &str| DiscoveryRequest { response_nonce: nonce.into(), ..ask(SYNCZ_TYPE, &[]) };
        assert!(asks(&with(""), 0) && asks(&with("2026-11-29 09:15:00.1 +0000 UTC m=+0.1"), 1) && asks(&with("2"), 1));
        assert!(!asks(&with("1"), 1));
    }
}
