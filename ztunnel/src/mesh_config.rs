//! What this process takes from Istio's mesh configuration, the file `mesh` of ConfigMap `istio`: whether pods of
//! the mesh may call addresses that the mesh does not know (`outboundTrafficPolicy.mode`). The file is read at the
//! start and again when it changes. What cannot be read changes nothing: the last good mode stays in force, and log
//! and metrics say so. An option (`OUTBOUND_TRAFFIC_POLICY`) overrides the file. [`admit`] is the decision;
//! tests/world/tests/egress.rs proves it on the wire.

use crate::plan::{Plan, Refusal};
use karst_proxy::followed::{File, FileError};
use karst_rt::exposition::{Kind, Page};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// Between two looks at the file.
const LOOK: Duration = Duration::from_secs(2);
/// Port of DNS.
const DNS: u16 = 53;

/// Istio's `outboundTrafficPolicy.mode`: where pods of the mesh may connect to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// To any address; also what an empty text means.
    #[default]
    #[serde(alias = "")]
    AllowAny,
    /// Only to services and workloads that the mesh knows.
    RegistryOnly,
}

/// The part of the mesh configuration that is read here; other fields are other programs' or the controller's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MeshConfig {
    outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

#[derive(Deserialize)]
struct OutboundTrafficPolicy {
    #[serde(default)]
    mode: OutboundMode,
}

/// The mode in force, for all threads.
#[derive(Clone, Debug, Default)]
pub struct Outbound(Arc<State>);

#[derive(Debug, Default)]
struct State {
    registry_only: AtomicBool,
    /// The file is not what the mode was taken from: it cannot be read.
    stale: AtomicBool,
    /// There is no file: whatever the mesh configuration says is not known here.
    is_unseen: AtomicBool,
}

impl Outbound {
    /// A mode that stays.
    pub fn fixed(mode: OutboundMode) -> Self {
        let outbound = Self::default();
        outbound.set(mode);
        outbound
    }

    /// The mode now.
    pub fn mode(&self) -> OutboundMode {
        if self.0.registry_only.load(Relaxed) { OutboundMode::RegistryOnly } else { OutboundMode::AllowAny }
    }

    fn set(&self, mode: OutboundMode) {
        self.0.registry_only.store(mode == OutboundMode::RegistryOnly, Relaxed);
        self.0.stale.store(false, Relaxed);
    }

    /// Adds to the metrics page.
    pub fn render(&self, page: &mut Page) {
        for (name, help, value) in [
            (
                "karst_outbound_registry_only",
                "1: pods of the mesh may call only what the mesh knows (outboundTrafficPolicy REGISTRY_ONLY).",
                self.0.registry_only.load(Relaxed),
            ),
            (
                "karst_mesh_config_current",
                "0: the file with the mesh configuration is not there or cannot be read; the last good one stays in force.",
                !self.0.stale.load(Relaxed) && !self.0.is_unseen.load(Relaxed),
            ),
        ] {
            page.single(name, Kind::Gauge, help, u8::from(value));
        }
    }
}

/// May a connection go where a plan leads? Only what leads to nobody whom the mesh knows is refused, and not DNS at
/// an address of the link: the resolvers of nodes are there.
///
/// # Errors
/// That the mesh does not know the destination, and allows only others.
pub fn admit(plan: &Plan, mode: OutboundMode) -> Result<(), Refusal> {
    match (mode, plan) {
        (OutboundMode::RegistryOnly, Plan::Plain { to, workload: None, service: None }) if !is_node_dns(*to) => {
            Err(Refusal::NotInRegistry)
        }
        (OutboundMode::AllowAny | OutboundMode::RegistryOnly, _) => Ok(()),
    }
}

fn is_node_dns(to: SocketAddr) -> bool {
    let link_local = match to.ip().to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    link_local && to.port() == DNS
}

/// The mode that is asked for by option, or else by the file, which is followed. Runs in a `LocalSet`.
pub fn start(option: Option<OutboundMode>, path: Option<PathBuf>) -> Outbound {
    let (mode, path) = match (option, path) {
        (Some(mode), _) => return Outbound::fixed(mode),
        (None, None) => return Outbound::default(),
        (None, Some(path)) => (Outbound::default(), path),
    };
    let published = mode.clone();
    let mut file = File::new(path, "mesh configuration", "MESH_CONFIG_PATH");
    let mut is_known = false;
    let mut look = move || match read_anew(&mut file, &published) {
        None => {}
        Some(Ok(mode)) => {
            if mode != published.mode() {
                tracing::info!(file = %file.path().display(), ?mode, "outboundTrafficPolicy of the mesh");
            }
            published.set(mode);
            is_known = true;
        }
        Some(Err(e)) => {
            // A file that is there and was never readable may ask for the stricter mode.
            if !is_known {
                published.set(OutboundMode::RegistryOnly);
            }
            tracing::error!("{e}; outboundTrafficPolicy stays {:?}", published.mode());
            published.0.stale.store(true, Relaxed);
        }
    };
    look();
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            look();
        }
    });
    mode
}

/// Looks at the file, and notes whether there is one. (It may come later.)
fn read_anew(file: &mut File, outbound: &Outbound) -> Option<Result<OutboundMode, FileError<serde_yaml_ng::Error>>> {
    let found = file.look(read);
    let is_unseen = !file.path().exists();
    if outbound.0.is_unseen.swap(is_unseen, Relaxed) != is_unseen && is_unseen {
        let path = file.path().display();
        tracing::warn!(
            "{path}: there is no mesh configuration (MESH_CONFIG_PATH): REGISTRY_ONLY would not be in force here"
        );
    }
    found
}

/// The mode that a file says; without one, or with nothing said, any address is allowed.
fn read(text: &[u8]) -> Result<OutboundMode, serde_yaml_ng::Error> {
    let config: Option<MeshConfig> = serde_yaml_ng::from_slice(text)?;
    Ok(config.and_then(|c| c.outbound_traffic_policy).map(|p| p.mode).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_rt::exposition;

    #[test]
    fn the_mode_is_read_from_the_mesh_configuration() {
        let mode = |text: &str| read(text.as_bytes()).map_err(|e| e.to_string());
        for (text, want) in [
            ("", OutboundMode::AllowAny),
            ("rootNamespace: istio-system\ndefaultConfig: {concurrency: 2}\n", OutboundMode::AllowAny),
            ("outboundTrafficPolicy: {}\n", OutboundMode::AllowAny),
            ("outboundTrafficPolicy: {mode: ALLOW_ANY}\n", OutboundMode::AllowAny),
            ("outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\n", OutboundMode::RegistryOnly),
        ] {
            assert_eq!(mode(text), Ok(want), "{text}");
        }
        assert!(mode("outboundTrafficPolicy: {mode: registry}").unwrap_err().contains("REGISTRY_ONLY"));
        assert!(mode("outboundTrafficPolicy: [").is_err());
    }

    #[tokio::test]
    async fn a_file_that_was_never_readable_allows_only_what_is_known() {
        let file = std::env::temp_dir().join(format!("karst-mesh-config-{}", std::process::id()));
        let look = async |text: &str| {
            std::fs::write(&file, text).unwrap();
            let outbound = start(None, Some(file.clone()));
            (outbound.mode(), outbound.0.stale.load(Relaxed))
        };
        tokio::task::LocalSet::new()
            .run_until(async {
                assert_eq!(look("outboundTrafficPolicy: [").await, (OutboundMode::RegistryOnly, true));
                assert_eq!(
                    look("outboundTrafficPolicy: {mode: registry_only}").await,
                    (OutboundMode::RegistryOnly, true)
                );
                assert_eq!(look("outboundTrafficPolicy: {mode: ''}").await, (OutboundMode::AllowAny, false));
            })
            .await;
        std::fs::remove_file(&file).unwrap();
    }

    /// Without the file nothing is refused, and the metric says that what the mesh says is not known here.
    #[tokio::test]
    async fn a_file_that_is_not_there_is_told() {
        let path = std::env::temp_dir().join(format!("karst-no-mesh-config-{}", std::process::id()));
        let said = |outbound: &Outbound| {
            let page = exposition::page(|page| outbound.render(page));
            page.contains("\nkarst_mesh_config_current 1\n")
        };
        let mut file = File::new(path.clone(), "mesh configuration", "MESH_CONFIG_PATH");
        let outbound = Outbound::default();
        assert!(said(&outbound), "nobody has asked for one");
        assert_eq!(read_anew(&mut file, &outbound).unwrap().unwrap(), OutboundMode::AllowAny);
        assert!(!said(&outbound));
        std::fs::write(&path, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}").unwrap();
        assert_eq!(read_anew(&mut file, &outbound).unwrap().unwrap(), OutboundMode::RegistryOnly);
        std::fs::remove_file(&path).unwrap();
        assert!(said(&outbound), "it has come");
        assert_eq!(Outbound::default().mode(), OutboundMode::AllowAny);
    }

    #[test]
    fn only_what_nobody_knows_is_refused() {
        let plain = |to: &str| Plan::Plain { to: to.parse().unwrap(), workload: None, service: None };
        for to in ["192.0.2.1:443", "[2001:db8::1]:443", "169.254.169.254:80", "169.254.20.10:853", "192.0.2.1:53"] {
            assert_eq!(admit(&plain(to), OutboundMode::RegistryOnly), Err(Refusal::NotInRegistry), "{to}");
            assert_eq!(admit(&plain(to), OutboundMode::AllowAny), Ok(()), "{to}");
        }
        for to in ["169.254.20.10:53", "[fe80::1]:53", "[::ffff:169.254.20.10]:53"] {
            assert_eq!(admit(&plain(to), OutboundMode::RegistryOnly), Ok(()), "{to}");
        }
        // What the mesh knows, and what is refused for another reason.
        let snapshot = karst_proxy::testing::snapshot(vec![karst_proxy::testing::pod("a", "10.0.0.1", &[])], vec![]);
        let workload = snapshot.workload("10.0.0.1".parse().unwrap()).cloned();
        assert!(workload.is_some());
        let known = Plan::Plain { to: "10.0.0.1:80".parse().unwrap(), workload, service: None };
        for plan in [known, Plan::Refuse(Refusal::NoPort)] {
            assert_eq!(admit(&plan, OutboundMode::RegistryOnly), Ok(()));
        }
    }

    #[test]
    fn metrics_say_the_mode() {
        let outbound = Outbound::fixed(OutboundMode::RegistryOnly);
        outbound.0.stale.store(true, Relaxed);
        let page = exposition::page(|page| outbound.render(page));
        assert!(page.contains("\nkarst_outbound_registry_only 1\n"), "{page}");
        assert!(page.contains("\nkarst_mesh_config_current 0\n"), "{page}");
    }
}
