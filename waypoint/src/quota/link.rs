//! How a worker asks the replicas that keep buckets: one task for each of them, which gathers questions while one is under way, and
//! sends them together.

use crate::{
    downstream::stream::Io,
    quota::{
        counts::By,
        frame::{self, Ask},
        keeper::AUTHORITY,
        lease::{Health, Leased, Link, Terms, Verdict},
        table::Grant,
    },
    route::{
        bucket::Bucket,
        limit::{self, Limit},
    },
    snapshot::Snapshot,
    upstream::connector::Connector,
    worker::Worker,
};
use http::HeaderMap;
use karst_core::limits;
use karst_hbone::pool::Lease as TunnelLease;
use karst_proxy::{dial::Target, state::Workload};
use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, timeout},
};

/// [`limits::QUOTA_AWAY`] in nanoseconds.
const AWAY: u64 = limits::QUOTA_AWAY.as_nanos() as u64;

/// What comes of one more request.
pub enum Taken {
    /// It has a token.
    Yes,
    /// There is none before this time.
    Over(Duration),
    /// It counts here: the keeper is away.
    Alone,
    /// The keeper is being asked: see [`told`].
    Wait(oneshot::Receiver<Verdict>),
}

/// Takes a token of a shared limit, at a time of [`limit::now`].
pub fn take(worker: &Rc<Worker>, snapshot: &Arc<Snapshot>, limit: &Limit, bucket: Bucket, now: u64) -> Taken {
    let (leases, counts) = (&worker.leases, &worker.shared.metrics.shared_limits);
    let Some((keeper, replicas)) = leases.keeper(snapshot, worker.own(snapshot), bucket) else {
        counts.count(By::Own);
        let grant = worker.shared.quota.take(bucket, limit.rate(), 1, now);
        return if grant.tokens > 0 { Taken::Yes } else { Taken::Over(Duration::from_nanos(grant.after)) };
    };
    let link = leases.link(&keeper.uid, || start(worker, &keeper));
    let leased = match link.health.away.get() > now {
        true => Leased::Full,
        false => leases.take(bucket, &Terms { keeper: &keeper.uid, rate: limit.rate(), replicas }, now),
    };
    let asks = matches!(leased, Leased::Taken { asks: true } | Leased::Wait(_, true));
    if asks && link.asks.try_send(bucket).is_err() {
        leases.failed(bucket);
    }
    match leased {
        Leased::Taken { .. } => {
            counts.count(By::Lease);
            Taken::Yes
        }
        Leased::Over(after) => {
            counts.count(By::Lease);
            Taken::Over(after)
        }
        Leased::Wait(wait, _) if !link.health.is_failing.get() => Taken::Wait(wait),
        Leased::Wait(..) | Leased::Full => {
            counts.count(By::Alone);
            Taken::Alone
        }
    }
}

/// What the keeper says, if it does in time.
pub async fn told(worker: &Worker, wait: oneshot::Receiver<Verdict>) -> Verdict {
    let verdict = timeout(limits::QUOTA_WAIT, wait).await.ok().and_then(Result::ok).unwrap_or(Verdict::Away);
    let by = if verdict == Verdict::Away { By::Alone } else { By::Asked };
    worker.shared.metrics.shared_limits.count(by);
    verdict
}

fn start(worker: &Rc<Worker>, keeper: &Arc<Workload>) -> Link {
    let (asks, queue) = mpsc::channel(limits::QUOTA_QUESTIONS);
    let link = Link { asks, health: Rc::default() };
    tokio::task::spawn_local(run(worker.clone(), keeper.clone(), queue, link.health.clone()));
    link
}

/// Asks a keeper until its link is dropped.
async fn run(worker: Rc<Worker>, keeper: Arc<Workload>, mut queue: mpsc::Receiver<Bucket>, health: Rc<Health>) {
    let mut sweep = tokio::time::interval(limits::QUOTA_LEASE);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut stream, mut batch) = (None, vec![]);
    loop {
        tokio::select! {
            taken = queue.recv_many(&mut batch, frame::MOST) => if taken == 0 { return },
            _ = sweep.tick() => batch.extend(worker.leases.sweep(&keeper.uid, frame::MOST, limit::now())),
        }
        if batch.is_empty() {
            continue;
        }
        let asks = worker.leases.asks(&mut batch);
        let answered = timeout(limits::QUOTA_EXCHANGE, asked(&worker, &keeper, &mut stream, &asks)).await;
        match answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(grants) => {
                let now = limit::now();
                health.is_failing.set(false);
                batch.drain(..).zip(grants).for_each(|(bucket, grant)| worker.leases.granted(bucket, grant, now));
            }
            Err(e) => {
                tracing::debug!(replica = %keeper.uid, error = %e, "shared rate limits are counted here for now");
                stream = None;
                health.is_failing.set(true);
                health.away.set(limit::now().saturating_add(AWAY));
                batch.drain(..).for_each(|bucket| worker.leases.failed(bucket));
                // Nobody is left waiting for what is not going to be asked.
                while let Ok(bucket) = queue.try_recv() {
                    worker.leases.failed(bucket);
                }
            }
        }
    }
}

type Stream = (Io, Option<TunnelLease>);

/// Asks, and once more if it was on a stream that has ended since: its keeper may have been replaced.
async fn asked(
    worker: &Rc<Worker>,
    keeper: &Workload,
    stream: &mut Option<Stream>,
    asks: &[Ask],
) -> io::Result<Vec<Grant>> {
    let was_open = stream.is_some();
    match exchange(worker, keeper, stream, asks).await {
        Err(_) if was_open => {
            *stream = None;
            exchange(worker, keeper, stream, asks).await
        }
        ended => ended,
    }
}

async fn exchange(
    worker: &Rc<Worker>,
    keeper: &Workload,
    stream: &mut Option<Stream>,
    asks: &[Ask],
) -> io::Result<Vec<Grant>> {
    let (io, _) = match stream {
        Some(open) => open,
        None => stream.insert(open(worker, keeper).await?),
    };
    frame::write(io, asks).await?;
    let grants = frame::read::<Grant>(io).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    match grants.len() == asks.len() {
        true => Ok(grants),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to something else")),
    }
}

/// Opens a stream to a keeper, who must be who we are ourselves.
async fn open(worker: &Rc<Worker>, keeper: &Workload) -> io::Result<Stream> {
    let ip = keeper.ips.first().copied().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let address = SocketAddr::new(ip, karst_hbone::PORT);
    #[allow(clippy::infallible_destructuring_match, reason = "tests have another connector")]
    let network = match &worker.connector {
        Connector::Network(network) => network,
        #[cfg(any(test, feature = "fuzz"))]
        Connector::Memory(memory) => {
            return memory.open(address).map(|io| (io, None)).map_err(|e| io::Error::other(e.to_string()));
        }
    };
    let own = &worker.shared.identity;
    let target = Target {
        connector: network,
        pod: "",
        own,
        peer: keeper,
        address,
        expected: std::slice::from_ref(own),
        authority: AUTHORITY,
        headers: &HeaderMap::new,
    };
    let opened = worker.dialer.tunnel(&target, None).await.map_err(|e| io::Error::other(e.to_string()))?;
    Ok((Io::tunnel(opened.send, opened.recv, worker.lingering.clone()), Some(opened.lease)))
}
