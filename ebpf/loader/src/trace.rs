//! What the programs tell of packets that they drop or pass by: asking for it, and reading it.
//!
//! Everything is pinned for the whole node, so it works whether or not the agent runs. One process at a time: the ring buffer
//! has one reader. Nothing is told but while somebody asks, and who asks does so for a short time only, again and again: a reader
//! that was killed leaves nothing behind. Proven by tests/world (`trace`).

use crate::{Error, maps, node::key, sys};
use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf};
use karst_ebpf_common::{Addr, Counter, LAYOUT, TraceBudget, TraceRecord, TraceRequest};
use karst_rt::clock;
use std::{
    fs::{File, TryLockError},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// The maps, by name and as they are pinned.
pub(crate) const REQUEST: &str = "TRACE";
pub(crate) const BUDGET: &str = "TRACED";
pub(crate) const EVENTS: &str = "EVENTS";

/// One packet that a pod's program has dropped or passed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// The first address of the pod whose program it was.
    pub pod: Option<IpAddr>,
    /// What happened.
    pub what: Counter,
    /// From where to where; None where the packet could not be read so far. A port that could not be read is 0.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// Protocol over IP; 0 where it could not be read.
    pub protocol: u8,
    /// EtherType of the frame, or the protocol of its VLAN tag; 0 where no frame was looked at.
    pub ether_type: u16,
    /// Index of the device, in the pod's network namespace.
    pub device: u32,
}

/// What was told on the whole node since its maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Events that were told.
    pub told: u64,
    /// Events that were not: more than the rate allows, or nobody read them.
    pub withheld: u64,
}

/// The node's one reader.
pub struct Tracer {
    dir: PathBuf,
    request: Array<MapData, [u64; 4]>,
    events: RingBuf<MapData>,
    _lock: File,
}

impl Tracer {
    /// Opens the maps of a node. What others have left unread is passed over.
    ///
    /// # Errors
    /// If nothing is pinned there, or another process reads.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        // The directory itself: the lock needs no file, and goes with this process.
        let lock = File::open(dir).map_err(Error::io("cannot open", dir))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Pod("another karst-cni trace runs on this node: end it first; one whose kubectl exec was cut off ends after its time (--for, 300 s)".into()));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("cannot lock", dir)(e)),
        }
        let mut tracer = Self {
            request: open(dir, REQUEST, Map::Array)?,
            events: open(dir, EVENTS, Map::RingBuf)?,
            dir: dir.into(),
            _lock: lock,
        };
        while tracer.events.next().is_some() {}
        Ok(tracer)
    }

    /// Asks for what is dropped or passed by from now on: of one pod, by its first address, or of all.
    ///
    /// # Errors
    /// Those of writing to the map.
    pub fn ask(&mut self, pod: Option<IpAddr>, what: &[Counter], time: Duration) -> Result<(), Error> {
        let now = sys::monotonic().map_err(Error::io("cannot read the clock", &self.dir))?;
        let until = now.saturating_add(time);
        let request = TraceRequest {
            until: until.as_nanos().try_into().unwrap_or(u64::MAX),
            what: what.iter().fold(0, |bits, c| bits | 1 << *c as u32),
            pod: pod.map_or([0; 4], key),
        };
        let bad = Error::kernel("cannot ask for events", "array maps", "3.19");
        self.request.set(0, request.words(), 0).map_err(bad)
    }

    /// The next event, if there is one by now.
    ///
    /// # Errors
    /// Those of reading the clock.
    pub fn read(&mut self) -> Result<Option<Event>, Error> {
        while let Some(item) = self.events.next() {
            // What is of another layout is passed over.
            if let Some((what, record)) = TraceRecord::read(&item) {
                let now = sys::monotonic().map_err(Error::io("cannot read the clock", &self.dir))?;
                return Ok(Some(event(what, &record, now, clock::wall())));
            }
        }
        Ok(None)
    }

    /// What was told so far.
    ///
    /// # Errors
    /// See [`totals`].
    pub fn totals(&self) -> Result<Totals, Error> {
        totals(&self.dir)
    }
}

/// What the programs of a node have told so far, whoever asked.
///
/// # Errors
/// If nothing is pinned there.
pub fn totals(dir: &Path) -> Result<Totals, Error> {
    let budget: PerCpuArray<MapData, [u64; 4]> = open(dir, BUDGET, Map::PerCpuArray)?;
    let cpus = budget.get(&0, 0).map_err(Error::kernel("cannot read the trace", "per-CPU maps", "4.6"))?;
    Ok(cpus.iter().map(|w| TraceBudget::of_words(*w)).fold(Totals::default(), |t, b| Totals {
        told: t.told.wrapping_add(b.told),
        withheld: t.withheld.wrapping_add(b.withheld),
    }))
}

fn open<M: TryFrom<Map, Error = MapError>>(
    dir: &Path,
    name: &str,
    of: impl FnOnce(MapData) -> Map,
) -> Result<M, Error> {
    let path = dir.join(format!("maps-v{LAYOUT}")).join(name);
    if !path.exists() {
        return Err(Error::Pod(format!(
            "{} is not there: no pod of this node is redirected by an agent that can trace (--bpf-dir says where it keeps its maps)",
            path.display()
        )));
    }
    maps::open(&path, of)
}

/// A record in terms of user space. `mono` and `wall` are the same moment by both clocks.
fn event(what: Counter, record: &TraceRecord, mono: Duration, wall: SystemTime) -> Event {
    let ago = mono.saturating_sub(Duration::from_nanos(record.at));
    let end = |a: Addr, port: u16| Some(SocketAddr::new(ip(a)?, u16::from_be(port)));
    Event {
        at: wall.checked_sub(ago).unwrap_or(wall),
        pod: ip(record.pod),
        what,
        ends: end(record.flow.src, record.flow.sport).zip(end(record.flow.dst, record.flow.dport)),
        protocol: record.protocol,
        ether_type: u16::from_be(record.ether_type),
        device: record.device,
    }
}

/// The address that [`key`] was made from; None for what is no address.
fn ip(address: Addr) -> Option<IpAddr> {
    let [a, b, c, d] = address.map(|w| u128::from(u32::from_be(w)));
    match a << 96 | b << 64 | c << 32 | d {
        0 => None,
        bits => Some(IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_ebpf_common::Flow;

    #[test]
    fn an_address_comes_back_as_it_went_in() {
        for text in ["10.77.0.10", "fd77::a", "::1", "255.255.255.255"] {
            let given: IpAddr = text.parse().expect("an address");
            assert_eq!(ip(key(given)), Some(given));
        }
        assert_eq!(ip([0; 4]), None);
    }

    #[test]
    fn a_record_is_told_in_the_terms_of_user_space() {
        let at = |s: &str| s.parse::<IpAddr>().expect("an address");
        let mut record = TraceRecord {
            at: 5_000_000_000,
            pod: key(at("10.77.0.10")),
            flow: Flow {
                src: key(at("10.77.0.10")),
                dst: key(at("10.77.1.11")),
                sport: 40_000u16.to_be(),
                dport: 8080u16.to_be(),
            },
            device: 2,
            what: Counter::GuardDrop as u32,
            ether_type: 0x0800u16.to_be(),
            protocol: 6,
            rest: 0,
        };
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let told = event(Counter::GuardDrop, &record, Duration::from_secs(7), wall);
        let expected = Event {
            at: wall - Duration::from_secs(2),
            pod: Some(at("10.77.0.10")),
            what: Counter::GuardDrop,
            ends: Some((SocketAddr::new(at("10.77.0.10"), 40_000), SocketAddr::new(at("10.77.1.11"), 8080))),
            protocol: 6,
            ether_type: 0x0800,
            device: 2,
        };
        assert_eq!(told, expected);
        record.flow.src = [0; 4];
        assert_eq!(event(Counter::GuardDrop, &record, Duration::ZERO, wall).ends, None, "could not be read");
        assert_eq!(event(Counter::GuardDrop, &record, Duration::ZERO, wall).at, wall, "no time of the future");
    }
}
