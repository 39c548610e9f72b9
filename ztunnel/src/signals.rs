//! Requests of connections that no waypoint serves, seen in passing ([`karst_signals`]) and counted in Istio's metrics; while
//! somebody looks on, each is told to them, too. Whether a connection is watched is decided once, before its first byte; where it is
//! not, nothing is paid for it.

use crate::{
    conn::Conn,
    conns::Guard,
    state::{Service, Snapshot},
    tapped,
};
use karst_api::workload::AppProtocol;
use karst_hbone::copy::Watch;
use karst_proxy::{
    endpoints::is_waypoint,
    requests::{Counter, Kind, Placed, Table},
    tap::Taps,
};
use karst_rt::clock::Instant;
use karst_signals::{Connection, Exchange, Over};
use std::{
    cell::RefCell,
    fmt,
    rc::{Rc, Weak},
    sync::Arc,
};

/// Most kinds of answers whose series a connection keeps at hand; others are looked up each time.
const KINDS: usize = 8;

/// A connection of a pod of ours. `table`: none where requests are not counted. `inner`: the record of the other side, where that
/// is a pod of ours, too. `port`: the one that was called.
pub fn outbound(table: Option<&Arc<Table>>, guard: &Guard, inner: Option<&Guard>, port: u16) {
    let (Some(table), conn) = (table, guard.conn()) else { return };
    // A proxy tells of its own requests.
    if conn.source.as_ref().is_some_and(|s| s.native_tunnel) {
        return;
    }
    let spoken = Spoken::at(conn.service.as_deref(), |service_port, _| service_port == port);
    watch(table, spoken, guard, inner.map(Guard::conn));
}

/// A connection to a pod of ours.
pub fn inbound(table: Option<&Arc<Table>>, snapshot: impl FnOnce() -> Arc<Snapshot>, guard: &Guard) {
    let (Some(table), conn) = (table, guard.conn()) else { return };
    if is_of_waypoint(&snapshot(), conn) {
        return;
    }
    let port = conn.destination_addr.port();
    watch(table, Spoken::at(conn.service.as_deref(), |_, target| target == port), guard, None);
}

fn watch(table: &Arc<Table>, spoken: Spoken, guard: &Guard, other: Option<&Rc<Conn>>) {
    if spoken == Spoken::Other {
        return;
    }
    let conn = guard.conn();
    let signals = Signals {
        table: table.clone(),
        taps: guard.taps().clone(),
        own: Rc::downgrade(conn),
        other: other.cloned(),
        began: Instant::from_std(conn.started),
        reading: RefCell::new(Some(Box::new(Reading {
            connection: Connection::new(spoken == Spoken::Http),
            series: Vec::new(),
        }))),
    };
    conn.counts.show_to(Rc::new(signals));
}

/// Has one of the destination's waypoints opened it? Then it has counted its requests.
fn is_of_waypoint(snapshot: &Snapshot, conn: &Conn) -> bool {
    let (Some(source), Some(own)) = (&conn.source, &conn.destination) else { return false };
    let services = own.services.iter().filter_map(|(key, _)| snapshot.services.get(key));
    let mut all = services.flat_map(|s| s.waypoints.iter().map(|(g, _)| g)).chain(&own.waypoint);
    all.any(|gateway| is_waypoint(snapshot, source, gateway))
}

/// What is spoken at a port, as far as it is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoken {
    Http,
    /// Declared to be none: it is left alone.
    Other,
    Unknown,
}

impl Spoken {
    fn at(service: Option<&Service>, is_it: impl Fn(u16, u16) -> bool) -> Self {
        let Some(service) = service else { return Spoken::Unknown };
        let port = service.ports.iter().find(|(port, target)| is_it(*port, *target)).map(|(port, _)| *port);
        match service.protocols.iter().find(|(p, _)| Some(*p) == port).map(|(_, protocol)| *protocol) {
            Some(AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc) => Spoken::Http,
            Some(AppProtocol::Tcp | AppProtocol::Tls) => Spoken::Other,
            Some(AppProtocol::Unknown) | None => Spoken::Unknown,
        }
    }
}

/// At its own side, and at the other one if that is a pod of ours.
type Found = [Option<Counter>; 2];

/// What is read of a connection while it is read.
struct Reading {
    connection: Connection,
    series: Vec<(Kind, Found)>,
}

/// The requests of one connection.
struct Signals {
    table: Arc<Table>,
    taps: Arc<Taps>,
    /// The connection, whose counts have this.
    own: Weak<Conn>,
    /// The record of the other side, where that is a pod of ours, too. It may have ended a moment before.
    other: Option<Rc<Conn>>,
    began: Instant,
    /// None: no more, and nothing is kept.
    reading: RefCell<Option<Box<Reading>>>,
}

impl Signals {
    fn note(&self, what: impl FnOnce(&mut Connection)) {
        let mut place = self.reading.borrow_mut();
        let Some(reading) = &mut *place else { return };
        let Reading { connection, series } = &mut **reading;
        what(connection);
        for exchange in connection.take() {
            self.count(series, &exchange);
            self.tell(&exchange);
        }
        let Some(over) = connection.over() else { return };
        if let Over::GaveUp(surprise) = over {
            self.table.gave_up(surprise);
        }
        for counter in series.iter().flat_map(|(_, found)| found).flatten() {
            self.table.touch(counter);
        }
        *place = None;
    }

    fn count(&self, kept: &mut Vec<(Kind, Found)>, exchange: &Exchange) {
        let (kind, placed) = (Kind::from(exchange), Placed::from(exchange));
        let add = |found: &Found| found.iter().flatten().for_each(|counter| counter.add(&placed));
        if let Some((_, found)) = kept.iter().find(|(k, _)| *k == kind) {
            return add(found);
        }
        let counter = |conn: &Conn| self.table.counter(&conn.between(), kind);
        let found = [self.own.upgrade().as_deref().map(counter), self.other.as_deref().map(counter)];
        add(&found);
        if kept.len() < KINDS {
            kept.push((kind, found));
        }
    }

    /// Tells whoever looks, as each side has it that is a pod of ours.
    fn tell(&self, exchange: &Exchange) {
        // None: nobody looked when it began.
        let Some(asked) = exchange.asked.as_deref() else { return };
        let own = self.own.upgrade();
        for conn in [own.as_deref(), self.other.as_deref()].into_iter().flatten() {
            self.taps.tell(|| tapped::request(conn, exchange, asked));
        }
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signals")
    }
}

impl Watch for Signals {
    fn is_reading(&self) -> bool {
        self.reading.borrow().is_some()
    }
    fn client_sent(&self, bytes: &[u8]) {
        self.note(|c| {
            c.keep_heads(self.taps.is_looked_at());
            c.client_sent(bytes, &|| self.began.elapsed());
        });
    }
    fn server_sent(&self, bytes: &[u8]) {
        self.note(|c| c.server_sent(bytes, &|| self.began.elapsed()));
    }
    fn client_ended(&self) {
        self.note(Connection::client_ended);
    }
    fn server_ended(&self) {
        self.note(|c| c.server_ended(&|| self.began.elapsed()));
    }
    fn closed(&self) {
        self.note(|c| c.close(&|| self.began.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::Caller,
        conns::Conns,
        inpod::LocalPod,
        metrics::{Metrics, Reporter},
        outbound::{serve, tests::worker_with},
        outcome::Outcome,
        worker::Served,
    };
    use karst_api::workload as pb;
    use karst_flows::tap::Line;
    use karst_hbone::copy::Counts;
    use karst_proxy::testing::{pod, service, snapshot};
    use std::time::Instant;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        task::{LocalSet, spawn_local},
    };

    const VIP: &str = "127.0.0.9";

    /// What a client says to a service, and what it is answered; the lines of the metrics then that have `which`.
    async fn page(
        options: &[&str],
        spoken: AppProtocol,
        said: &[u8],
        answer: &'static [u8],
        which: &str,
    ) -> Vec<String> {
        let listener = TcpListener::bind((VIP, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let app = TcpListener::bind(("127.0.0.5", 0)).await.unwrap();
        let (port, target) = (u32::from(at.port()), u32::from(app.local_addr().unwrap().port()));
        let mut called = service("s", VIP, &[(port, target)]);
        called.ports[0].app_protocol = spoken as i32;
        let mut endpoint = pod("e", "127.0.0.5", &[("ns/s.ns.svc.cluster.local", &[(port, target)])]);
        endpoint.tunnel_protocol = 0;
        let mesh = snapshot(vec![pod("client", "10.0.0.9", &[]), endpoint], vec![called]);
        let (worker, _open) = worker_with(mesh, options);
        let length = said.len();
        spawn_local(async move {
            let (mut stream, _) = app.accept().await.unwrap();
            stream.read_exact(&mut vec![0; length]).await.unwrap();
            stream.write_all(answer).await.unwrap();
        });
        let mut client = TcpStream::connect(at).await.unwrap();
        let (captured, _) = listener.accept().await.unwrap();
        let from = ("10.0.0.9:4000".parse().unwrap(), Caller::Pod);
        let served = Served::new(LocalPod::test("client", "client", "uid"));
        let served = spawn_local(serve(worker.clone(), served, captured, from));
        client.write_all(said).await.unwrap();
        let mut heard = vec![];
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, answer, "nothing is changed");
        drop(client);
        served.await.unwrap();
        let all = karst_rt::exposition::page(|page| worker.shared.metrics.render(page));
        all.lines().filter(|l| l.contains(which)).map(String::from).collect()
    }

    const TWO: &[u8] = b"GET / HTTP/1.1\r\nhost: s\r\n\r\nGET / HTTP/1.1\r\nhost: s\r\n\r\n";
    const ANSWERS: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\nhello hello";

    #[tokio::test]
    async fn requests_are_counted_without_a_waypoint() {
        let run = async {
            let name = "istio_requests_total{";
            for spoken in [AppProtocol::Unknown, AppProtocol::Http11] {
                let lines = page(&[], spoken, TWO, ANSWERS, name).await;
                assert_eq!(lines.len(), 1, "{lines:?}");
                for part in [
                    "reporter=\"source\"",
                    "source_workload_namespace=\"ns\"",
                    "destination_service=\"s.ns.svc.cluster.local\"",
                    "request_protocol=\"http\",response_code=\"200\",response_flags=\"-\"",
                    "} 2",
                ] {
                    assert!(lines[0].contains(part), "{part}: {lines:?}");
                }
            }
            for (name, all) in [("istio_request_bytes_sum", TWO), ("istio_response_bytes_sum", ANSWERS)] {
                let bytes = page(&[], AppProtocol::Unknown, TWO, ANSWERS, name).await;
                assert!(bytes.len() == 1 && bytes[0].ends_with(&format!(" {}", all.len())), "{bytes:?}");
            }
            assert!(page(&[], AppProtocol::Tcp, TWO, ANSWERS, name).await.is_empty(), "declared to be none");
            assert!(
                page(&["--http-signals", "false"], AppProtocol::Http11, TWO, ANSWERS, name).await.is_empty(),
                "off"
            );
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn what_is_not_http_is_carried_and_a_surprise_is_counted() {
        let run = async {
            let name = "given_up_total{reason=\"not_http\"}";
            for (spoken, want) in [(AppProtocol::Http11, " 1"), (AppProtocol::Unknown, " 0")] {
                let lines = page(&[], spoken, b"\x16\x03\x01", b"\x15", name).await;
                assert!(lines.len() == 1 && lines[0].ends_with(want), "{lines:?}");
            }
            let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello";
            let lines = page(&[], AppProtocol::Unknown, TWO, cut, "istio_requests_total{").await;
            assert!(lines.iter().all(|l| l.contains("response_flags=\"UC\"")) && lines.len() == 2, "{lines:?}");
        };
        LocalSet::new().run_until(run).await;
    }

    /// The record of a connection to a pod behind a waypoint.
    fn inbound_from(mesh: &Snapshot, source: &str) -> Conn {
        let of = |ip: &str| mesh.workload(ip.parse().unwrap()).cloned();
        Conn {
            reporter: Reporter::Destination,
            source_addr: ([10, 0, 0, 9], 1).into(),
            destination_addr: ([10, 0, 0, 1], 80).into(),
            hbone_addr: None,
            source: of(source),
            destination: of("10.0.0.1"),
            service: None,
            mtls: true,
            source_identity: None,
            check: None,
            pod: None,
            counts: Counts::default(),
            started: Instant::now(),
            trace: Default::default(),
        }
    }

    /// Within the node one connection has two records, of which one ends first.
    #[test]
    fn what_breaks_off_is_counted_at_both_ends() {
        let mesh = snapshot(vec![pod("a", "10.0.0.1", &[]), pod("c", "10.0.0.9", &[])], vec![]);
        let conns = Conns::new(Arc::new(Metrics::default()), Taps::new(""), false);
        let [own, inner] = [Reporter::Source, Reporter::Destination]
            .map(|reporter| conns.add(Conn { reporter, ..inbound_from(&mesh, "10.0.0.9") }));
        let table = Arc::new(Table::default());
        outbound(Some(&table), &own, Some(&inner), 80);
        own.conn().counts.watch().unwrap().client_sent(TWO);
        inner.end(&Outcome::Drained);
        own.end(&Outcome::Drained);
        let page = karst_rt::exposition::page(|page| table.render(page));
        for reporter in ["source", "destination"] {
            let start = format!("istio_requests_total{{reporter=\"{reporter}\"");
            let line = page.lines().find(|line| line.starts_with(&start)).unwrap_or_default();
            assert!(line.contains("response_flags=\"UC\"") && line.ends_with("} 2"), "{reporter}: {page}");
        }
    }

    /// What `karst tap` is for without a waypoint: a request is told once, by the destination, if it began while somebody looked.
    #[tokio::test]
    async fn requests_are_told_while_somebody_looks_and_only_then() {
        let run = async {
            let mesh = snapshot(vec![pod("a", "10.0.0.1", &[]), pod("c", "10.0.0.9", &[])], vec![]);
            let (taps, table) = (Taps::new("node"), Arc::new(Table::default()));
            let conns = Conns::new(Arc::new(Metrics::default()), taps.clone(), false);
            let [own, inner] = [Reporter::Source, Reporter::Destination]
                .map(|reporter| conns.add(Conn { reporter, ..inbound_from(&mesh, "10.0.0.9") }));
            outbound(Some(&table), &own, Some(&inner), 80);
            let carried = own.conn().counts.watch().unwrap();
            carried.client_sent(b"GET /before HTTP/1.1\r\n\r\n");
            let mut looks = ["path=*&limit=3", "path=*&limit=6&all=true&query=true"].map(|q| taps.page(q).into_body());
            carried.client_sent(b"PUT /a?token=x HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n");
            for answer in ["200", "503", "404"] {
                carried.server_sent(format!("HTTP/1.1 {answer} x\r\ncontent-length: 0\r\n\r\n").as_bytes());
            }
            carried.client_sent(b"GET /c HTTP/1.1\r\n\r\n");
            carried.client_ended();
            own.end(&Outcome::Done);
            inner.end(&Outcome::Done);
            let mut told = [vec![], vec![]];
            for (lines, told) in looks.iter_mut().zip(&mut told) {
                while let Some(Ok(frame)) = http_body_util::BodyExt::frame(lines).await {
                    let line: Line = serde_json::from_slice(&frame.into_data().unwrap()).unwrap();
                    let Line::Flow(record) = line else { continue };
                    let (event, http) = (record.event(), record.http().unwrap());
                    assert_eq!((event.source.pod, event.destination.pod, event.mtls), ("c", "a", true));
                    told.push(format!(
                        "{:?} {:?} {} {} {} {}",
                        event.direction, event.verdict, event.flags, http.method, http.url, http.code
                    ));
                }
            }
            let once = ["Forwarded - PUT /a 503", "Forwarded - GET /b 404", "Error DC GET /c 0"];
            assert_eq!(told[0], once.map(|one| format!("Ingress {one}")));
            let whole = once.map(|one| one.replace("/a", "/a?token=x"));
            let both = whole.map(|one| ["Egress", "Ingress"].map(|end| format!("{end} {one}")));
            assert_eq!(told[1], both.concat());
        };
        LocalSet::new().run_until(run).await;
    }

    #[test]
    fn what_comes_from_a_waypoint_is_the_waypoints() {
        let key = "ns/wp.ns.svc.cluster.local";
        let mut called = service("s", "10.96.0.1", &[(80, 80)]);
        let host = pb::NamespacedHostname { namespace: "ns".into(), hostname: "wp.ns.svc.cluster.local".into() };
        let destination = Some(pb::gateway_address::Destination::Hostname(host));
        called.waypoint = Some(pb::GatewayAddress { destination, hbone_mtls_port: 15008 });
        let pods = vec![
            pod("a", "10.0.0.1", &[("ns/s.ns.svc.cluster.local", &[(80, 80)])]),
            pod("w", "10.0.0.50", &[(key, &[(15008, 15008)])]),
            pod("c", "10.0.0.9", &[]),
        ];
        let mesh = snapshot(pods, vec![called, service("wp", "10.96.0.50", &[(15008, 15008)])]);
        assert!(is_of_waypoint(&mesh, &inbound_from(&mesh, "10.0.0.50")));
        assert!(!is_of_waypoint(&mesh, &inbound_from(&mesh, "10.0.0.9")));
        assert!(!is_of_waypoint(&mesh, &inbound_from(&mesh, "10.9.9.9")), "nobody knows who");
    }
}
