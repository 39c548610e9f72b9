//! What ends under load: an application, a pod, and each of Karst's processes.

use crate::{
    shop::{Apps, Shop, id},
    table::Table,
};
use karst_world::{World, http};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// One of the service's pods first stops to listen, then is no longer ready.
pub fn endpoints(w: &World, t: &mut Table, shop: &Shop, apps: &mut [Option<Apps>]) {
    apps[0].take();
    let ok = (0..40).filter(|_| id(&shop.cart, shop.vip).is_ok()).count();
    t.row("an endpoint does not listen any more: no connection is lost", "40 of 40", format!("{ok} of 40"), ok == 40);
    w.write_pod(&shop.stock[0], false);
    w.settle();
    let ok = (0..40).filter(|_| id(&shop.cart, shop.vip).is_ok()).count();
    t.row("a pod dies: the others take over", "40 of 40", format!("{ok} of 40"), ok == 40);
}

/// Kills a process, which is started again (the controller is not), while connections are made.
pub fn kill(w: &mut World, what: &str, t: &mut Table, shop: &Shop) {
    let (c, to) = (shop.cart.clone(), shop.far.at(8080));
    let stop = Arc::new(AtomicBool::new(false));
    let st = stop.clone();
    let load = std::thread::spawn(move || {
        let (mut ok, mut refused, mut slowest) = (0, 0, Duration::ZERO);
        while !st.load(Relaxed) {
            let at = Instant::now();
            match c.connect(to) {
                Ok(s) => ok += usize::from(http::get(s, "/").is_ok()),
                Err(_) => refused += 1,
            }
            slowest = slowest.max(at.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        (ok, refused, slowest)
    });
    std::thread::sleep(Duration::from_millis(300));
    match what {
        "ztunnel" => {
            w.stop_ztunnel(0, 9);
            w.start_ztunnel(0).unwrap();
            w.wait_ztunnel(0);
        }
        "agent" => {
            w.stop_agent(0, 9);
            w.start_agent(0).unwrap();
        }
        _ => w.stop_controller(9),
    }
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, Relaxed);
    let (ok, refused, slowest) = load.join().unwrap();
    t.row(
        &format!("kill -9 {what} under load"),
        "0 connections refused",
        format!("{refused} refused, {ok} served, longest wait {} ms", slowest.as_millis()),
        refused == 0 && ok > 20,
    );
}
