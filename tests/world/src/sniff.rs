//! What passes between the nodes: an AF_PACKET socket in the fabric looks for a marker that applications put into their
//! payloads, and counts what is not HBONE.

mod packet;

use karst_rt::netns::Netns;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Counts of frames.
#[derive(Default)]
struct Counts {
    frames: AtomicU64,
    marked: AtomicU64,
    hbone: AtomicU64,
    other_tcp: AtomicU64,
    lost: AtomicU64,
}

/// Room for what comes while there is no time to look.
const BUFFER: libc::c_int = 64 << 20;

/// A running sniffer.
pub struct Sniffer {
    counts: Arc<Counts>,
    socket: Socket,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// All frames.
    pub frames: u64,
    /// Frames that hold the marker.
    pub marked: u64,
    /// TCP segments to or from port 15008.
    pub hbone: u64,
    /// TCP segments between pods on other ports.
    pub other_tcp: u64,
    /// Frames that were not looked at: there was no room for them.
    pub lost: u64,
}

impl Sniffer {
    /// Listens in a namespace for a marker.
    pub fn start(netns: &Netns, marker: &[u8]) -> Self {
        const ETH_P_ALL: u16 = 3;
        let mut s = netns
            .run(|| {
                Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ETH_P_ALL.to_be()))))
                    .expect("CAP_NET_RAW")
            })
            .expect("the namespace can be entered");
        packet::force_buffer(&s, BUFFER).expect("CAP_NET_ADMIN");
        s.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let socket = s.try_clone().expect("another descriptor");
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let (c, st, marker) = (counts.clone(), stop.clone(), marker.to_vec());
        let thread = std::thread::spawn(move || {
            let mut buf = vec![0; 70_000];
            while !st.load(Ordering::Relaxed) {
                let Ok(n) = s.read(&mut buf) else { continue };
                note(&c, &buf[..n], &marker);
            }
        });
        Self { counts, socket, stop, thread: Some(thread) }
    }
    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        std::thread::sleep(Duration::from_millis(100)); // what is in the socket's queue
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        let c = &self.counts;
        // The kernel counts from the last time on.
        c.lost.fetch_add(packet::lost(&self.socket).expect("a packet socket"), Ordering::Relaxed);
        Seen {
            frames: get(&c.frames),
            marked: get(&c.marked),
            hbone: get(&c.hbone),
            other_tcp: get(&c.other_tcp),
            lost: get(&c.lost),
        }
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

fn note(c: &Counts, f: &[u8], marker: &[u8]) {
    c.frames.fetch_add(1, Ordering::Relaxed);
    if memmem(f, marker) {
        c.marked.fetch_add(1, Ordering::Relaxed);
    }
    let port = |at: usize| f.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let tcp = match port(12) {
        Some(0x0800) if f.get(23) == Some(&6) => Some(14 + usize::from(f[14] & 0xf) * 4),
        Some(0x86dd) if f.get(20) == Some(&6) => Some(54),
        _ => None,
    };
    let Some(at) = tcp else { return };
    let ports = [port(at).unwrap_or(0), port(at + 2).unwrap_or(0)];
    if ports.contains(&15008) {
        c.hbone.fetch_add(1, Ordering::Relaxed);
    } else if !ports.contains(&15012) {
        c.other_tcp.fetch_add(1, Ordering::Relaxed);
    }
}

fn memmem(hay: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return false };
    let mut at = 0;
    while let Some(i) = hay[at..].iter().position(|b| b == first) {
        at += i;
        if hay[at..].starts_with(needle) {
            return true;
        }
        at += 1;
    }
    false
}
