#!/bin/bash
# Process 1 of a node: own mounts over the standard paths, then containerd, kubelet and kube-proxy.
# From the environment: NODE ADDRESSES DIR BIN LOG IMAGES
set -eu
# This shell's own pid, as its pid namespace shows it; the kernel translates.
for g in /sys/fs/cgroup/*/"$NODE"/init /sys/fs/cgroup/"$NODE"/init; do
  if [ -d "$g" ]; then echo $$ > "$g"/cgroup.procs; fi
done
hostname "$NODE"
over() { mkdir -p "$DIR/$1" "$2"; mount --bind "$DIR/$1" "$2"; }
over containerd /var/lib/containerd
over run-containerd /run/containerd
over kubelet /var/lib/kubelet
over cni /var/lib/cni
over netns /run/netns
over pods /var/log/pods
over containers /var/log/containers
over cni-conf /etc/cni/net.d
over cni-bin /opt/cni/bin
over run-ztunnel /run/ztunnel
over run-istio-cni /run/istio-cni
# A sysfs of this network namespace, with the machine's cgroups, and a bpffs of this node.
mkdir -p "$DIR/cgroups"
mount --rbind /sys/fs/cgroup "$DIR/cgroups"
mount -t sysfs sysfs /sys
mount --rbind "$DIR/cgroups" /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
containerd -c "$DIR/containerd.toml" > "$LOG/containerd-$NODE.log" 2>&1 &
for _ in $(seq 100); do if ctr version > /dev/null 2>&1; then break; fi; sleep 0.1; done
for i in $IMAGES; do ctr -n k8s.io images import "$i"; done
# In a cgroup of its own, as on a real node: the node agent tells its probes from other processes' connections by it.
( for g in /sys/fs/cgroup/unified/"$NODE"/kubelet /sys/fs/cgroup/"$NODE"/kubelet; do
    if [ -d "$g" ]; then echo "$BASHPID" > "$g"/cgroup.procs; fi
  done
  exec "$BIN/kubelet" --config="$DIR/kubelet.yaml" --kubeconfig="$DIR/../pki/kubelet-$NODE.kubeconfig" --hostname-override="$NODE" --node-ip="$ADDRESSES" > "$LOG/kubelet-$NODE.log" 2>&1
) &
"$BIN/kube-proxy" --config="$DIR/kube-proxy.yaml" > "$LOG/kube-proxy-$NODE.log" 2>&1 &
trap 'exit 0' TERM
# Reaps orphans, such as the children of containerd's shims.
while :; do wait -n || true; sleep 1; done
