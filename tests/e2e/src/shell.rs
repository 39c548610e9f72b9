//! A shell where the API server is, as a user of the tutorials has one: `karst`, `istioctl`, `kubectl` and `helm` on its
//! path, a home and a kubeconfig of its own.

use crate::{NETNS, in_cluster, root};
use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Which program answers to the name `istioctl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Istioctl {
    /// Ours, called by that name.
    Ours,
    /// Istio's own.
    Stock,
}

/// The shell; its folder goes when it goes.
pub struct Shell {
    folder: PathBuf,
}

/// What a line has said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its output and its errors.
    pub text: String,
    /// Whether its last command ended with 0.
    pub is_success: bool,
    /// How that ended; -1: by a signal.
    pub status: i32,
}

impl Shell {
    /// With these programs, and `namespace` as the kubeconfig's.
    pub fn new(istioctl: Istioctl, namespace: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("karst-shell-{}-{count}-{istioctl:?}", std::process::id());
        let folder = std::env::temp_dir().join(name.to_lowercase());
        let _ = fs::remove_dir_all(&folder);
        let programs = folder.join("bin");
        fs::create_dir_all(&programs).unwrap();
        let tool = |name: &str| root().join("target/cluster/bin").join(name);
        let karst = crate::own("karst");
        let answers = if istioctl == Istioctl::Ours { karst.clone() } else { tool("istioctl") };
        for (name, program) in
            [("karst", karst), ("istioctl", answers), ("kubectl", tool("kubectl")), ("helm", tool("helm"))]
        {
            assert!(program.exists(), "{} is not built", program.display());
            symlink(program, programs.join(name)).unwrap();
        }
        let shell = Self { folder };
        fs::copy(root().join("target/cluster/run/pki/admin.kubeconfig"), shell.kubeconfig()).unwrap();
        let line = format!("kubectl config set-context --current --namespace={namespace}");
        let said = shell.run(&line, "");
        assert!(said.is_success, "{line}: {}", said.text);
        shell
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// Where it may write.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a line of bash, with `input` typed.
    pub fn run(&self, line: &str, input: &str) -> Said {
        let mut command = in_cluster(Path::new("/bin/bash"));
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", self.folder.join("bin").display());
        command.args(["-o", "pipefail", "-c", &format!("{{ {line}\n}} 2>&1")]).env("PATH", path);
        command.env("HOME", &self.folder).env("KUBECONFIG", self.kubeconfig());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("bash in {NETNS}: {e}"));
        // A line that reads nothing may be gone before it is typed to.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        Said { text, is_success: out.status.success(), status: out.status.code().unwrap_or(-1) }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
