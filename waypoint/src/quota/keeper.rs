//! The replica that keeps buckets, towards the others: a CONNECT of theirs, on which they ask until they end it.

use crate::{
    quota::{
        frame::{self, Ask},
        table::{Grant, Table},
    },
    route::limit,
};
use http::{Method, Request};
use karst_core::Identity;
use karst_rt::drain;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// What replicas ask each other for: no name of any service's.
pub const AUTHORITY: &str = "rate-limits.karst.internal:15008";

/// Is it a replica that asks? Only who has our own identity is one: everybody else is told that there is no such service.
pub fn is_asked<B>(request: &Request<B>, peer: &Identity, own: &Identity) -> bool {
    request.method() == Method::CONNECT
        && request.uri().authority().is_some_and(|authority| authority.as_str() == AUTHORITY)
        && peer == own
}

/// Answers until the other side ends it, or this process does: then another replica keeps the buckets.
pub async fn serve(table: &Table, mut io: impl AsyncRead + AsyncWrite + Unpin, mut drain: drain::Watch) {
    let ended = tokio::select! {
        biased;
        () = drain.reached(drain::Phase::Graceful) => Ok(()),
        ended = answer(table, &mut io) => ended,
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "a replica's questions about rate limits have broken off");
    }
}

async fn answer(table: &Table, io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    while let Some(asks) = frame::read::<Ask>(io).await? {
        let now = limit::now();
        let grants: Vec<Grant> = asks.iter().map(|ask| given(table, ask, now)).collect();
        frame::write(io, &grants).await?;
    }
    Ok(())
}

fn given(table: &Table, ask: &Ask, now: u64) -> Grant {
    if ask.back > 0 {
        table.give_back(ask.bucket, ask.rate, ask.back, now);
    }
    table.take(ask.bucket, ask.rate, ask.want, now)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::quota::table::Rate;

    fn connect(authority: &str) -> Request<()> {
        let uri = http::Uri::builder().authority(authority).build().unwrap();
        Request::connect(uri).body(()).unwrap()
    }

    #[test]
    fn only_replicas_ask() {
        let own: Identity = "spiffe://cluster.local/ns/a/sa/waypoint".parse().unwrap();
        assert!(is_asked(&connect(AUTHORITY), &own, &own));
        for other in [
            "spiffe://cluster.local/ns/a/sa/web",
            "spiffe://cluster.local/ns/b/sa/waypoint",
            "spiffe://other/ns/a/sa/waypoint",
        ] {
            assert!(!is_asked(&connect(AUTHORITY), &other.parse().unwrap(), &own), "{other}");
        }
        assert!(!is_asked(&connect("reviews.a.svc.cluster.local:15008"), &own, &own));
        let get = Request::get(format!("http://{AUTHORITY}/")).body(()).unwrap();
        assert!(!is_asked(&get, &own, &own));
    }

    #[tokio::test]
    async fn it_gives_what_its_buckets_have() {
        let table = Table::default();
        let (mut client, server) = tokio::io::duplex(1024);
        let (_drain, watch) = drain::new();
        let rate = Rate { step: 1 << 40, full: 3 << 40 };
        let asking = async {
            let ask = |want, back| Ask { bucket: 5, rate, want, back };
            let mut got = vec![];
            for asks in [vec![ask(2, 0), ask(2, 0)], vec![ask(1, 0)], vec![ask(2, 2)]] {
                frame::write(&mut client, &asks).await.unwrap();
                got.extend(frame::read::<Grant>(&mut client).await.unwrap().unwrap().iter().map(|g| g.tokens));
            }
            drop(client);
            got
        };
        let (got, ()) = tokio::join!(asking, serve(&table, server, watch));
        assert_eq!(got, [2, 1, 0, 2]);
    }

    #[tokio::test]
    async fn it_ends_with_the_process() {
        let (_client, server) = tokio::io::duplex(1024);
        let (drain, watch) = drain::new();
        let table = Table::default();
        let ends = async { drain.start(drain::Phase::Graceful) };
        tokio::join!(serve(&table, server, watch), ends);
    }
}
