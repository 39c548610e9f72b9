//! What serves in pods: by this process, which listens in their network namespaces, so that it can stop at any time without a privilege
//! in the pod.

use anyhow::{Context, Result};
use karst_e2e::Pod;
use std::{
    io::{BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

/// A server that answers every GET with its name.
pub struct Backend {
    pod: Pod,
    port: u16,
    name: String,
    running: Option<Running>,
}

struct Running {
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    thread: JoinHandle<()>,
}

impl Backend {
    /// It listens at a port of a pod.
    pub fn start(pod: &Pod, port: u16, name: &str) -> Result<Self> {
        let mut backend = Self { pod: pod.clone(), port, name: name.into(), running: None };
        backend.resume()?;
        Ok(backend)
    }

    /// It listens again.
    pub fn resume(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let at = SocketAddr::from(([0, 0, 0, 0], self.port));
        let listener =
            self.pod.netns().run(|| TcpListener::bind(at))?.with_context(|| format!("{} {at}", self.name))?;
        listener.set_nonblocking(true)?;
        let (stop, open) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let (stopped, kept, name) = (stop.clone(), open.clone(), self.name.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                let Ok(own) = stream.try_clone() else { continue };
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(own);
                let name = name.clone();
                // It ends with its connection.
                std::thread::spawn(move || serve(stream, &name));
            }
        });
        self.running = Some(Running { stop, open, thread });
        Ok(())
    }

    /// Its port is closed, and so are its connections: who connects is refused.
    pub fn pause(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.stop.store(true, Relaxed);
        let _ = running.thread.join();
        for stream in running.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.pause();
    }
}

fn serve(stream: TcpStream, name: &str) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        // Requests have no body.
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim_end().is_empty() {
                break;
            }
        }
        let length = name.len();
        write!(reader.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}")?;
    }
}
