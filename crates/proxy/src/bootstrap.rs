//! What a proxy does between its options and its workers, and between the signal to stop and its end.

use karst_rt::{
    admin::{self, Handler},
    drain::{Drain, Phase},
    log::{self, Format, LogError},
    process,
};
use std::{
    fmt::Display,
    io,
    net::SocketAddr,
    process::ExitCode,
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    task::{LocalSet, spawn_blocking, spawn_local},
    time::{sleep, timeout},
};

/// The log is written by a thread of its own; it gets this time for the last lines.
pub const LAST_LINES: Duration = Duration::from_millis(20);

/// Why a process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// There are too few descriptors.
    #[error("cannot raise the limit of open descriptors: {0}")]
    Descriptors(io::Error),
    /// There is no thread for a worker.
    #[error("cannot start a worker thread: {0}")]
    Worker(io::Error),
}

/// Starts the log; gives the number of descriptors that the process may have.
///
/// # Errors
/// See [`StartError`].
pub fn prepare(format: Format, filter: &str) -> Result<u64, StartError> {
    log::start(format, filter)?;
    process::raise_descriptor_limit().map_err(StartError::Descriptors)
}

/// Runs the control thread's work on the calling thread.
///
/// # Errors
/// If there is no runtime.
pub fn control_thread<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(LocalSet::new().block_on(&runtime, work))
}

/// How the process ends. What went wrong is told on standard error, where a log may not be.
pub fn exit(name: &str, result: Result<(), impl Display>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{name}: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The ports of the pages. Bound before anything else: a process that cannot have them must not take connections.
pub struct Pages {
    admin: TcpListener,
    stats: TcpListener,
    readiness: TcpListener,
}

impl Pages {
    /// Binds the ports (ADMIN_ADDR, STATS_ADDR, READINESS_ADDR).
    ///
    /// # Errors
    /// Names the option.
    pub async fn bind(admin: SocketAddr, stats: SocketAddr, readiness: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            admin: admin::bind(admin, "ADMIN_ADDR").await?,
            stats: admin::bind(stats, "STATS_ADDR").await?,
            readiness: admin::bind(readiness, "READINESS_ADDR").await?,
        })
    }

    /// Serves them from now on. Runs in a `LocalSet`.
    pub fn serve(self, admin: Handler, stats: Handler, readiness: Handler) {
        spawn_local(admin::serve(self.admin, admin));
        spawn_local(admin::serve(self.stats, stats));
        spawn_local(admin::serve(self.readiness, readiness));
    }
}

/// The threads of the workers.
#[derive(Default)]
pub struct Threads(Vec<JoinHandle<io::Result<()>>>);

impl Threads {
    /// Starts the next one.
    ///
    /// # Errors
    /// If there can be no more.
    pub fn start(&mut self, work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), StartError> {
        let name = format!("worker-{}", self.0.len());
        self.0.push(thread::Builder::new().name(name).spawn(work).map_err(StartError::Worker)?);
        Ok(())
    }

    /// Waits until all have ended.
    pub async fn join(self) {
        for thread in self.0 {
            let _ = spawn_blocking(move || thread.join()).await;
        }
    }
}

/// The signals that end the process: SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the process cannot.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them. Loses none when it is dropped.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Lets what is open finish for `limit`; then says so, and it is closed.
pub async fn drain(drain: &Drain, limit: Duration, over: impl FnOnce()) {
    drain.start(Phase::Graceful);
    if timeout(limit, drain.finished()).await.is_err() {
        over();
        drain.start(Phase::Forced);
    }
}

/// Waits for the log's last lines.
pub async fn last_lines() {
    sleep(LAST_LINES).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_rt::drain::{self, Watch};
    use std::{cell::Cell, rc::Rc};
    use tokio::time::Instant;

    const LIMIT: Duration = Duration::from_secs(25);

    /// A connection that ends after this time at the latest; `true` if it was closed before.
    fn connection(mut watch: Watch, lasts: Duration, closed: Rc<Cell<bool>>) {
        spawn_local(async move {
            watch.reached(Phase::Graceful).await;
            tokio::select! {
                () = sleep(lasts) => {}
                () = watch.reached(Phase::Forced) => closed.set(true),
            }
        });
    }

    /// How long a drain takes with a connection of this length, and whether that was closed, which is said before.
    async fn drained(lasts: Duration) -> (Duration, bool) {
        let run = async {
            let ((decides, watch), closed, said) = (drain::new(), Rc::new(Cell::new(false)), Cell::new(false));
            connection(watch, lasts, closed.clone());
            let began = Instant::now();
            drain(&decides, LIMIT, || said.set(!closed.get())).await;
            let took = began.elapsed();
            decides.finished().await;
            assert_eq!(said.get(), closed.get());
            (took, closed.get())
        };
        LocalSet::new().run_until(run).await
    }

    #[tokio::test(start_paused = true)]
    async fn open_connections_have_the_drains_time_and_no_more() {
        let (took, closed) = drained(LIMIT / 5).await;
        assert!(took >= LIMIT / 5 && took < LIMIT / 4, "it ends with the last connection: {took:?}");
        assert!(!closed);
        let (took, closed) = drained(LIMIT * 5).await;
        assert!(took >= LIMIT && took < LIMIT + Duration::from_secs(1), "{took:?}");
        assert!(closed);
    }

    #[test]
    fn a_thread_has_its_number_for_a_name() {
        let mut threads = Threads::default();
        let (tx, names) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let tx = tx.clone();
            let told = threads.start(move || {
                let _ = tx.send(thread::current().name().map(str::to_string));
                Ok(())
            });
            assert!(told.is_ok());
        }
        assert!(control_thread(threads.join()).is_ok());
        let mut names: Vec<_> = names.try_iter().flatten().collect();
        names.sort();
        assert_eq!(names, ["worker-0", "worker-1"]);
    }
}
