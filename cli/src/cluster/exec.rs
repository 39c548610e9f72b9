//! Running a command in a container.

use super::{connect::Cluster, failure::failed, pods::PodName};
use crate::problem::Problem;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::AttachParams};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// A command that says no end of itself after this time is given up: a node that hangs must not keep the others from being
/// looked at.
const LIMIT: Duration = Duration::from_secs(20);

/// What a command has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Whether it ended with 0.
    pub is_success: bool,
}

impl Cluster {
    /// Runs a command in a container of a pod (empty: its default one) and waits for its end, for 20 s at most.
    ///
    /// # Errors
    /// If the API server refuses it, there is no such program, or it does not end in time.
    pub async fn exec(&self, pod: &PodName, container: &str, command: &[&str]) -> Result<Executed, Problem> {
        let what = || format!("cannot run {:?} in pod {pod}", command.join(" "));
        within(LIMIT, what(), self.run(pod, container, command, &what)).await
    }

    async fn run(
        &self,
        pod: &PodName,
        container: &str,
        command: &[&str],
        what: &dyn Fn() -> String,
    ) -> Result<Executed, Problem> {
        let api: Api<Pod> = Api::namespaced(self.streams.clone(), &pod.namespace);
        let mut params = AttachParams::default().stdin(false).stdout(true).stderr(true);
        if !container.is_empty() {
            params = params.container(container);
        }
        let words = command.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut process = api.exec(&pod.name, words, &params).await.map_err(|e| failed(what(), &e))?;
        let (stdout, stderr, status) = (process.stdout(), process.stderr(), process.take_status());
        let (mut said, mut complained) = (Vec::new(), Vec::new());
        let out = async {
            if let Some(mut stream) = stdout {
                let _ = stream.read_to_end(&mut said).await;
            }
        };
        let err = async {
            if let Some(mut stream) = stderr {
                let _ = stream.read_to_end(&mut complained).await;
            }
        };
        tokio::join!(out, err);
        let ended = match status {
            Some(status) => status.await,
            None => None,
        };
        let is_success = ended.is_some_and(|status| status.status.as_deref() == Some("Success"));
        Ok(Executed {
            stdout: String::from_utf8_lossy(&said).into_owned(),
            stderr: String::from_utf8_lossy(&complained).into_owned(),
            is_success,
        })
    }
}

/// The work, or that it has not ended in time.
async fn within<T>(
    limit: Duration,
    what: String,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => {
            let next = "look at the pod's node: `kubectl get nodes` and `kubectl describe pod` say more";
            Err(Problem::new(what).because(format!("no answer within {} s", limit.as_secs())).next(next))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_command_that_does_not_end_is_given_up() {
        let told = within(LIMIT, "cannot run it".into(), std::future::pending::<Result<(), Problem>>()).await;
        let told = told.unwrap_err().to_string();
        assert!(told.starts_with("cannot run it: no answer within 20 s\n  next: look at the pod's node"), "{told}");
        assert_eq!(within(LIMIT, String::new(), async { Ok(1) }).await, Ok(1));
    }
}
