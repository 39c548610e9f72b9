//! docs/values.md.

use super::table::{CHARTS, Quiet, Row, Table, Verdict};
use std::fmt::Write;

const HEAD: &str = "# Values of the charts

Written by `cargo xtask values` from `charts/values.tsv`; `cargo xtask test` sees with helm that each key does what is
said here. The charts take the keys of Istio's charts. Each is **honoured**: it changes what is installed; **noted**:
it has no effect, and the notes after `helm install` say what stands in its place; or **refused**: the installation
stops with the reason, because without the key something else would be allowed, or would not work. Nothing is said of
empty values, nor of Istio's own defaults. A key that neither Istio's charts nor these have is refused as a slip
(`additional properties … not allowed`).

The umbrella chart `ambient` takes the values of its parts under their names (`istiod.replicaCount`), and `global` for
all of them.

## What is read live

istiod reads ConfigMap `istio` (`istio-REVISION`), key `mesh`, again when it changes; so does ztunnel,
within the time that kubelet needs to update the file (a minute or so). In another namespace ztunnel reads a copy that
istiod keeps there ([upgrade.md](upgrade.md#a-ztunnel-in-another-namespace-than-istiod)). A configuration that cannot be
used changes nothing: the last good one stays in force, and log, metric `karst_mesh_config_current` (0) and an event on
the ConfigMap say so. A field that Istio does not have either is named in log and event, and by `karst analyze`
(`KARST-0712`); the rest is in force.

## REGISTRY_ONLY

With `meshConfig.outboundTrafficPolicy.mode: REGISTRY_ONLY` ztunnel refuses connections of its pods to addresses that
are neither a service's, a ServiceEntry's nor a workload's, whatever their port; pods outside of the mesh, hosts and
nodes with pods on their own network are workloads, too. DNS (port 53) at link-local addresses stays open, for
resolvers of nodes; the metadata services of clouds do not. What is refused has the response flag `REGISTRY_ONLY` in
`istio_tcp_connections_failed_total`, and the access log says what to do: declare the destination in a ServiceEntry.
`karst_outbound_registry_only` is 1 where the mode is in force. Open connections go on when it is switched on. ztunnel
of Istio does not have it; under Istio's control plane Karst's ztunnel honours it as well.

## Revisions

A second control plane is installed as another release of the chart istiod with `revision: NAME`; its objects have
`-NAME` in their names. Proxies are moved by `revision` (or `xdsAddress`) of the charts ztunnel and gateway. Objects
with the label `istio.io/rev` are read by that revision only, or by the one that has it as a tag; all others by all.
Each revision runs the Gateways that are its own and writes their statuses, and has a webhook for the objects with its
label; objects without one belong to the default revision ([upgrade.md](upgrade.md#whose-is-what)). Tags:
`revisionTags`, or `karst tag set`.

## CRDs

The CRDs are objects of the chart base, so that `helm upgrade` upgrades them; `helm uninstall` leaves them. CRDs that
are there already and belong to no release, or to another one, are left as they are. To hand one over:

    kubectl annotate --overwrite crd NAME meta.helm.sh/release-name=istio-base meta.helm.sh/release-namespace=istio-system
    kubectl label --overwrite crd NAME app.kubernetes.io/managed-by=Helm
";

/// The page.
pub(super) fn of(table: &Table) -> String {
    let mut out = String::from(HEAD);
    for (chart, _) in CHARTS {
        let _ = write!(out, "\n## Chart {chart}\n\n| key | | what it does, or why not |\n|---|---|---|\n");
        let mut rows: Vec<&Row> = table.of(chart).collect();
        rows.sort_by_key(|row| (row.verdict as u8, &row.key));
        for row in rows {
            let verdict = match row.verdict {
                Verdict::Honoured => "honoured",
                Verdict::Noted => "noted",
                Verdict::Refused => "refused",
            };
            let when = match &row.quiet {
                Quiet::Only(values) => format!(" ({})", values.join(", ")),
                Quiet::Except(_) => String::new(),
            };
            let _ = writeln!(out, "| `{}`{when} | {verdict} | {} |", row.key, row.text.replace('|', "\\|"));
        }
    }
    out
}
