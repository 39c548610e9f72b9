//! Follows what the kernel of each redirected pod says of its addresses and devices, and tells the pod's programs: what is
//! local is left alone, and a device that comes later is guarded as the first ones are.

use crate::sockets::PodSockets;
use karst_ebpf::{Node, PodConfig};
use karst_rt::{netlink::Watch, netns::Netns};
use std::{cell::RefCell, rc::Rc, time::Duration};
use tokio::task::AbortHandle;

/// After a change has been taken up, the next ones may wait this long: a pod that changes its addresses all the time costs
/// its node little.
const PAUSE: Duration = Duration::from_millis(10);

/// A device's name is shorter than this (IFNAMSIZ).
const MAX_NAME: usize = 16;

/// Follows one pod until dropped.
pub struct Following(AbortHandle);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A pod that is to be followed.
pub struct Followed {
    /// The node's programs.
    pub node: Rc<RefCell<Node>>,
    /// `namespace/name`, for the log.
    pub key: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Its redirection.
    pub config: PodConfig,
    /// Its listeners.
    pub sockets: Rc<PodSockets>,
}

impl Followed {
    /// Begins to follow the pod, which is redirected by now. `watch` has begun before that, so no change is missed.
    pub fn follow(self, watch: Watch) -> Following {
        Following(tokio::task::spawn_local(self.run(watch)).abort_handle())
    }

    async fn run(self, watch: Watch) {
        let mut guarded = self.sync().unwrap_or_default();
        loop {
            if let Err(e) = watch.changed().await {
                return tracing::error!(pod = self.key, error = %e, "the pod's addresses are not followed any more");
            }
            let Some(devices) = self.sync() else { continue };
            if devices.iter().any(|d| !guarded.contains(d)) {
                // The whole enrolment once more, in place: it guards what is there now.
                let again = self.node.borrow_mut().enrol(&self.netns, &self.config, &self.sockets.listeners());
                match again {
                    Ok(()) => tracing::info!(pod = self.key, ?devices, "the pod has a new device; it is guarded, too"),
                    Err(e) => tracing::warn!(pod = self.key, error = %e, "a new device of the pod cannot be guarded"),
                }
            }
            guarded = devices;
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn sync(&self) -> Option<Vec<String>> {
        match self.node.borrow().sync_local(&self.netns, &self.config) {
            Ok(devices) => Some(devices),
            Err(e) => {
                tracing::warn!(pod = self.key, error = %e, "the pod's addresses cannot be followed");
                None
            }
        }
    }
}

/// Reads a list of devices: names, with commas between.
pub fn devices(list: &str) -> Result<Vec<String>, String> {
    let names = list.split(',').map(str::trim).filter(|n| !n.is_empty());
    names
        .map(|n| {
            let good = n.len() < MAX_NAME && !n.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
            if good {
                Ok(n.to_string())
            } else {
                Err(format!("{n:?} is no name of a device, such as \"docker0,tap0\""))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_the_kernel_names_them() {
        assert_eq!(devices("").unwrap(), [""; 0]);
        assert_eq!(devices(" docker0, tap0,").unwrap(), ["docker0", "tap0"]);
        for bad in ["a b", "a/b", "eth0:1", "sixteen-letters-"] {
            assert!(devices(bad).is_err(), "{bad}");
        }
    }
}
