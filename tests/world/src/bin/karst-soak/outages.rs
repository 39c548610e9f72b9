//! Parts that are killed, stand still, lose their link, have a wrong clock or a full disk.

use crate::{
    running::{Running, outage},
    shared::Shared,
    site::Site,
};
use anyhow::Result;
use karst_world::{kill, soak::faults::Clock, stop};
use std::sync::Arc;

/// A worker that was killed, until its spare serves.
pub struct Takeover {
    node: usize,
    spare: u32,
}

impl Takeover {
    /// Kills it. There must be a spare ([`Site::has_spare`]).
    pub fn begin(site: &Site, node: usize) -> Result<Self> {
        let processes = site.world.ztunnel_children(node);
        let [worker, spare] = processes[..] else {
            anyhow::bail!("node {node}: one serves and one stands by, but there are {processes:?}");
        };
        kill(worker, libc::SIGKILL);
        Ok(Self { node, spare })
    }
}

impl Running for Takeover {
    fn poll(&mut self, site: &mut Site, _shared: &Arc<Shared>, _is_over: bool) -> Result<bool> {
        let serves = site.world.ztunnel_children(self.node).first() == Some(&self.spare);
        Ok(serves && site.is_ztunnel_ready(self.node))
    }
}

/// A node's agent is away.
pub fn without_agent(site: &mut Site, node: usize) -> Box<dyn Running> {
    site.world.stop_agent(node, libc::SIGKILL);
    outage(move |site| site.world.start_agent(node))
}

/// The controller is away.
pub fn without_controller(site: &mut Site) -> Box<dyn Running> {
    site.world.stop_controller(libc::SIGKILL);
    outage(|site| site.world.start_controller())
}

/// The controller stands still.
pub fn paused_controller(site: &Site) -> Box<dyn Running> {
    let pid = site.world.controller_pid();
    stop(pid);
    outage(move |_| {
        kill(pid, libc::SIGCONT);
        Ok(())
    })
}

/// A node has no link.
pub fn unplugged(site: &Site, node: usize) -> Result<Box<dyn Running>> {
    site.world.unplug(node, true)?;
    Ok(outage(move |site| site.world.unplug(node, false)))
}

/// A clock is wrong.
pub fn wrong_clock(site: &Site, clock: Clock, by_ms: i16) -> Result<Box<dyn Running>> {
    let ns = match clock {
        Clock::Node(node) => site.world.nodes[node].ns.clone(),
        Clock::Controller => site.world.control_ns(),
    };
    site.world.set_clock(&ns, by_ms.into())?;
    Ok(outage(move |site| site.world.set_clock(&ns, 0)))
}

/// The disk is full.
pub fn full_disk(site: &Site) -> Result<Box<dyn Running>> {
    site.world.fill_disk()?;
    Ok(outage(|site| site.world.empty_disk()))
}
