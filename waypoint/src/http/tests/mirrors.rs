//! Copies of requests: complete, marked, and nobody waits for them.

use super::*;

fn mirrored(per_million: u32) -> impl FnOnce(&mut Snapshot) {
    let to = ir::Destination { service: KEY.into(), weight: 1, ..Default::default() };
    route(move |r| r.mirrors = vec![ir::Mirror { to: Some(to), per_million }])
}

fn is_copy(s: &Seen) -> bool {
    s.headers["host"] == "s-shadow"
}

#[test]
fn a_copy_is_complete_and_is_not_waited_for() {
    run(async {
        let m = Mesh::of(mirrored(1_000_000), |_, s| if is_copy(s) { Does::Never } else { status(200) });
        let began = Instant::now();
        assert_eq!(m.ask(post("order")).await.0, 200);
        assert_eq!(began.elapsed(), Duration::ZERO);
        while m.count() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let seen = m.seen.borrow();
        assert_eq!(seen.iter().filter(|s| is_copy(s)).count(), 1);
        assert!(seen.iter().all(|s| s.body == "order" && s.method == Method::POST));
    });
}

#[test]
fn no_more_copies_are_sent_than_asked_for() {
    run(async {
        let m = Mesh::of(mirrored(100_000), |_, _| status(200));
        // Evenly, from wherever the turns begin: of 144 always 14 or 15.
        for _ in 0..144 {
            assert_eq!(m.ask(get("/")).await.0, 200);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let copies = m.seen.borrow().iter().filter(|s| is_copy(s)).count();
        assert!((14..=15).contains(&copies), "{copies}");
    });
}

/// What other rules' mirrors get takes nothing from a rule's own turns.
#[test]
fn each_mirror_has_its_own_turns() {
    run(async {
        let to = || Some(ir::Destination { service: KEY.into(), weight: 1, ..Default::default() });
        let both = route(move |r| {
            r.mirrors =
                [250_000, 500_000].map(|per_million| ir::Mirror { to: to(), per_million }).into_iter().collect();
        });
        let m = Mesh::of(both, |_, _| status(200));
        for _ in 0..200 {
            assert_eq!(m.ask(get("/")).await.0, 200);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(m.seen.borrow().iter().filter(|s| is_copy(s)).count(), 150);
    });
}
