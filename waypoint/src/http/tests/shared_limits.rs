//! Rate limits that replicas count together: this one, and another in memory that keeps some of the buckets.

use super::*;
use crate::{
    quota::{
        counts::By,
        keeper,
        table::{Rate, Table},
    },
    route::{
        bucket::{Bucket, BucketHash},
        limit,
    },
};
use http::HeaderValue;
use karst_api::workload::{Address, address::Type};
use karst_rt::drain;
use prost::Message;

const GATEWAY: &str = "ns/gw.ns.svc.cluster.local";
const PEER: [u8; 4] = [10, 0, 1, 2];
/// Milliseconds.
const HOUR: u64 = 3_600_000;
/// Ten an hour, ten at once.
const RATE: Rate = rate(10);
const TENANTS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

/// Of so many an hour, and as many at once.
const fn rate(requests: u64) -> Rate {
    Rate { step: HOUR * 1_000_000 / requests, full: HOUR * 1_000_000 }
}

fn shared(requests: u32) -> ir::RateLimit {
    let key = ir::RateLimitKey { key: Some(ir::rate_limit_key::Key::Header("x-tenant".into())) };
    let keys = vec![key];
    ir::RateLimit {
        name: "f 0".into(),
        requests,
        per_ms: HOUR,
        burst: requests,
        keys,
        shared: "f".into(),
        ..Default::default()
    }
}

/// This worker's pod and another one of the same gateway.
fn two_replicas(limit: ir::RateLimit) -> impl FnOnce(&mut Snapshot) {
    let routes = route(|r| r.limits = vec![limit]);
    move |s| {
        routes(s);
        let mut put = |name: &str, address: Type| {
            let address = Address { r#type: Some(address) };
            s.mesh.put_address(name, &address.encode_to_vec()).unwrap();
        };
        put(GATEWAY, Type::Service(testing::service("gw", "10.96.0.9", &[(80, 8080)])));
        for (name, ip) in [("own", "10.0.1.1"), ("peer", "10.0.1.2")] {
            let mut pod = testing::pod(name, ip, &[(GATEWAY, &[(80, 8080)])]);
            pod.service_account = "own".into();
            let uid = pod.uid.clone();
            put(&uid, Type::Workload(pod));
        }
    }
}

fn bucket(rate: Rate, tenant: &str) -> Bucket {
    let mut hash = BucketHash::default();
    for value in [&b"f"[..], &rate.step.to_be_bytes(), &rate.full.to_be_bytes(), tenant.as_bytes()] {
        hash.value(value);
    }
    hash.finish()
}

/// Does the other replica keep the bucket of this tenant?
fn is_elsewhere(m: &Mesh, rate: Rate, tenant: &str) -> bool {
    let snapshot = m.worker.snapshot();
    m.worker.leases.keeper(&snapshot, m.worker.own(&snapshot), bucket(rate, tenant)).is_some()
}

/// A tenant whose bucket it keeps.
fn elsewhere(m: &Mesh, rate: Rate) -> &'static str {
    TENANTS.into_iter().find(|tenant| is_elsewhere(m, rate, tenant)).unwrap()
}

async fn ask_as(m: &Mesh, tenant: &'static str) -> u16 {
    let mut request = get("/");
    request.headers_mut().insert("x-tenant", HeaderValue::from_static(tenant));
    m.ask(request).await.0.as_u16()
}

/// How many of so many requests pass.
async fn passed(m: &Mesh, tenant: &'static str, of: usize) -> usize {
    let mut passed = 0;
    for _ in 0..of {
        passed += usize::from(ask_as(m, tenant).await == 200);
    }
    passed
}

/// The other replica begins to answer.
fn keep(m: &Mesh, table: &Rc<Table>) -> drain::Drain {
    let (drain, watch) = drain::new();
    let table = table.clone();
    m.memory.listen((IpAddr::from(PEER), karst_hbone::PORT).into(), move |io| {
        let (table, watch) = (table.clone(), watch.clone());
        spawn(async move { keeper::serve(&table, io, watch).await });
    });
    drain
}

fn counts(m: &Mesh) -> [u64; 4] {
    [By::Own, By::Lease, By::Asked, By::Alone].map(|by| m.worker.shared.metrics.shared_limits.of(by))
}

#[test]
fn what_one_replica_has_let_through_another_does_not() {
    run(async {
        let m = Mesh::of(two_replicas(shared(10)), |_, _| status(200));
        let table = Rc::new(Table::default());
        let _drain = keep(&m, &table);
        let kept_there = TENANTS.iter().filter(|tenant| is_elsewhere(&m, RATE, tenant)).count();
        assert!((1..TENANTS.len()).contains(&kept_there), "each keeps some");
        for tenant in TENANTS {
            assert_eq!(table.take(bucket(RATE, tenant), RATE, 6, limit::now()).tokens, 6);
            let left = if is_elsewhere(&m, RATE, tenant) { 4 } else { 10 };
            assert_eq!(passed(&m, tenant, 15).await, left, "{tenant}");
        }
        let [own, lease, asked, alone] = counts(&m);
        assert_eq!((own, lease + asked, alone), (15 * (12 - kept_there as u64), 15 * kept_there as u64, 0));
    });
}

/// A keeper that ends the stream, as one does that is replaced, is asked anew; what its successor knows counts.
#[test]
fn a_replaced_replica_is_asked_at_once() {
    run(async {
        let m = Mesh::of(two_replicas(shared(10)), |_, _| status(200));
        let tenant = elsewhere(&m, RATE);
        let first = keep(&m, &Rc::new(Table::default()));
        assert_eq!(passed(&m, tenant, 4).await, 4);
        first.start(drain::Phase::Graceful);
        let successor = Rc::new(Table::default());
        successor.take(bucket(RATE, tenant), RATE, 8, limit::now());
        let _second = keep(&m, &successor);
        assert_eq!(passed(&m, tenant, 10).await, 2);
        assert_eq!(counts(&m)[3], 0, "nothing was counted here");
    });
}

#[test]
fn few_requests_wait_where_there_is_much_to_lease() {
    run(async {
        let m = Mesh::of(two_replicas(shared(10_000)), |_, _| status(200));
        let _drain = keep(&m, &Rc::new(Table::default()));
        let tenant = elsewhere(&m, rate(10_000));
        assert_eq!(passed(&m, tenant, 1000).await, 1000);
        let [_, lease, asked, alone] = counts(&m);
        assert_eq!((lease + asked, alone), (1000, 0));
        assert!(asked < 500, "{asked} have waited");
    });
}

#[test]
fn without_the_replica_that_keeps_a_count_each_counts_for_itself() {
    run(async {
        let m = Mesh::of(two_replicas(shared(10)), |_, _| status(200));
        let tenant = elsewhere(&m, RATE);
        let began = Instant::now();
        assert_eq!(passed(&m, tenant, 15).await, 10, "nobody listens there");
        assert!(began.elapsed() < Duration::from_millis(20), "nobody waits for that");
        assert_eq!(counts(&m), [0, 0, 0, 15]);
        // It comes back, and counts.
        let _drain = keep(&m, &Rc::new(Table::default()));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(passed(&m, tenant, 15).await, 10);
        assert_eq!(counts(&m)[3], 16, "one has not waited to see whether it is there");
    });
}

#[test]
fn a_replica_that_does_not_answer_is_not_waited_for_long() {
    run(async {
        let m = Mesh::of(two_replicas(shared(10)), |_, _| status(200));
        let held = Rc::new(RefCell::new(vec![]));
        let streams = held.clone();
        m.memory.listen((IpAddr::from(PEER), karst_hbone::PORT).into(), move |io| streams.borrow_mut().push(io));
        let tenant = elsewhere(&m, RATE);
        let began = Instant::now();
        assert_eq!(ask_as(&m, tenant).await, 200);
        let took = began.elapsed();
        assert!((20..40).contains(&took.as_millis()), "{took:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        assert_eq!(passed(&m, tenant, 15).await, 9, "it counts here, and nobody waits");
        assert!(began.elapsed() < Duration::from_millis(20), "{:?}", began.elapsed());
        assert_eq!(held.borrow().len(), 1);
        // When it is asked again, nobody waits for that either.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let began = Instant::now();
        assert_eq!(ask_as(&m, tenant).await, 429);
        assert!(began.elapsed() < Duration::from_millis(20), "{:?}", began.elapsed());
    });
}
