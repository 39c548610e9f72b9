#!/bin/busybox sh
# First process of `cargo xtask kernels`' virtual machines: what the programs need, then the check and the tests, then off.
# What lies between the KARST lines is read from the serial console.
export PATH=/usr/sbin:/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
for module in /modules/*.ko; do
    insmod "$module" || echo "KARST no module $module"
done
for program in check tests; do
    [ -e "/karst/$program" ] || continue
    echo "KARST begin $program"
    "/karst/$program" 2>&1
    echo "KARST end $program $?"
done
poweroff -f
