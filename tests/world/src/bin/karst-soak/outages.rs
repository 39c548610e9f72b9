//! Parts that are killed, stand still, lose their link, have a wrong clock or a full disk.

use crate::{
    running::{Running, outage},
    shared::Shared,
    site::Site,
};
use anyhow::{Result, ensure};
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

    fn awaits(&self) -> &'static str {
        "the spare to serve"
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
    ensure!(!site.world.reaches_controller(node)?, "node {node} has no link, and reaches the controller");
    Ok(outage(move |site| site.world.unplug(node, false)))
}

/// The API server stalls.
pub fn stalled_api(site: &Site) -> Result<Box<dyn Running>> {
    site.world.stall_api(true)?;
    Ok(outage(|site| site.world.stall_api(false)))
}

/// A clock that is wrong, until its time is over and it was seen that processes go by it.
pub struct WrongClock {
    clock: Clock,
    ns: String,
    is_seen: bool,
}

impl WrongClock {
    /// It is wrong from now on.
    pub fn begin(site: &Site, clock: Clock, by_ms: i16) -> Result<Self> {
        let ns = match clock {
            Clock::Node(node) => site.world.nodes[node].ns.clone(),
            Clock::Controller => site.world.control_ns(),
        };
        site.world.set_clock(&ns, by_ms.into())?;
        Ok(Self { clock, ns, is_seen: false })
    }
}

impl Running for WrongClock {
    fn poll(&mut self, site: &mut Site, _shared: &Arc<Shared>, is_over: bool) -> Result<bool> {
        if !self.is_seen {
            let all = site.by_clock(self.clock);
            self.is_seen = !all.is_empty() && all.iter().all(|pid| site.world.goes_by_clock(*pid, &self.ns));
        }
        if is_over && self.is_seen {
            site.world.set_clock(&self.ns, 0)?;
        }
        Ok(is_over && self.is_seen)
    }

    fn awaits(&self) -> &'static str {
        if self.is_seen { "nothing" } else { "processes that go by this clock (feature testing of karst-rt)" }
    }
}

/// A disk that is full, whatever is removed from it.
pub struct FullDisk;

impl FullDisk {
    /// It is full from now on.
    pub fn begin(site: &mut Site) -> Result<Self> {
        site.set_full_disk(true);
        site.world.fill_disk()?;
        Ok(Self)
    }
}

impl Running for FullDisk {
    fn poll(&mut self, site: &mut Site, _shared: &Arc<Shared>, is_over: bool) -> Result<bool> {
        match is_over {
            true => site.world.empty_disk()?,
            false => site.world.fill_disk()?,
        }
        site.set_full_disk(!is_over);
        Ok(is_over)
    }

    fn awaits(&self) -> &'static str {
        "nothing"
    }
}
