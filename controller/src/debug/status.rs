//! Whether proxies are in step: as `/debug/syncz` (a list, which istioctl and Kiali decode) and as Envoy's `ClientConfig`, which
//! `istioctl proxy-status` reads over xDS.

use super::subscribers::{Exchange, Subscriber, serving};
use karst_api::status::{ClientConfig, ConfigStatus, GenericXdsConfig, Node, UpdateFailureState};
use prost_types::{Struct, Timestamp, Value, value::Kind};
use serde_json::json;
use std::time::SystemTime;

/// The type that a [`ClientConfig`] goes by.
pub const CLIENT_CONFIG_TYPE: &str = "type.googleapis.com/envoy.service.status.v3.ClientConfig";

/// What a proxy has of a type.
fn config_status(exchange: &Exchange) -> ConfigStatus {
    match (&exchange.error, &exchange.sent, &exchange.acked) {
        (Some(_), ..) => ConfigStatus::Error,
        (None, None, _) => ConfigStatus::NotSent,
        (None, Some(sent), Some(acked)) if sent == acked => ConfigStatus::Synced,
        (None, Some(_), _) => ConfigStatus::Stale,
    }
}

/// A proxy, as `istioctl proxy-status` reads it. `version` stands in where the proxy says none.
pub fn client_config(subscriber: &Subscriber, version: &str) -> ClientConfig {
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.into())) };
    let version = if subscriber.version.is_empty() { version } else { &subscriber.version };
    let fields =
        [("CLUSTER_ID", subscriber.cluster.as_str()), ("NAMESPACE", &subscriber.namespace), ("ISTIO_VERSION", version)];
    let fields = fields.into_iter().map(|(key, value)| (key.to_string(), text(value))).collect();
    ClientConfig {
        node: Some(Node { id: subscriber.id(), cluster: String::new(), metadata: Some(Struct { fields }) }),
        generic_xds_configs: subscriber.types.iter().map(|(type_url, exchange)| generic(type_url, exchange)).collect(),
    }
}

fn generic(type_url: &str, exchange: &Exchange) -> GenericXdsConfig {
    GenericXdsConfig {
        type_url: type_url.into(),
        last_updated: exchange.sent_at.map(Timestamp::from),
        config_status: config_status(exchange).into(),
        error_state: exchange
            .error
            .as_ref()
            .map(|details| UpdateFailureState { details: details.clone(), ..Default::default() }),
        ..Default::default()
    }
}

/// `/debug/syncz`. Envoy's five types, which no proxy of ours is sent, are left empty ("NOT SENT").
pub fn syncz(subscribers: &[Subscriber], version: &str) -> serde_json::Value {
    let one = |subscriber: &Subscriber| {
        let resources: serde_json::Map<_, _> =
            subscriber.types.iter().map(|(type_url, exchange)| (type_url.clone(), resource(exchange))).collect();
        json!({
            "cluster_id": subscriber.cluster,
            "proxy": subscriber.id(),
            "proxy_type": subscriber.kind,
            "istio_version": if subscriber.version.is_empty() { version } else { &subscriber.version },
            "resources": resources,
        })
    };
    serving(subscribers).into_iter().map(one).collect()
}

fn resource(exchange: &Exchange) -> serde_json::Value {
    let mut out = serde_json::Map::new();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            out.insert(key.into(), value.into());
        }
    };
    put("sent", exchange.sent.clone());
    put("acked", exchange.acked.clone());
    put("sentTime", exchange.sent_at.map(time));
    put("lastError", exchange.error.clone());
    out.into()
}

/// RFC 3339.
pub fn time(at: SystemTime) -> String {
    karst_rt::log::timestamp(at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use prost::Message;
    use std::{collections::BTreeMap, time::Duration};

    const ADDRESS: &str = karst_api::ADDRESS_TYPE;

    fn subscriber(exchange: Exchange) -> Subscriber {
        let mut one = Subscriber::new("n".into(), "istio-system".into(), "ztunnel-x".into(), SystemTime::UNIX_EPOCH);
        (one.cluster, one.types) = ("Kubernetes".into(), BTreeMap::from([(ADDRESS.to_string(), exchange)]));
        one
    }
    fn exchange(sent: Option<&str>, acked: Option<&str>, error: Option<&str>) -> Exchange {
        let owned = |text: Option<&str>| text.map(String::from);
        let sent_at = sent.map(|_| SystemTime::UNIX_EPOCH + Duration::from_secs(60));
        Exchange { sent: owned(sent), sent_at, acked: owned(acked), error: owned(error) }
    }

    #[test]
    fn syncz_is_istios_list() {
        let page = syncz(&[subscriber(exchange(Some("2"), Some("1"), Some("no")))], "1.30.0");
        assert_eq!(
            page,
            json!([{
                "cluster_id": "Kubernetes",
                "proxy": "ztunnel-x.istio-system",
                "proxy_type": "ztunnel",
                "istio_version": "1.30.0",
                "resources": { ADDRESS: {
                    "sent": "2", "acked": "1", "sentTime": "1970-01-01T00:01:00.000000Z", "lastError": "no",
                } },
            }])
        );
        assert_eq!(syncz(&[], "1.30.0"), json!([]));
    }

    #[test]
    fn a_proxy_is_synced_when_it_has_accepted_what_was_sent_last() {
        for (given, status) in [
            (exchange(None, None, None), ConfigStatus::NotSent),
            (exchange(Some("1"), None, None), ConfigStatus::Stale),
            (exchange(Some("2"), Some("1"), None), ConfigStatus::Stale),
            (exchange(Some("2"), Some("2"), None), ConfigStatus::Synced),
            (exchange(Some("2"), Some("1"), Some("no")), ConfigStatus::Error),
        ] {
            let config = client_config(&subscriber(given), "1.30.0");
            assert_eq!(config.generic_xds_configs[0].config_status(), status);
            let back = ClientConfig::decode(&config.encode_to_vec()[..]).unwrap();
            assert_eq!(back.node.unwrap().id, "ztunnel-x.istio-system");
        }
    }
}
