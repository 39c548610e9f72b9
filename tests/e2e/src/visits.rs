//! Visits to the book shop's page, out of a pod.

use karst_rt::netns::Netns;
use karst_world::http;
use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Between two visits of a visitor.
const PAUSE: Duration = Duration::from_millis(60);
const VISITORS: usize = 2;

/// The page, as a user sees it (nobody in particular: "").
///
/// # Errors
/// Those of the socket.
pub fn page(s: TcpStream, user: &str) -> std::io::Result<String> {
    let user = if user.is_empty() { String::new() } else { format!("end-user: {user}\r\n") };
    Ok(http::with_headers(s, "GET", "/productpage", &user)?.1)
}

/// Which release of reviews is on a page: without stars, black or red ones. None: there are no reviews.
pub fn release(page: &str) -> Option<usize> {
    let color = ["black", "red"].iter().position(|c| page.contains(&format!("color=\"{c}\"")));
    page.contains("Book Reviews").then(|| color.map_or(0, |c| c + 1))
}

/// Visitors that come again and again.
pub struct Visits {
    stop: Arc<AtomicBool>,
    visitors: Vec<JoinHandle<Seen>>,
}

/// What they saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Pages.
    pub pages: usize,
    /// Pages with details and reviews.
    pub whole: usize,
    /// Pages without stars, with black and with red ones: the releases of reviews.
    pub stars: [usize; 3],
    /// Visits without a page, and what was missing in pages.
    pub failed: Vec<String>,
}

impl Visits {
    /// Starts them.
    pub fn start(from: &Netns, shop: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let one = |_| {
            let (n, stop) = (from.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut seen = Seen::default();
                while !stop.load(Relaxed) {
                    let page = n
                        .run(|| TcpStream::connect_timeout(&shop, Duration::from_secs(10)))
                        .and_then(|s| s)
                        .and_then(|s| http::get(s, "/productpage"));
                    seen.note(page);
                    std::thread::sleep(PAUSE);
                }
                seen
            })
        };
        Self { visitors: (0..VISITORS).map(one).collect(), stop }
    }

    /// Ends them.
    pub fn end(self) -> Seen {
        self.stop.store(true, Relaxed);
        let mut all = Seen::default();
        for v in self.visitors {
            let s = v.join().unwrap();
            all.pages += s.pages;
            all.whole += s.whole;
            all.stars.iter_mut().zip(s.stars).for_each(|(a, b)| *a += b);
            all.failed.extend(s.failed);
        }
        all
    }
}

impl Seen {
    fn note(&mut self, page: std::io::Result<(u16, String)>) {
        let text = match page {
            Ok((200, text)) => text,
            Ok((status, _)) => return self.failed.push(format!("status {status}")),
            Err(e) => return self.failed.push(e.to_string()),
        };
        self.pages += 1;
        self.stars[release(&text).unwrap_or(0)] += 1;
        if text.contains("Book Details") && text.contains("Book Reviews") && !text.contains("unavailable") {
            self.whole += 1;
        } else {
            let lacks = text.lines().filter(|l| l.contains("unavailable")).collect::<Vec<_>>().join(" ");
            self.failed.push(lacks);
        }
    }
}
