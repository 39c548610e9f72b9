//! Connections that are carried as bytes, by the weights of a rule's destinations.

use super::*;
use crate::downstream::tcp::connect_tcp;

/// One rule for all connections: each destination's weight, and what stands in place of it (0: nothing does).
fn rule(all: &[(u32, u32)]) -> impl FnOnce(&mut Snapshot) {
    let one = |(weight, refuse_status): &(u32, u32)| ir::Destination {
        service: KEY.into(),
        weight: *weight,
        refuse_status: *refuse_status,
        ..Default::default()
    };
    let rule =
        ir::TcpRule { origin: "route".into(), destinations: all.iter().map(one).collect(), ..Default::default() };
    let table = ir::Table { http: vec![], tcp: vec![rule] };
    let routes = Routes::new(&ir::Routes { producer: Some(table), ..Default::default() }, None).unwrap();
    move |s| drop(s.routes.insert(KEY.into(), Arc::new(routes)))
}

#[test]
fn a_destination_that_cannot_be_closes_its_share_of_the_connections() {
    run(async {
        // Evenly, from wherever the turns begin: of 144 (a Fibonacci number, and so of the golden ratio's) the weights' part or one off.
        for (all, wanted) in [
            (&[(70, 0), (30, 500)][..], 100..=101),
            (&[(70, 500), (30, 0)], 43..=44),
            (&[(0, 0), (1, 500)], 0..=0),
            (&[(1, 0), (0, 500)], 144..=144),
            // Nor does a rule that leads nowhere lead to the service that was called.
            (&[(0, 0), (0, 0)], 0..=0),
            (&[], 0..=0),
        ] {
            let m = Mesh::new(1, AppProtocol::Tcp, rule(all));
            m.memory.listen(address(0), drop);
            let mut connected = 0;
            for _ in 0..144 {
                connected += usize::from(connect_tcp(&m.worker, &m.downstream()).await.is_ok());
            }
            assert!(wanted.contains(&connected), "{all:?}: {connected}");
        }
    });
}
