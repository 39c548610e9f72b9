//! Turns of tasks on a runtime, without sockets.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use super::*;
use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};

fn share() -> (Rc<Share>, Arc<AtomicU64>) {
    let waits = Arc::new(AtomicU64::new(0));
    (Share::new(waits.clone()), waits)
}

/// A task that can always go on, for so many polls of this much work; counts it.
fn busy(share: &Rc<Share>, polls: usize, work: usize, count: &Rc<Cell<usize>>) -> JoinHandle<()> {
    let (mut left, count) = (polls, count.clone());
    let future = poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        spend(work);
        count.set(count.get() + work + limits::TURN_POLL);
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    spawn_local(of(Some(share.clone()), future))
}

/// The most that others do between two polls of a task that always comes again after a look at the sockets.
async fn most_between(share: &Rc<Share>, polls: usize, count: &Rc<Cell<usize>>) -> usize {
    let count = count.clone();
    let task = async move {
        let (mut most, mut before) = (0_usize, None::<usize>);
        for _ in 0..polls {
            let now = count.get();
            most = most.max(before.map_or(0, |before| now - before));
            before = Some(now);
            yield_now().await;
        }
        most
    };
    spawn_local(of(Some(share.clone()), Box::pin(task))).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn however_many_tasks_a_share_has_others_wait_for_a_turn_of_its() {
    let run = async {
        let ((bulk, waits), (quiet, own)) = (share(), share());
        let count = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..64).map(|_| busy(&bulk, 100, limits::TURN_BYTES, &count)).collect();
        // What is done before anybody knows of somebody else is done alone.
        yield_now().await;
        let most = most_between(&quiet, 200, &count).await;
        let poll = limits::TURN_BYTES + limits::TURN_POLL;
        // The first time, in the turn of one who was alone.
        assert!(most <= limits::TURN_ALONE + 2 * poll, "{most}");
        let most = most_between(&quiet, 200, &count).await;
        assert!(most <= 2 * (limits::TURN + poll), "{most}");
        assert!(waits.load(Relaxed) > 100 && own.load(Relaxed) == 0);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(count.get(), 64 * 100 * poll, "all of it was done in the end");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn shares_get_the_same_whatever_their_tasks_are() {
    let run = async {
        let (one, other) = (share().0, share().0);
        let (a, b) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let mut tasks: Vec<_> = (0..50).map(|_| busy(&one, 10_000, limits::TURN_BYTES, &a)).collect();
        tasks.push(busy(&other, 10_000, 3 * limits::TURN_BYTES, &b));
        for _ in 0..500 {
            yield_now().await;
        }
        let (a, b) = (a.get(), b.get());
        let alone = limits::TURN_ALONE + limits::TURN_DEBT;
        assert!(a.abs_diff(b) < alone + a.max(b) / 4, "{a} {b}");
        assert!(a > 20 * limits::TURN && b > 20 * limits::TURN, "{a} {b}");
        tasks.iter().for_each(JoinHandle::abort);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_is_alone_goes_on_and_waits_for_nobody() {
    let run = async {
        let (only, waits) = share();
        let count = Rc::new(Cell::new(0));
        // The first polls count as in company.
        busy(&only, limits::TURN_COMPANY as usize + 1, 0, &count).await.unwrap();
        let before = waits.load(Relaxed);
        let tasks: Vec<_> = (0..8).map(|_| busy(&only, 500, limits::SEND_BUFFER, &count)).collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(waits.load(Relaxed), before, "a look at the sockets is no wait for others");
        assert_eq!(bytes(limits::SEND_BUFFER), limits::SEND_BUFFER);
        let second = share().0;
        busy(&second, 1, 0, &count).await.unwrap();
        assert_eq!(bytes(limits::SEND_BUFFER), limits::TURN_BYTES, "from now on in company");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_could_go_on_passes_and_knows_whose_it_is() {
    let run = async {
        let (bulk, quiet) = (share().0, share().0);
        let count = Rc::new(Cell::new(0));
        let own = count.clone();
        let endless = async move {
            let own_share = current().map(|share| share.number);
            loop {
                spend(limits::TURN_BYTES);
                own.set(own.get() + limits::TURN_BYTES);
                pass().await;
                if own.get() > 200 * limits::TURN {
                    return own_share;
                }
            }
        };
        let task = spawn_local(of(Some(bulk.clone()), Box::pin(endless)));
        yield_now().await;
        most_between(&quiet, 20, &count).await;
        let most = most_between(&quiet, 20, &count).await;
        assert!(most <= 2 * (limits::TURN + limits::TURN_BYTES), "{most}");
        assert_eq!(task.await.unwrap(), Some(bulk.number));
        assert!(current().is_none(), "nobody's task is polled");
        pass().await;
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn another_runtime_of_the_thread_has_its_rounds() {
    let count = Rc::new(Cell::new(0));
    for _ in 0..2 {
        let local = LocalSet::new();
        let run = async {
            let (bulk, _) = share();
            let tasks: Vec<_> = (0..4).map(|_| busy(&bulk, usize::MAX, limits::TURN, &count)).collect();
            let before = count.get();
            for _ in 0..20 {
                yield_now().await;
            }
            assert!(count.get() > before + 5 * limits::TURN, "it goes on");
            drop(tasks);
        };
        local.run_until(run).await;
    }
}

#[tokio::test(start_paused = true)]
async fn peers_of_a_share_wait_for_each_other_as_little() {
    let run = async {
        // Somebody else is there, so that turns are short.
        let (pod, other) = (share().0, share().0);
        let count = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..64).map(|_| busy(&pod, 200, limits::TURN_BYTES, &count)).collect();
        let quiet = {
            let count = count.clone();
            async move {
                let mut most = 0_usize;
                for _ in 0..50 {
                    yield_now().await;
                    let before = count.get();
                    // It goes on in its turn.
                    pass_now().await;
                    most = most.max(count.get() - before);
                }
                most
            }
        };
        let quiet = spawn_local(of_peer(pod.clone(), IpAddr::from([10, 0, 0, 9]), Box::pin(quiet)));
        let beside = spawn_local(of(
            Some(other),
            Box::pin(async {
                for _ in 0..500 {
                    yield_now().await;
                }
            }),
        ));
        let most = quiet.await.unwrap();
        assert!(most <= 3 * (limits::TURN + limits::TURN_BYTES), "{most}: the 64 others do not come first");
        tasks.iter().for_each(JoinHandle::abort);
        beside.abort();
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn whose_task_is_gone_keeps_nobody_waiting() {
    let run = async {
        let count = Rc::new(Cell::new(0));
        let pod = share().0;
        let mut tasks: Vec<_> = (0..40).map(|_| busy(&pod, 10, limits::TURN, &count)).collect();
        yield_now().await;
        yield_now().await;
        tasks.drain(..39).for_each(|task| task.abort());
        let last = tasks.pop().unwrap();
        let mut rounds = 0;
        while !last.is_finished() {
            rounds += 1;
            assert!(rounds < 30, "each that is gone would have cost one");
            yield_now().await;
        }
    };
    LocalSet::new().run_until(run).await;
}

#[test]
fn callers_have_shares_while_somebody_has_them() {
    let callers = Shares::new(2, Arc::default());
    let (a, b) = (callers.of("a"), callers.of("b"));
    assert!(Rc::ptr_eq(&a, &callers.of("a")) && !Rc::ptr_eq(&a, &b));
    let (c, d) = (callers.of("c"), callers.of("d"));
    assert!(Rc::ptr_eq(&c, &d), "those beyond have one together");
    drop(b);
    assert!(!Rc::ptr_eq(&callers.of("c"), &c), "there is room again");
}

#[test]
fn many_callers_are_not_all_looked_at_for_each_that_comes() {
    let callers = Shares::new(80, Arc::default());
    let mut all: Vec<_> = (0..80).map(|n| callers.of(n)).collect();
    let rest = callers.of(100);
    all.pop();
    // Nobody knows yet that there is room.
    assert!((101..111).all(|n| Rc::ptr_eq(&callers.of(n), &rest)));
    assert!(!Rc::ptr_eq(&callers.of(111), &rest));
    assert!(Rc::ptr_eq(&callers.of(0), &all[0]), "those who are there keep theirs");
}
