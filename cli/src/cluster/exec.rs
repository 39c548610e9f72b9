//! Running a command in a container.

use super::{connect::Cluster, failure::failed, pods::PodName};
use crate::problem::Problem;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::AttachParams};
use tokio::io::AsyncReadExt;

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
    /// Runs a command in a container of a pod (empty: its default one) and waits for its end.
    ///
    /// # Errors
    /// If the API server refuses it, or there is no such program.
    pub async fn exec(&self, pod: &PodName, container: &str, command: &[&str]) -> Result<Executed, Problem> {
        let what = || format!("cannot run {:?} in pod {pod}", command.join(" "));
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
