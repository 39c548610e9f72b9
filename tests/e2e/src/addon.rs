//! Add-ons as samples/addons installs them, with images that are built from Go modules in the place of their projects'.

use crate::{Pod, apply, kubectl, root};
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

/// Where the samples put them.
pub(crate) const NAMESPACE: &str = "istio-system";

fn manifest(name: &str) -> PathBuf {
    root().join(format!("samples/addons/{name}.yaml"))
}

/// Installs one with an image that the nodes have, and waits until its Deployment, which has its name, is ready.
pub(crate) fn install(name: &str, image: &str) {
    let text = fs::read_to_string(manifest(name)).unwrap();
    let line = text.lines().find(|line| line.trim_start().starts_with("image: ")).expect("an image");
    let indent = &line[..line.len() - line.trim_start().len()];
    apply(&text.replace(line, &format!("{indent}image: {image}")));
    rolled_out(name);
}

/// Waits until its Deployment is as it was asked for.
pub(crate) fn rolled_out(name: &str) {
    kubectl(&["-n", NAMESPACE, "rollout", "status", &format!("deploy/{name}"), "--timeout=90s"]);
}

/// Removes it.
pub(crate) fn remove(name: &str) {
    kubectl(&["delete", "--ignore-not-found", "-f", manifest(name).to_str().unwrap()]);
}

/// A page, from inside of its pod.
pub(crate) fn page(pod: &Pod, port: u16, path: &str) -> std::io::Result<String> {
    let at: SocketAddr = ([127, 0, 0, 1], port).into();
    let mut s = pod.netns().run(|| TcpStream::connect_timeout(&at, Duration::from_secs(5))).unwrap()?;
    s.set_read_timeout(Some(Duration::from_secs(30)))?;
    // 1.0: the answer is whole, not in chunks.
    write!(s, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", pod.name)?;
    let mut text = String::new();
    s.read_to_string(&mut text)?;
    Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or_default())
}
