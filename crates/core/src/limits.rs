//! Every bound of the data plane, each with what happens when it is reached.

use std::{ops::RangeInclusive, time::Duration};

/// A TCP connect to a peer or to an application; then the connection fails with `CONNECT`.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An application that has not answered a connection for this long may be one that answers elsewhere: its listeners are looked at.
pub const APART_AFTER: Duration = Duration::from_millis(500);
/// What was seen of an application's listeners counts for this long, and the kernel is asked no more often.
pub const APART_FOR: Duration = Duration::from_secs(2);
/// An endpoint that has not answered for this long gets no more time if the service has another: one lost SYN is survived
/// (it is sent again after a second), a lost node is not waited for.
pub const FIRST_TRY: Duration = Duration::from_secs(2);
/// An endpoint that could not be reached is avoided for this long, where there are others.
pub const AVOID: Duration = Duration::from_secs(10);
/// An endpoint that has not answered for this long when its client stops waiting (a timeout of a route's) could not be reached,
/// either.
pub const UNANSWERED: Duration = Duration::from_secs(1);
/// Endpoints that one worker of ztunnel avoids at a time; then the one that was avoided first is tried again.
pub const MAX_AVOIDED: usize = 1024;
/// A TLS handshake, either side; then the socket is closed.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the end of the handshake to the HTTP/2 preface of the client; then the socket is closed.
pub const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for what it needs (its own workload, a named policy, a certificate, who is at an address of a
/// pod range) before it is refused.
pub const HOLD_TIMEOUT: Duration = Duration::from_secs(5);
/// An address of a pod range at which the control plane knows of nobody is asked for again after this long, before anything goes
/// there as it is: the kubelet tells of a pod's address up to that long after the pod has it.
pub const ASK_AGAIN: Duration = Duration::from_secs(2);
/// That nobody is at an address of a pod range is believed for this long. (While the control plane is there it would tell of a pod
/// that comes.)
pub const NOBODY_FOR: Duration = Duration::from_secs(10);
/// An address of nobody's that is called is asked for again after this long, and who calls does not wait.
pub const NOBODY_AGAIN: Duration = Duration::from_secs(5);
/// Addresses of nobody's that are remembered for one pod by one worker of ztunnel; beyond, the oldest answer is forgotten.
pub const MAX_NOBODY_OF_POD: usize = 64;
/// The same for one worker of a waypoint or gateway.
pub const MAX_NOBODY: usize = 1024;
/// Between two questions to the control plane; they wait, so that pods cannot keep it busy with addresses of nobody.
pub const ASK_PAUSE: Duration = Duration::from_millis(100);
/// The same where the control plane tells only what is asked for: a connection to what was not called before waits for it.
pub const DEMAND_PAUSE: Duration = Duration::from_millis(10);
/// Names in one question; the others are in the next.
pub const MAX_ASKED: usize = 256;
/// Questions that may wait to be asked; then those who ask wait.
pub const MAX_QUESTIONS: usize = 1024;
/// Names that the connections and DNS queries of one pod may have open at the control plane; then the pod's own wait for each other.
pub const MAX_ASKING_OF_POD: usize = 64;
/// Where the control plane tells only what is asked for: the time in which uses of a name are counted as one.
pub const DEMAND_PAGE: Duration = Duration::from_secs(60);
/// A name that no connection and no query has used for so many pages is asked for no more.
pub const DEMAND_IDLE_PAGES: u32 = 10;
/// Names that a process follows; then a quarter of them is asked for no more: first those that stand for nothing, of these and of the
/// others those that were not used for the longest time.
pub const MAX_DEMAND_NAMES: usize = 16_384;
/// That a name stands for nothing is believed for this long while there is no control plane, which would tell of what comes to be
/// there; then it is unknown again, and what is called by it is refused.
pub const DEMAND_NOBODY_AWAY: Duration = Duration::from_secs(3600);
/// How long a query for a name that was not asked for before waits; then it is answered SERVFAIL, and the client asks again.
pub const DEMAND_DNS: Duration = Duration::from_secs(2);
/// How long a connection to a pod of ours waits to know who its client is, for logs and metrics alone.
pub const DEMAND_LABELS: Duration = Duration::from_millis(250);
/// Largest header list that a CONNECT may carry, in bytes; then the stream is reset.
pub const MAX_HEADER_LIST: u32 = 16 << 10;
/// HTTP/2 receive window of a stream, in bytes. The sender stops there.
pub const STREAM_WINDOW: u32 = 4 << 20;
/// HTTP/2 receive window of a connection, in bytes: several streams, so that one that stalls does not stop all.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest HTTP/2 frame that we accept, in bytes.
pub const MAX_FRAME: u32 = 1 << 20;
/// Streams that one tunnel may carry; the peer opens another tunnel.
pub const MAX_STREAMS: u32 = 200;
/// Streams that we put on one tunnel before another is opened.
pub const POOL_STREAMS: usize = 100;
/// An unused tunnel is closed after this long.
pub const POOL_IDLE: Duration = Duration::from_secs(300);
/// Bytes of one tunnel's streams that may wait to be sent; then writers wait.
pub const SEND_BUFFER: usize = 512 << 10;
/// HTTP/2 PING: sent this long after the last answer.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// HTTP/2 PING: a tunnel whose peer has not answered for this long is dead.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Ports that ztunnel takes in a pod's network namespace (Istio's). An application that has one of them keeps it; a connection
/// *to* one of them is refused, in every way, since it can only be meant for ztunnel itself.
pub mod port {
    /// Captured outbound TCP.
    pub const OUTBOUND: u16 = 15001;
    /// Captured inbound plaintext.
    pub const PLAINTEXT: u16 = 15006;
    /// HBONE.
    pub const HBONE: u16 = 15008;
    /// DNS.
    pub const DNS: u16 = 15053;
    /// All of them.
    pub const ALL: [u16; 4] = [OUTBOUND, PLAINTEXT, HBONE, DNS];
}

/// Of a process's descriptors, how many connections of one pod may use up: one part in this many (a connection has two).
const POD_SHARE: u64 = 8;
/// And all connections together: three parts in this many, so that a quarter of the descriptors is always left.
const ALL_SHARE: (u64, u64) = (3, 8);

/// Connections that one pod may have open, both directions, over all workers, in a process with so many descriptors.
pub fn connections_per_pod(descriptors: u64) -> usize {
    usize::try_from(descriptors / POD_SHARE).unwrap_or(usize::MAX).clamp(16, MAX_CONNECTIONS_PER_POD)
}
/// Of these ([`connections_per_pod`]), how many may be of one direction: whoever fills a pod from outside does not keep it from calling
/// others, and a pod that calls without end can still be called.
pub fn connections_of_direction(descriptors: u64) -> usize {
    let per_pod = connections_per_pod(descriptors);
    per_pod - per_pod / 4
}
/// And of one direction, how many one peer may have; then it is refused, and the others are not.
pub fn connections_of_peer(descriptors: u64) -> usize {
    connections_of_direction(descriptors) / 4 * 3
}
/// Connections that all pods together may have open in a process with so many descriptors.
pub fn connections(descriptors: u64) -> usize {
    usize::try_from(descriptors / ALL_SHARE.1 * ALL_SHARE.0).unwrap_or(usize::MAX).max(64)
}

/// The first byte of a handshake, from the accept on; a client has it at hand. Then the socket is closed.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(3);
/// A tunnel that has to give way (GOAWAY) may finish its streams for this long; then it is closed.
pub const GIVE_WAY_TIMEOUT: Duration = Duration::from_secs(2);
/// Open inbound tunnels of all pods of a node, over all workers; then the same as of one pod.
pub const MAX_TUNNELS_OF_NODE: usize = 65_536;
/// Open inbound tunnels per pod, over all workers; then one without streams gives way, of the peer that has the most.
pub const MAX_TUNNELS_PER_POD: usize = 4096;
/// Of these, tunnels of one peer's address; then one of its own without streams gives way, or the new one is refused.
pub const MAX_TUNNELS_PER_PEER: usize = 256;
/// Tunnels per pod that are still in the handshake, over all workers; then the oldest gives way, of the source that has
/// the most. So peers that never speak keep nobody out, and cannot use up the descriptors of their neighbours.
pub const MAX_HANDSHAKES_PER_POD: usize = 512;
/// The same of all pods of a node.
pub const MAX_HANDSHAKES_OF_NODE: usize = 4 * MAX_HANDSHAKES_PER_POD;
/// Connections per pod, both directions, over all workers; more are refused with a metric.
pub const MAX_CONNECTIONS_PER_POD: usize = 16_384;
/// Peer resets of streams that are not yet accepted; then the tunnel is closed (CVE-2023-44487).
pub const MAX_PENDING_RESETS: usize = 20;
/// Pause after an accept error that will not go away by itself (descriptors used up).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Queue of a listening socket.
pub const BACKLOG: i32 = 4096;
/// Largest DNS message that is taken or forwarded over UDP, in bytes.
pub const DNS_MAX_UDP: usize = 4096;
/// DNS queries that one pod may have waiting upstream; more are dropped (the resolver asks again).
pub const DNS_MAX_PENDING: usize = 512;
/// How long an upstream resolver may take.
pub const DNS_TIMEOUT: Duration = Duration::from_secs(5);

/// Datagrams of one socket that are received or sent in one system call; then other sockets of the worker have their turn.
pub const UDP_BATCH: usize = 16;
/// A UDP session that is silent for this long ends, where nothing else is configured (Envoy: 60 s).
pub const UDP_IDLE: Duration = Duration::from_secs(60);
/// The same while the process drains: who asks once has its answer by then.
pub const UDP_DRAIN_IDLE: Duration = Duration::from_secs(1);
/// UDP sessions of a process whose client has not sent anything after an answer: its address may be forged. Then the oldest gives way,
/// of the source that has the most.
pub const MAX_UDP_NEW: usize = 8192;
/// UDP sessions of a process whose client has; then the same.
pub const MAX_UDP_SESSIONS: usize = 32_768;

/// Tunnels to a waypoint or gateway whose peers have shown who they are, over all workers; then one without streams gives way, of the
/// peer that has the most.
pub const MAX_TUNNELS: usize = 16_384;
/// Of these, one peer may have one part in this many; then one of its own without streams gives way, or the new one is refused.
const PEER_SHARE: usize = 8;
/// Tunnels to a waypoint or gateway that are still in the handshake, over all workers: as many as a ztunnel takes for all pods of its
/// node. Then the oldest gives way, of the source that has the most.
pub const MAX_HANDSHAKES: usize = MAX_HANDSHAKES_OF_NODE;
/// Connections to a gateway's ports that have not greeted yet (TLS is not done, no request has begun), over all workers; then the
/// oldest gives way, of the client that has the most. As many again where a proxy has named the client (the PROXY protocol).
pub const MAX_GREETINGS: usize = 2048;
/// Connections to a gateway's ports that have greeted, over all workers; then one without a request gives way, of the client that has
/// the most.
pub const MAX_FROM_OUTSIDE: usize = 65_536;

/// The least of each kind that a waypoint or gateway takes: one with few descriptors serves anybody at all.
const LEAST: usize = 64;
/// The same of a ztunnel.
const LEAST_TUNNELS: usize = 32;

/// Of a process's descriptors one part in so many, within these bounds.
fn part(descriptors: u64, of: u64, within: RangeInclusive<usize>) -> usize {
    usize::try_from(descriptors / of).unwrap_or(usize::MAX).clamp(*within.start(), *within.end())
}

// How a ztunnel divides its descriptors among those that call its pods. Those of one pod are among those of all; together they are at
// most a fifth: the rest is for connections ([`connections`]).

/// Tunnels in the handshake that one pod of a ztunnel with so many descriptors may have: 1/32 of them.
pub fn handshakes_of_pod(descriptors: u64) -> usize {
    part(descriptors, 32, LEAST_TUNNELS..=MAX_HANDSHAKES_PER_POD)
}
/// And all its pods together: as much, which is more where there are many descriptors.
pub fn handshakes_of_node(descriptors: u64) -> usize {
    part(descriptors, 32, LEAST_TUNNELS..=MAX_HANDSHAKES_OF_NODE)
}
/// Tunnels that one pod of a ztunnel with so many descriptors may have: 1/8 of them.
pub fn tunnels_of_pod(descriptors: u64) -> usize {
    part(descriptors, 8, LEAST_TUNNELS..=MAX_TUNNELS_PER_POD)
}
/// And all its pods together: as much, which is more where there are many descriptors.
pub fn tunnels_of_node(descriptors: u64) -> usize {
    part(descriptors, 8, LEAST_TUNNELS..=MAX_TUNNELS_OF_NODE)
}
/// And of these one peer: a quarter.
pub fn tunnels_of_node_of_peer(descriptors: u64) -> usize {
    tunnels_of_node(descriptors) / 4
}
/// Connections without a tunnel to one pod, of all clients: as many as one peer may have by tunnels, so that some are left to tunnels.
pub fn plaintext(descriptors: u64) -> usize {
    connections_of_peer(descriptors)
}
/// And of these one client: 7/8, so that some are left to whoever else comes.
pub fn plaintext_of_client(descriptors: u64) -> usize {
    let all = plaintext(descriptors);
    all - all / 8
}

// How a waypoint or gateway divides its descriptors. With the second table of greetings these are at most three quarters: the rest is
// for what is sent on, which has a connection of its own only where it shares none.

/// Tunnels in the handshake that a waypoint or gateway with so many descriptors may have: 1/32 of them. They last a few milliseconds,
/// or [`FIRST_BYTE_TIMEOUT`].
pub fn handshakes(descriptors: u64) -> usize {
    part(descriptors, 32, LEAST..=MAX_HANDSHAKES)
}
/// Tunnels that a waypoint or gateway with so many descriptors may have: 1/8 of them, as a pod of a ztunnel.
pub fn tunnels(descriptors: u64) -> usize {
    part(descriptors, 8, LEAST..=MAX_TUNNELS)
}
/// And of these one peer.
pub fn tunnels_of_peer(descriptors: u64) -> usize {
    tunnels(descriptors) / PEER_SHARE
}
/// Connections from outside that have not greeted, of a gateway with so many descriptors: 1/16 of them.
pub fn greetings(descriptors: u64) -> usize {
    part(descriptors, 16, LEAST..=MAX_GREETINGS)
}
/// Connections from outside that have, of a gateway with so many descriptors: 1/4 of them, since that is what a gateway is for.
pub fn connections_from_outside(descriptors: u64) -> usize {
    part(descriptors, 4, LEAST..=MAX_FROM_OUTSIDE)
}
/// UDP sessions of a process with so many descriptors (a session has one): those that have shown that their client gets answers (1/8),
/// and those that have not (1/16).
pub fn udp_sessions(descriptors: u64) -> (usize, usize) {
    (part(descriptors, 8, LEAST..=MAX_UDP_SESSIONS), part(descriptors, 16, LEAST..=MAX_UDP_NEW))
}

/// Work is counted in bytes: those that are moved, and for what moves none as many as take as long. What a pod (at a waypoint or
/// gateway: a caller) may do in one worker before others have their turn; shared by those that wait, if there are several. It takes
/// about 0.1 ms, which is then the longest time that one of them keeps the others waiting.
pub const TURN: usize = 256 << 10;
/// However many wait, a turn is not shorter: to change costs more than such a turn.
pub const TURN_LEAST: usize = 128 << 10;
/// A turn while nobody else has anything to do: then it only costs a look at the sockets.
pub const TURN_ALONE: usize = 2 << 20;
/// Bytes that are moved at once while others have something to do. (Alone: as many as there is room for. Fewer would cost bulk streams
/// more than they would spare the others, who wait for a turn anyway.)
pub const TURN_BYTES: usize = 128 << 10;
/// One poll of a task, beside the bytes that it moves: about 3 us.
pub const TURN_POLL: usize = 8 << 10;
/// A datagram that is sent on, beside its bytes: about 1.5 us.
pub const TURN_DATAGRAM: usize = 4 << 10;
/// A connection that is accepted: the system calls.
pub const TURN_ACCEPT: usize = 16 << 10;
/// A TLS handshake, either side: about 0.4 ms. It cannot be interrupted, so its pod waits the longer afterwards.
pub const TURN_HANDSHAKE: usize = 1 << 20;
/// Most work that is held against a pod later on; the rest is forgiven.
pub const TURN_DEBT: usize = 4 << 20;
/// Who has taken longer than this for a turn's work waits for nobody: in that time the others have had their turns.
pub const TURN_WINDOW: Duration = Duration::from_millis(2);
/// After somebody else's turn, so many polls of one pod count as in company: its turns are the short ones.
pub const TURN_COMPANY: u32 = 256;
// There is room in a turn for some work of every kind; a record of TLS is read whole; and what cannot be interrupted is held against
// who has done it.
const _: () = {
    assert!(TURN_LEAST >= TURN_BYTES && TURN_LEAST >= 4 * TURN_POLL && TURN >= TURN_LEAST && TURN_ALONE >= TURN);
    assert!(TURN_BYTES > 2 * (16 << 10));
    assert!(TURN_DEBT >= TURN_HANDSHAKE + SEND_BUFFER);
};
/// Connections that one listener accepts in one go; then the other listeners of the worker have their turn.
pub const ACCEPTS: usize = 8;
/// Callers of a waypoint or gateway that one worker tells apart at a time; those beyond have one turn together.
pub const MAX_CALLERS: usize = 4096;

/// Bytes that peers of one pod's tunnels may send before its applications take them: of all tunnels to it, and of those that one worker
/// has for it to others. Beyond, further tunnels get smaller windows ([`connection_window`]), and their peers wait earlier.
pub const POD_BUFFERS: usize = 64 << 20;
/// The smallest receive window of a tunnel, in bytes: its streams still have 64 KiB each, and one that stalls does not stop all.
pub const LEAST_CONNECTION_WINDOW: u32 = 256 << 10;
/// Tunnels that one worker keeps for one pod towards others without a stream on them; beyond, those that were unused for the longest
/// time are closed. (With streams they are counted as connections.)
pub const MAX_IDLE_TUNNELS_OF_POD: usize = 256;
/// An unused tunnel is closed after this long where there is another one to the same place: what a flood has opened goes soon.
pub const POOL_SURPLUS_IDLE: Duration = Duration::from_secs(10);

/// The receive window of one more tunnel of a pod that has so many in its worker, where it would be `wanted` if it were the only one.
pub fn connection_window(wanted: u32, tunnels: usize) -> u32 {
    let share = u32::try_from(POD_BUFFERS / tunnels.saturating_add(1)).unwrap_or(u32::MAX);
    wanted.min(share).max(LEAST_CONNECTION_WINDOW.min(wanted))
}

/// Values that one rate limit with keys tells apart in a waypoint or gateway; above, idle ones are forgotten, and if none is, new ones
/// are one: clients choose values.
pub const LIMIT_VALUES: usize = 10_000;
/// Buckets that one replica keeps of rate limits that all count together: 1 MiB (16 bytes each), made when the first limit is shared.
/// A bucket whose few places are all others' is one with the first of these: nobody gets more by that.
pub const QUOTA_BUCKETS: usize = 1 << 16;
/// Buckets of other replicas that one worker keeps leases of; requests of others are counted where they are.
pub const QUOTA_LEASES: usize = 10_000;
/// Requests that wait in one worker for one bucket of another replica; more are counted where they are.
pub const QUOTA_WAITING: usize = 1024;
/// Buckets that one worker has not asked one other replica about yet; requests of more are counted where they are.
pub const QUOTA_QUESTIONS: usize = 1024;
/// A request waits for another replica's answer about its bucket at most so long; then it is counted where it is.
pub const QUOTA_WAIT: Duration = Duration::from_millis(20);
/// One question to another replica and its answer, with the connection if there is none yet; then that replica is away.
pub const QUOTA_EXCHANGE: Duration = Duration::from_secs(1);
/// A replica that is away is not asked for so long.
pub const QUOTA_AWAY: Duration = Duration::from_secs(1);
/// Leased tokens that were not used after this time go back: what one replica does not need, another has soon.
pub const QUOTA_LEASE: Duration = Duration::from_secs(1);
/// A bucket that had no token is asked about again after this time at the latest: others may have given some back.
pub const QUOTA_AGAIN: Duration = Duration::from_millis(100);

/// Tokens of end users whose verification one worker remembers, in each of two generations; what was not asked for falls out, and is
/// verified anew.
pub const TOKENS: usize = 2048;
/// The same in bytes, as the tokens were sent. (Their claims, as read, take some times that.)
pub const TOKEN_BYTES: usize = 2 << 20;
/// Answers of external authorization that one worker keeps, in each of two generations; what was not asked for falls out, and is asked
/// about anew.
pub const KEPT_ANSWERS: usize = 2048;
/// The same in bytes, with what holds them.
pub const KEPT_ANSWERS_BYTES: usize = 2 << 20;
/// The largest answer that is kept, in bytes.
pub const KEPT_ANSWER_BYTES: usize = 64 << 10;

/// Lines of the log that may wait to be written; then lines are lost, and counted: who reads the log slowly, or not at all, holds up
/// nobody's bytes.
pub const LOG_LINES: usize = 10_000;
/// Of these, lines of one pod's connections (ztunnel).
pub const LOG_LINES_OF_POD: usize = LOG_LINES / 4;

/// How often it is looked whether a flood has ended, whose memory is then given back to the system.
pub const EBB_LOOK: Duration = Duration::from_secs(5);
/// So many connections fewer than there were at most, and fewer than half of them: that was a flood.
pub const EBB_CONNECTIONS: usize = 256;
/// A process that has had processors for this long between two looks works; so does one that starts.
pub const EBB_WORK: Duration = Duration::from_millis(500);
/// One that has worked, and has had them for no longer than this, rests: what the work has freed is given back, too.
pub const EBB_REST: Duration = Duration::from_millis(50);

/// Flows that a proxy remembers, over all workers ([`flows_per_worker`]); then the one that was not seen for the longest time makes
/// room.
pub const FLOWS: usize = 4096;
/// And each worker at least so many, whatever the number of workers.
pub const FLOWS_OF_WORKER: usize = 256;
/// Of one worker's, flows with paths of one service; then its new paths are one flow for each caller and method.
pub const FLOWS_PER_SERVICE: usize = 128;
/// Most bytes of one remembered flow, whatever names and paths are like; usually about 500.
pub const FLOW_BYTES: usize = 5 << 10;
/// Of its example, the longest path, in bytes; a longer one is cut.
pub const FLOW_PATH: usize = 256;
/// Of its example, the longest host, in bytes; a longer one is cut.
pub const FLOW_HOST: usize = 256;
/// The longest method, in bytes; longer ones that begin alike are one.
pub const FLOW_METHOD: usize = 32;
/// The longest identity of a flow that is remembered, in bytes: more than names of Kubernetes can make.
pub const FLOW_IDENTITY: usize = 640;
/// The same of each other name.
pub const FLOW_NAME: usize = 320;

/// Lookers (`karst tap`, `karst top`) that a proxy tells of its traffic at a time; a further one is refused.
pub const TAP_LOOKERS: usize = 4;
/// Records that may wait to be sent to one looker; beyond, they are lost, and the stream says how many.
pub const TAP_QUEUE: usize = 1024;
/// Records that one looker is sent in a second; more wait, and then are lost.
pub const TAP_RATE: u32 = 1000;
/// Most records of one stream: those of [`TAP_TIME`] at [`TAP_RATE`]; then it ends.
pub const TAP_RECORDS: u64 = 2_000_000;
/// The same, where the looker does not say.
pub const TAP_RECORDS_UNASKED: u64 = 1000;
/// Longest time of one stream; then it ends.
pub const TAP_TIME: Duration = Duration::from_secs(1800);
/// The same, where the looker does not say.
pub const TAP_TIME_UNASKED: Duration = Duration::from_secs(300);
/// A stream on which nothing happens says this often that its proxy is there, and finds out whether its looker is.
pub const TAP_BEAT: Duration = Duration::from_secs(5);
/// Longest text of a peer's in one record, in bytes; a longer one is cut.
pub const TAP_TEXT: usize = 1024;

/// Flows that one of so many workers remembers.
pub fn flows_per_worker(workers: usize) -> usize {
    (FLOWS / workers.max(1)).max(FLOWS_OF_WORKER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_of_a_pod_share_its_buffers() {
        let windows =
            |tunnels: usize| (0..tunnels).map(|n| connection_window(CONNECTION_WINDOW, n) as usize).sum::<usize>();
        assert_eq!(windows(4), 4 * CONNECTION_WINDOW as usize, "a few have all they want");
        // However many, each has the least one, and together a few times the share: not as many times as there are tunnels.
        assert!(windows(MAX_TUNNELS_PER_PEER) < 8 * POD_BUFFERS, "{}", windows(MAX_TUNNELS_PER_PEER));
        assert!(windows(MAX_TUNNELS_PER_POD) < 24 * POD_BUFFERS, "{}", windows(MAX_TUNNELS_PER_POD));
        assert_eq!(connection_window(CONNECTION_WINDOW, usize::MAX), LEAST_CONNECTION_WINDOW);
        assert_eq!(connection_window(1000, 100_000), 1000, "never more than was asked for");
    }

    #[test]
    fn a_ztunnels_parts_are_those_of_its_descriptors_within_their_bounds() {
        let parts = |d| [handshakes_of_pod(d), handshakes_of_node(d), tunnels_of_pod(d), tunnels_of_node(d)];
        assert_eq!(parts(0), [32; 4]);
        assert_eq!(parts(2048), [64, 64, 256, 256]);
        assert_eq!(parts(65_536), [512, 2048, 4096, 8192]);
        let most = [MAX_HANDSHAKES_PER_POD, MAX_HANDSHAKES_OF_NODE, MAX_TUNNELS_PER_POD, MAX_TUNNELS_OF_NODE];
        assert_eq!(parts(u64::MAX), most);
        assert_eq!([tunnels_of_node_of_peer, plaintext, plaintext_of_client].map(|of| of(2048)), [64, 144, 126]);
    }

    #[test]
    fn what_comes_to_a_gateway_leaves_descriptors_for_what_it_sends_on() {
        for descriptors in [1024, 4096, 65_536, 1 << 20, 1 << 30] {
            let (proven, new) = udp_sessions(descriptors);
            let tcp = handshakes(descriptors) + tunnels(descriptors) + connections_from_outside(descriptors);
            let all = tcp + 2 * greetings(descriptors) + proven + new;
            assert!(all as u64 <= descriptors / 4 * 3, "{all} of {descriptors}");
            assert!(8 * tunnels_of_peer(descriptors) <= tunnels(descriptors), "{descriptors}");
        }
        assert_eq!([handshakes(65_536), tunnels(65_536), greetings(65_536)], [2048, 8192, 2048]);
        assert_eq!((connections_from_outside(65_536), tunnels_of_peer(65_536)), (16_384, 1024));
        let most = [handshakes(u64::MAX), tunnels(u64::MAX), greetings(u64::MAX), connections_from_outside(u64::MAX)];
        assert_eq!(most, [MAX_HANDSHAKES, MAX_TUNNELS, MAX_GREETINGS, MAX_FROM_OUTSIDE]);
        assert_eq!([handshakes(0), tunnels(0), greetings(0), connections_from_outside(0)], [64; 4]);
    }
}
