//! A page of a pod that does not end by itself, line by line.

use super::{connect::Cluster, pods::PodName};
use crate::problem::Problem;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1::SendRequest,
};
use std::time::Duration;
use tokio::sync::mpsc;

/// The page must begin within this time, and go on: a proxy says every few seconds that it is there.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest line, in bytes.
const LINE: usize = 256 << 10;
/// Longest refusal that is read, in bytes.
const REFUSAL: usize = 4 << 10;

/// Why a stream of lines ends before its time.
#[derive(Debug, thiserror::Error)]
enum LinesError {
    #[error("nothing was heard for {} s", PATIENCE.as_secs())]
    Silence,
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    #[error("a line has more than {max} bytes", max = LINE)]
    TooLong,
}

impl Cluster {
    /// GET of a page whose lines are sent as they come, until it ends or nobody takes them any more.
    ///
    /// # Errors
    /// If it cannot be reached, does not answer 200, or breaks off.
    pub async fn follow(
        &self,
        pod: &PodName,
        port: u16,
        path: &str,
        lines: &mpsc::Sender<String>,
    ) -> Result<(), Problem> {
        let what = || format!("pod {pod}, port {port}, {}", path.split('?').next().unwrap_or_default());
        let next = "look at the pod: `kubectl describe pod` and its log";
        let broken = |e: &dyn std::fmt::Display| Problem::new(what()).because(e).next(next);
        let request = Request::builder()
            .uri(path)
            .header("host", format!("localhost:{port}"))
            .body(Empty::<Bytes>::new())
            .map_err(|e| broken(&e))?;
        let (what, broken) = (&what, &broken);
        let read = |mut sender: SendRequest<_>| async move {
            let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
            let answer = answer.map_err(|_| broken(&format!("no answer within {} s", PATIENCE.as_secs())))?;
            let answer = answer.map_err(|e| broken(&e))?;
            if answer.status() == 404 {
                return Err(Problem::new(what())
                    .because("this proxy has no such page")
                    .next("it is of another version: `karst version`; upgrade it"));
            }
            if !answer.status().is_success() {
                let status = answer.status();
                let text = Limited::new(answer.into_body(), REFUSAL).collect().await;
                let text = text.map(|body| body.to_bytes()).unwrap_or_default();
                return Err(broken(&format!("status {status}: {}", String::from_utf8_lossy(&text).trim())));
            }
            each_line(answer, lines).await.map_err(|e| broken(&e))
        };
        self.on_connection(pod, port, broken, read).await
    }
}

async fn each_line(answer: Response<Incoming>, lines: &mpsc::Sender<String>) -> Result<(), LinesError> {
    let (mut body, mut kept) = (answer.into_body(), Vec::new());
    while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(|_| LinesError::Silence)? {
        let Ok(part) = frame?.into_data() else { continue };
        kept.extend_from_slice(&part);
        while let Some(end) = kept.iter().position(|byte| *byte == b'\n') {
            let rest = kept.split_off(end + 1);
            let line = std::mem::replace(&mut kept, rest);
            if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).await.is_err() {
                return Ok(());
            }
        }
        if kept.len() > LINE {
            return Err(LinesError::TooLong);
        }
    }
    Ok(())
}
