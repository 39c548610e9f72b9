//! Connections of a process that was killed go on, by what is known now.
//!
//! What must always hold: each is judged as one that is handed over is ([`crate::handover::resume`]), its sockets are of the pods that
//! it is said to be of, and between the addresses that policies judge; and until it goes on nothing of it is read or written. What does
//! not go on is reset.

use super::Taken;
use crate::{
    handover::{
        incoming::{Offered, Origin},
        pieces::Moved,
        take::dispatch,
    },
    inpod::LocalPods,
    worker::Shared,
};
use karst_api::handover::{Answer, Offer};
use karst_core::canonical;
use karst_hbone::{
    continuation::Token,
    copy::{Interrupted, Left, Reached},
};
use karst_rt::{
    clock::Instant,
    netns::cookie_of,
    survive::{
        claim::{self, Claim, Single},
        settle::Unaccounted,
    },
};
use prost::Message;
use socket2::SockRef;
use std::{collections::HashMap, os::fd::BorrowedFd, sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout, timeout_at},
};

/// The pods of a connection are there after this time, or it is reset. (The spare has them already, or the agent tells it at once.)
const PODS_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked whether they are.
const LOOK: Duration = Duration::from_millis(5);
/// Connections that workers are asked to take at a time.
const AT_A_TIME: usize = 64;
/// A worker that does not answer within this time will not.
const ANSWER: Duration = Duration::from_secs(10);

/// Lets them go on, and says what has become of them.
pub async fn revive(shared: &Shared, taken: Taken) {
    let Taken { connections, singles, lost, began } = taken;
    let (answers, answered) = mpsc::channel(AT_A_TIME);
    let until = began + PODS_LIMIT;
    let (netns, tally) = (HashMap::new(), Tally { unaccounted: lost as u64, ..Tally::default() });
    let mut revival = Revival { shared, answers, answered, until, asked: 0, next: 0, netns, tally };
    // Until then nothing could be judged.
    let _ = timeout_at(until, shared.configured()).await;
    let all = connections.into_iter().map(Open::Pair).chain(singles.into_iter().map(Open::Single));
    let mut waiting: Vec<(Open, Offer)> = all.filter_map(|open| revival.read(open)).collect();
    loop {
        let pods = shared.pods.load_full();
        let (ready, rest): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(_, offer)| pods_of(offer).all(|uid| pods.contains_key(uid)));
        waiting = rest;
        for (open, offer) in ready {
            revival.ask(&pods, open, offer).await;
        }
        if waiting.is_empty() || Instant::now() >= until {
            break;
        }
        sleep(LOOK).await;
    }
    for (_, offer) in &waiting {
        revival.refused(&format!("pod {} is not of this node", pods_of(offer).next().unwrap_or_default()));
    }
    drop(waiting);
    while revival.asked > 0 {
        revival.hear().await;
    }
    let Tally { resumed, refused, unaccounted, over, why } = revival.tally;
    shared.metrics.survived.refused.fetch_add(refused, Relaxed);
    shared.metrics.survived.unaccounted.fetch_add(unaccounted, Relaxed);
    let ms = began.elapsed().as_millis() as u64;
    tracing::info!(resumed, refused, unaccounted, over, why, ms, "open connections were resumed after a crash");
}

/// One of them.
enum Open {
    /// Of two sockets.
    Pair(Claim),
    /// Of one, by a tunnel.
    Single(Single),
}

impl Open {
    fn note(&self) -> &[u8] {
        match self {
            Self::Pair(claim) => &claim.note,
            Self::Single(single) => &single.note,
        }
    }

    /// May it be what is said? One by a tunnel has one end here.
    fn is_of(&self, offer: &Offer) -> bool {
        let ends = pods_of(offer).count();
        match self {
            Self::Pair(_) => !offer.tunnel && ends > 0,
            Self::Single(_) => offer.tunnel && ends == 1,
        }
    }

    /// Its sockets: of the one that has opened it and the one that serves it; None: that is elsewhere.
    fn sockets(&self, offer: &Offer) -> [Option<BorrowedFd<'_>>; 2] {
        match self {
            Self::Pair(claim) => claim.sockets().map(Some),
            Self::Single(single) if offer.source.is_some() => [Some(single.socket()), None],
            Self::Single(single) => [None, Some(single.socket())],
        }
    }

    /// How far it has come, to go on from there. None: nothing is left to be done.
    fn settle(self, offer: &Offer) -> Result<Option<Moved>, Unaccounted> {
        let single = match self {
            Self::Pair(claim) => return Ok(claim.settle()?.map(|settled| Moved::Pair(settled.into()))),
            Self::Single(single) => single,
        };
        let token = Token::from_bytes(&offer.token).ok_or(Unaccounted::Unknown)?;
        let claim::Reached { socket, taken, given, ended } = single.settle()?;
        let given = given + u64::from(ended);
        let reached = Reached { taken, given, counted: taken, sent: None, ended: false, over: false };
        let down = Left { ended, ..Left::default() };
        let client = offer.source.is_some();
        Ok(Some(Moved::Stream(Interrupted { socket, client, ended: false, down, reached: Some(reached) }, token)))
    }
}

/// What has become of them, and why the last one is reset that is.
#[derive(Debug, Default)]
struct Tally {
    resumed: u64,
    refused: u64,
    unaccounted: u64,
    over: u64,
    why: Option<String>,
}

struct Revival<'a> {
    shared: &'a Shared,
    answers: mpsc::Sender<Answer>,
    answered: mpsc::Receiver<Answer>,
    /// Nothing is waited for after this but answers.
    until: Instant,
    /// Workers that have not answered yet.
    asked: usize,
    next: u64,
    /// Namespaces of pods, by their uid; none for a pod that has none of its own.
    netns: HashMap<String, Option<u64>>,
    tally: Tally,
}

impl Revival<'_> {
    fn refused(&mut self, why: &str) {
        tracing::debug!(why, "an open connection is not resumed after a crash: it is reset");
        self.tally.refused += 1;
        self.tally.why = Some(why.into());
    }

    fn unaccounted(&mut self, why: &str) {
        tracing::debug!(why, "an open connection cannot be resumed after a crash: it is reset");
        self.tally.unaccounted += 1;
        self.tally.why = Some(why.into());
    }

    /// Whose it is said to be.
    fn read(&mut self, open: Open) -> Option<(Open, Offer)> {
        match Offer::decode(open.note()) {
            Ok(offer) if open.is_of(&offer) => Some((open, offer)),
            Ok(_) => {
                self.unaccounted("it is of no pod, or of another kind than is said");
                None
            }
            Err(e) => {
                self.unaccounted(&e.to_string());
                None
            }
        }
    }

    /// Asks a worker to take it.
    async fn ask(&mut self, pods: &LocalPods, open: Open, offer: Offer) {
        if !self.is_where_it_says(pods, &open, &offer) {
            return self.refused("its sockets are not of the pods that it is said to be of");
        }
        if !is_between(open.sockets(&offer), &offer) {
            return self.refused("its sockets are not between the addresses that it is said to be of");
        }
        let moved = match open.settle(&offer) {
            Ok(Some(moved)) => moved,
            Ok(None) => {
                self.tally.over += 1;
                return;
            }
            Err(why) => return self.unaccounted(&why.to_string()),
        };
        while self.asked >= AT_A_TIME {
            self.hear().await;
        }
        // New connections, which have waited for a process that serves, may be in front of it now. Nobody would offer it again.
        while self.shared.workers.commands().any(|queue| queue.capacity() == 0) && Instant::now() < self.until {
            sleep(LOOK).await;
        }
        let (who, arrives) = oneshot::channel();
        // It is there already, and is reset if nobody takes it.
        let _ = who.send(moved);
        self.next += 1;
        let (id, answers) = (self.next, self.answers.clone());
        match dispatch(self.shared, Offered { id, offer, answers, arrives, origin: Origin::Crash }) {
            None => self.asked += 1,
            Some(why) => self.refused(&why),
        }
    }

    /// Hears of one that was asked for.
    async fn hear(&mut self) {
        match timeout(ANSWER, self.answered.recv()).await {
            Ok(Some(Answer { refusal, .. })) => {
                self.asked -= 1;
                match refusal.is_empty() {
                    true => self.tally.resumed += 1,
                    false => self.refused(&refusal),
                }
            }
            // We have a sender ourselves, so nobody answers any more.
            Ok(None) | Err(_) => self.asked = 0,
        }
    }

    /// Are both sockets in the namespaces of the pods: of the one that has opened it and the one that serves it, or both in that of the
    /// only one?
    fn is_where_it_says(&mut self, pods: &LocalPods, open: &Open, offer: &Offer) -> bool {
        let [source, destination] = [&offer.source, &offer.destination].map(|end| end.as_ref().map(|end| &*end.pod));
        let of = [source.or(destination), destination.or(source)];
        open.sockets(offer).iter().zip(of).all(|(socket, uid)| {
            let Some(socket) = socket else { return true };
            let Some(uid) = uid else { return false };
            match self.netns_of(pods, uid) {
                Some(Some(netns)) => cookie_of(socket).is_ok_and(|own| own == netns),
                Some(None) => true,
                None => false,
            }
        })
    }

    /// None: nobody knows.
    fn netns_of(&mut self, pods: &LocalPods, uid: &str) -> Option<Option<u64>> {
        if let Some(known) = self.netns.get(uid) {
            return Some(*known);
        }
        let cookie = match &pods.get(uid)?.connector.netns {
            Some(netns) => Some(netns.cookie().ok()?),
            None => None,
        };
        self.netns.insert(uid.into(), cookie);
        Some(cookie)
    }
}

/// Are the addresses that policies will judge those that the kernel has? Who is called is the peer of the server's socket; who calls is
/// that of the client's, unless that is a pod of this node, which its namespace tells. (A socket that is closed has no peer, and nothing
/// goes on by it.)
/// Where a tunnel leads or comes from, the peer shows it again ([`crate::parking`]).
fn is_between([client, server]: [Option<BorrowedFd<'_>>; 2], offer: &Offer) -> bool {
    let is = |socket: Option<BorrowedFd<'_>>, said: &str| {
        let Some(socket) = socket else { return true };
        let Ok(peer) = SockRef::from(&socket).peer_addr() else { return true };
        let said = said.parse().ok().map(canonical);
        said.is_some() && peer.as_socket().map(canonical) == said
    };
    let Some(end) = &offer.destination else { return true };
    is(server, &end.destination_address) && (offer.source.is_some() || is(client, &end.source_address))
}

/// Those of this node that a connection is of.
fn pods_of(offer: &Offer) -> impl Iterator<Item = &str> {
    offer.source.iter().chain(&offer.destination).map(|end| &*end.pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_api::handover::End;
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
    };

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    /// What a policy allows at one address is not allowed at another because the dead process said so.
    #[test]
    fn addresses_that_are_judged_are_those_of_the_sockets() {
        let ((_caller, client), (server, _app)) = (pair(), pair());
        let end = |from: &str, to: &str| {
            Some(End { source_address: from.into(), destination_address: to.into(), ..End::default() })
        };
        let is = |source: Option<End>, destination: Option<End>| {
            is_between([Some(client.as_fd()), Some(server.as_fd())], &Offer { source, destination, ..Offer::default() })
        };
        let (from, to) = (client.peer_addr().unwrap().to_string(), server.peer_addr().unwrap());
        let (at, port) = (to.to_string(), to.port());
        assert!(is(None, end(&from, &at)) && is(None, end(&from, &format!("[::ffff:127.0.0.1]:{port}"))));
        for wrong in ["127.0.0.1:1".into(), format!("127.0.0.2:{port}"), "nowhere".into(), String::new()] {
            assert!(!is(None, end(&from, &wrong)) && !is(end("", ""), end(&from, &wrong)), "{wrong}");
            assert!(!is(None, end(&wrong, &at)), "{wrong}");
            assert!(is(end("", ""), end(&wrong, &at)), "a pod of this node: its namespace says who it is");
        }
        assert!(is(end("", ""), None), "nobody of this node is called");
    }
}
