//! Applications of tests: threads with sockets in a pod's namespace. They know nothing of the mesh.

use crate::Pod;
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// An echo server: sends every byte back, and its end of stream.
pub struct Echo {
    /// Peers that have connected, in order.
    pub peers: Arc<Mutex<Vec<SocketAddr>>>,
    /// Bytes received.
    pub bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
    pod: Pod,
}

impl Echo {
    /// Starts one at a port of the pod, on both families. What it says first is `greeting`.
    pub fn start(pod: &Pod, port: u16, greeting: &str) -> Self {
        let l = pod
            .netns()
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("the port is free"))
            .expect("the namespace can be entered");
        let (peers, bytes, stop) =
            (Arc::new(Mutex::new(vec![])), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (p, b, st, greeting) = (peers.clone(), bytes.clone(), stop.clone(), greeting.to_string());
        let thread = std::thread::spawn(move || {
            loop {
                let accepted = l.accept();
                if st.load(Ordering::Relaxed) {
                    return;
                }
                // The peer's address from here: a connection reset since has none any more.
                let Ok((s, peer)) = accepted else { continue };
                p.lock().unwrap().push(karst_core::canonical(peer));
                let (b, greeting) = (b.clone(), greeting.clone());
                std::thread::spawn(move || echo(s, &b, &greeting));
            }
        });
        Self { peers, bytes, stop, thread: Some(thread), address: (Ipv6Addr::LOCALHOST, port).into(), pod: pod.clone() }
    }
    /// The newest peer's address.
    pub fn last_peer(&self) -> Option<SocketAddr> {
        self.peers.lock().unwrap().last().copied()
    }
    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.peers.lock().unwrap().len()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accept loop.
        let _ = self.pod.netns().run(|| TcpStream::connect_timeout(&self.address, Duration::from_millis(500)));
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

fn echo(mut s: TcpStream, bytes: &AtomicU64, greeting: &str) {
    let _ = s.set_nodelay(true);
    if s.write_all(greeting.as_bytes()).is_err() {
        return;
    }
    let mut buf = vec![0; 64 << 10];
    loop {
        match s.read(&mut buf) {
            Ok(0) => {
                let _ = s.shutdown(Shutdown::Write);
                return;
            }
            Ok(n) => {
                bytes.fetch_add(n as u64, Ordering::Relaxed);
                if s.write_all(&buf[..n]).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// Sends bytes, ends, and gives what came back until the other side's end.
pub fn exchange(s: &mut TcpStream, data: &[u8]) -> std::io::Result<Vec<u8>> {
    s.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut w = s.try_clone()?;
    let owned = data.to_vec();
    let writer = std::thread::spawn(move || {
        w.write_all(&owned)?;
        w.shutdown(Shutdown::Write)
    });
    let mut out = Vec::new();
    let r = s.read_to_end(&mut out);
    let _ = writer.join();
    r.map(|_| out)
}

/// One message there and back on an open connection.
pub fn ping(s: &mut TcpStream, data: &[u8]) -> std::io::Result<()> {
    ping_within(s, data, Duration::from_secs(10))
}

/// The same; between two pieces of the answer no more than `limit` passes.
pub fn ping_within(s: &mut TcpStream, data: &[u8], limit: Duration) -> std::io::Result<()> {
    s.set_read_timeout(Some(limit))?;
    s.write_all(data)?;
    let mut got = vec![0; data.len()];
    s.read_exact(&mut got)?;
    if got == data { Ok(()) } else { Err(std::io::Error::other("other bytes came back")) }
}

/// A server of datagrams, for both families: each is answered with the server's name, a space and what came.
pub struct UdpEcho {
    /// Who has sent something, in order.
    pub peers: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Starts one at a port of the pod.
    pub fn start(pod: &Pod, port: u16, name: &str) -> Self {
        let socket = pod.netns().run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).expect("the port is free"));
        let socket = socket.expect("the namespace can be entered");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a limit");
        let (peers, stop) = (Arc::new(Mutex::new(vec![])), Arc::new(AtomicBool::new(false)));
        let (all, ends, name) = (peers.clone(), stop.clone(), name.to_string());
        let thread = std::thread::spawn(move || {
            let mut room = vec![0; 64 << 10];
            while !ends.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut room) else { continue };
                all.lock().unwrap().push(karst_core::canonical(from));
                let _ = socket.send_to(&[name.as_bytes(), b" ", &room[..length]].concat(), from);
            }
        });
        Self { peers, stop, thread: Some(thread) }
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket in a pod that sends to one address, and takes datagrams of that address only.
pub fn datagrams(from: &Pod, to: SocketAddr) -> UdpSocket {
    let own: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = from.netns().run(|| UdpSocket::bind((own, 0)).expect("a port")).expect("the namespace can be entered");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a limit");
    socket.connect(to).expect("a way there");
    socket
}

/// What is answered to a datagram, within a second.
pub fn ask(socket: &UdpSocket, text: &str) -> Option<String> {
    socket.send(text.as_bytes()).ok()?;
    let mut room = vec![0; 64 << 10];
    let length = socket.recv(&mut room).ok()?;
    Some(String::from_utf8_lossy(&room[..length]).into())
}

/// A name server: A records by name, NXDOMAIN for other names, nothing for other types.
pub fn name_server(at: &Pod, records: Vec<(&'static str, Ipv4Addr)>) {
    let s = at.netns().run(|| UdpSocket::bind("0.0.0.0:53").unwrap()).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    std::thread::spawn(move || {
        let mut b = [0; 1500];
        while let Ok((_, from)) = s.recv_from(&mut b) {
            let (mut name, mut i) = (Vec::new(), 12);
            while b[i] > 0 {
                let n = usize::from(b[i]);
                name.push(String::from_utf8_lossy(&b[i + 1..=i + n]).to_lowercase());
                i += n + 1;
            }
            let (name, end) = (name.join("."), i + 5);
            let found = records.iter().find(|(n, _)| *n == name).map(|(_, ip)| ip);
            let here = found.filter(|_| b[i + 2] == 1);
            let code = 0x80 | if found.is_some() { 0 } else { 3 };
            let mut a = [&b[..2], &[0x81, code, 0, 1, 0, u8::from(here.is_some()), 0, 0, 0, 0], &b[12..end]].concat();
            if let Some(ip) = here {
                // A pointer to the question's name; A, IN, a TTL of 60 s, four bytes.
                a.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                a.extend(ip.octets());
            }
            let _ = s.send_to(&a, from);
        }
    });
}

/// A name server on TCP, for both families: a zone transfer (AXFR) is answered in three messages with a hundred records of
/// `text` each, everything else by NXDOMAIN. A connection is served until the client's end. Gives what was asked: names and
/// types, in order.
pub fn zone_server(at: &Pod, text: &'static [u8]) -> Arc<Mutex<Vec<(String, u16)>>> {
    let l = at.netns().run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 53)).unwrap()).unwrap();
    let asked = Arc::new(Mutex::new(vec![]));
    let all = asked.clone();
    std::thread::spawn(move || {
        while let Ok((s, _)) = l.accept() {
            let all = all.clone();
            std::thread::spawn(move || {
                let _ = serve_zone(s, text, &all);
            });
        }
    });
    asked
}

fn serve_zone(mut s: TcpStream, text: &[u8], asked: &Mutex<Vec<(String, u16)>>) -> std::io::Result<()> {
    loop {
        let mut len = [0; 2];
        s.read_exact(&mut len)?;
        let mut q = vec![0; usize::from(u16::from_be_bytes(len))];
        s.read_exact(&mut q)?;
        let (mut name, mut i) = (Vec::new(), 12);
        while q[i] > 0 {
            let n = usize::from(q[i]);
            name.push(String::from_utf8_lossy(&q[i + 1..=i + n]).to_lowercase());
            i += n + 1;
        }
        let kind = u16::from_be_bytes([q[i + 1], q[i + 2]]);
        asked.lock().unwrap().push((name.join("."), kind));
        let (messages, records, code) = if kind == 252 { (3, 100, 0) } else { (1, 0, 3) };
        for _ in 0..messages {
            let mut a = [&q[..2], &[0x84, code, 0, 1, 0, records, 0, 0, 0, 0], &q[12..i + 5]].concat();
            for _ in 0..records {
                // A pointer to the question's name; TXT, IN, a TTL of 60 s, its length, the text's length.
                let n = text.len() as u8;
                a.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60, 0, n + 1, n]);
                a.extend(text);
            }
            s.write_all(&(a.len() as u16).to_be_bytes())?;
            s.write_all(&a)?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
