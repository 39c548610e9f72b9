//! The rules in a pod, by iptables or nftables, and those of the node for its probes.

use crate::{
    Pod,
    net::{ip_in, run},
};
use anyhow::{Context, Result, ensure};
use std::{
    fmt::Write as _,
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
};

/// Sources of probes, by which the node's own processes are known in a pod.
const PROBE_V4: &str = "169.254.7.127";
const PROBE_V6: &str = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff";
/// What is not ztunnel's.
const FOREIGN: &str = "-m mark ! --mark 0x539/0xfff";

/// By which program rules are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// `iptables-restore`, `ip6tables-restore`.
    Iptables,
    /// `nft` (Istio's `nativeNftables`).
    Nftables,
}

/// What is captured of a pod.
#[derive(Clone, Debug)]
pub struct Capture {
    /// DNS; false: `ambient.istio.io/dns-capture: "false"`.
    pub dns: bool,
    /// What others connect to; false: `ambient.istio.io/bypass-inbound-capture`.
    pub inbound: bool,
    /// Devices whose traffic is the pod's own (`reroute-virtual-interfaces`).
    pub devices: Vec<String>,
}

impl Default for Capture {
    /// As for a pod without annotations.
    fn default() -> Self {
        Self { dns: true, inbound: true, devices: vec![] }
    }
}

impl Rules {
    /// Sets a pod's rules and routes.
    pub(super) fn redirect(self, pod: &Pod, capture: &Capture) -> Result<()> {
        for family in ["-4", "-6"] {
            ip_in(&pod.ns, &format!("{family} route replace local default dev lo table 100"))?;
            ip_in(&pod.ns, &format!("{family} rule add fwmark 0x111/0xfff pref 32764 lookup 100"))?;
        }
        match self {
            Self::Iptables => {
                let four = iptables(capture, PROBE_V4, "127.0.0.1/32");
                feed(&pod.ns, &["iptables-restore", "--noflush"], &four)?;
                feed(&pod.ns, &["ip6tables-restore", "--noflush"], &iptables(capture, PROBE_V6, "::1/128"))
            }
            Self::Nftables => feed(&pod.ns, &["nft", "-f", "-"], &nftables(capture)),
        }
    }

    /// Removes them.
    pub(super) fn restore(self, pod: &Pod) -> Result<()> {
        match self {
            Self::Iptables => {
                for program in ["iptables", "ip6tables"] {
                    for table in ["mangle", "nat", "raw"] {
                        feed(&pod.ns, &[program, "-t", table, "-F"], "")?;
                        feed(&pod.ns, &[program, "-t", table, "-X"], "")?;
                    }
                }
            }
            Self::Nftables => feed(&pod.ns, &["nft", "flush", "ruleset"], "")?,
        }
        for family in ["-4", "-6"] {
            ip_in(&pod.ns, &format!("{family} rule del pref 32764"))?;
            ip_in(&pod.ns, &format!("{family} route flush table 100"))?;
        }
        Ok(())
    }
}

/// What a family's restore program reads. `lo`: the address that is left alone.
fn iptables(capture: &Capture, probe: &str, lo: &str) -> String {
    let mut text = String::from(
        "*mangle\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n-A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n\
         -A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff\n\
         -A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n\
         COMMIT\n*nat\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\n-A PREROUTING -j ISTIO_PRERT\n",
    );
    for device in &capture.devices {
        let _ = writeln!(text, "-A ISTIO_PRERT -i {device} -p tcp -j REDIRECT --to-ports 15001");
        let _ = writeln!(text, "-A ISTIO_PRERT -i {device} -p tcp -j RETURN");
    }
    if capture.inbound {
        let _ = writeln!(text, "-A ISTIO_PRERT -s {probe} -p tcp -m tcp -j ACCEPT");
    }
    let _ = writeln!(text, "-A ISTIO_OUTPUT -d {probe} -p tcp -m tcp -j ACCEPT");
    if capture.inbound {
        let _ =
            writeln!(text, "-A ISTIO_PRERT ! -d {lo} -p tcp ! --dport 15008 {FOREIGN} -j REDIRECT --to-ports 15006");
    }
    if capture.dns {
        let _ =
            writeln!(text, "-A ISTIO_OUTPUT ! -o lo -p udp {FOREIGN} -m udp --dport 53 -j REDIRECT --to-port 15053");
        let _ = writeln!(text, "-A ISTIO_OUTPUT ! -d {lo} -p tcp --dport 53 {FOREIGN} -j REDIRECT --to-ports 15053");
    }
    let _ = writeln!(
        text,
        "-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n-A ISTIO_OUTPUT ! -d {lo} -o lo -j ACCEPT\n\
         -A ISTIO_OUTPUT ! -d {lo} -p tcp {FOREIGN} -j REDIRECT --to-ports 15001\nCOMMIT"
    );
    if capture.dns {
        let _ = writeln!(
            text,
            "*raw\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_PRERT - [0:0]\n-A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n\
             -A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1\n\
             -A ISTIO_PRERT -p udp {FOREIGN} -m udp --sport 53 -j CT --zone 1\nCOMMIT"
        );
    }
    text
}

/// The same for both families at once.
fn nftables(capture: &Capture) -> String {
    let mut text = String::new();
    for (table, kind, priority) in [("nat", "nat", -100), ("mangle", "filter", -150), ("raw", "filter", -300)] {
        let output = if table == "mangle" { "route" } else { kind };
        let _ = writeln!(
            text,
            "add table inet istio-ambient-{table}\n\
             add chain inet istio-ambient-{table} prerouting {{ type {kind} hook prerouting priority {priority} ; }}\n\
             add chain inet istio-ambient-{table} output {{ type {output} hook output priority {priority} ; }}\n\
             add chain inet istio-ambient-{table} istio-prerouting\nadd chain inet istio-ambient-{table} istio-output\n\
             add rule inet istio-ambient-{table} prerouting jump istio-prerouting\n\
             add rule inet istio-ambient-{table} output jump istio-output"
        );
    }
    let mut rule = |chain: &str, what: &str| {
        let _ = writeln!(text, "add rule inet istio-ambient-{chain} {what}");
    };
    let (foreign, own) = ("meta mark and 0xfff != 0x539", "meta mark and 0xfff == 0x539");
    for device in &capture.devices {
        rule("nat istio-prerouting", &format!("iifname {device} meta l4proto tcp counter redirect to :15001"));
        rule("nat istio-prerouting", &format!("iifname {device} meta l4proto tcp counter return"));
    }
    let families = [("ip", PROBE_V4, "127.0.0.1/32"), ("ip6", PROBE_V6, "::1/128")];
    for (ip, probe, lo) in families {
        if capture.inbound {
            rule("nat istio-prerouting", &format!("meta l4proto tcp {ip} saddr {probe} counter accept"));
        }
        rule("nat istio-output", &format!("meta l4proto tcp {ip} daddr {probe} counter accept"));
        if capture.inbound {
            let what = format!("{ip} daddr != {lo} tcp dport != 15008 {foreign} counter redirect to :15006");
            rule("nat istio-prerouting", &what);
        }
    }
    if capture.dns {
        rule("nat istio-output", &format!("oifname != lo {foreign} udp dport 53 counter redirect to :15053"));
        for (ip, _, lo) in families {
            let what = format!("{ip} daddr != {lo} tcp dport 53 {foreign} counter redirect to :15053");
            rule("nat istio-output", &what);
        }
    }
    rule("nat istio-output", "meta l4proto tcp meta mark and 0xfff == 0x111 counter accept");
    for (ip, _, lo) in families {
        rule("nat istio-output", &format!("oifname lo {ip} daddr != {lo} counter accept"));
    }
    for (ip, _, lo) in families {
        let what = format!("meta l4proto tcp {ip} daddr != {lo} {foreign} counter redirect to :15001");
        rule("nat istio-output", &what);
    }
    rule("mangle istio-prerouting", &format!("{own} counter ct mark set ct mark and 0xfffff000 or 0x111"));
    rule("mangle istio-output", "ct mark and 0xfff == 0x111 counter meta mark set ct mark");
    if capture.dns {
        rule("raw istio-output", &format!("udp dport 53 {own} counter ct zone set 1"));
        rule("raw istio-prerouting", &format!("udp sport 53 {foreign} counter ct zone set 1"));
    }
    text
}

/// What processes of the node send to a pod carries the address of probes. (Istio marks out the kubelet by its user, here root.)
pub(super) fn exempt_probes(node: &str, pod: &Pod) -> Result<()> {
    let mut text = String::from(
        "add table inet istio-ambient-nat\n\
         add chain inet istio-ambient-nat postrouting { type nat hook postrouting priority 100 ; }\n",
    );
    for (ip, address, probe) in [("ip", pod.ip, PROBE_V4), ("ip6", pod.ip6, PROBE_V6)] {
        let what = format!("meta l4proto tcp meta skuid 0 {ip} daddr {address} counter snat {ip} to {probe}");
        let _ = writeln!(text, "add rule inet istio-ambient-nat postrouting {what}");
    }
    feed(node, &["nft", "-f", "-"], &text)
}

/// The addresses of probes.
pub fn probe_addresses() -> [IpAddr; 2] {
    [PROBE_V4, PROBE_V6].map(|ip| ip.parse().expect("an address"))
}

fn feed(ns: &str, program: &[&str], text: &str) -> Result<()> {
    let words = [&["netns", "exec", ns], program].concat();
    if text.is_empty() {
        return run("ip", &words).map(|_| ());
    }
    let mut child = Command::new("ip")
        .args(&words)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program:?}: cargo xtask setup installs it"))?;
    child.stdin.take().context("stdin")?.write_all(text.as_bytes())?;
    let out = child.wait_with_output()?;
    ensure!(out.status.success(), "{program:?}: {}\n{text}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}
