//! A command of ours that goes on, and its lines as they come.

use crate::{in_cluster, own};
use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::sleep,
    time::{Duration, Instant},
};

/// It runs until this is dropped.
pub struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    /// Starts our own command line.
    pub fn karst(args: &[&str]) -> Self {
        let mut command = in_cluster(&own("karst"));
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let said = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// The next line with this in it, and how long it took; none within `limit`.
    pub fn next(&self, part: &str, limit: Duration) -> Option<(String, Duration)> {
        let began = Instant::now();
        loop {
            let line = self.lines.recv_timeout(limit.saturating_sub(began.elapsed())).ok()?;
            if line.contains(part) {
                return Some((line, began.elapsed()));
            }
        }
    }

    /// Forgets what has come, and what comes in this time.
    pub fn forget(&self, time: Duration) {
        sleep(time);
        self.lines.try_iter().for_each(drop);
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
