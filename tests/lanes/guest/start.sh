#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs in the guest as its first process: mounts what a running system has mounted, runs the command,
# hands results and exit code back through a raw disk, switches the machine off.
# Lines that begin with "@lane " are for the host.

by_serial() {
    for disk in /sys/block/*; do
        if [ "$(cat "$disk/serial" 2>/dev/null)" = "$1" ]; then
            echo "/dev/${disk##*/}"
        fi
    done
}

echo "@lane up $(cut -d' ' -f1 /proc/uptime) $(uname -r)"

mkdir -p /dev/pts /dev/shm
mountpoint -q /dev/pts || mount -t devpts devpts /dev/pts
for where in /dev/shm /tmp /run; do
    mountpoint -q $where || mount -t tmpfs tmpfs $where
done
for what in \
    securityfs:/sys/kernel/security tracefs:/sys/kernel/tracing debugfs:/sys/kernel/debug \
    bpf:/sys/fs/bpf cgroup2:/sys/fs/cgroup; do
    mountpoint -q "${what#*:}" || mount -t "${what%%:*}" none "${what#*:}" || echo "@lane warning: no ${what%%:*}"
done
hostname lane
ip link set lo up

headers=$(by_serial headers)
if [ -n "$headers" ]; then
    release=$(uname -r)
    mkdir -p /usr/src
    mount -o ro "$headers" /usr/src
    ln -sfn "/usr/src/linux-headers-$release" "/lib/modules/$release/build"
    common=$(echo /usr/src/linux-headers-*-common)
    ln -sfn "$common" "/lib/modules/$release/source"
fi

mkdir -p /lane/results
cd /lane/project || exit 1
# Nothing of the initial ramdisk's environment reaches the command. It is interrupted shortly before the host
# would give up, so that a test runner still says what it found.
# It writes to a pipe, as under any test runner, not to a terminal. What it leaves running may keep the pipe
# open, so its end is not waited for beyond a moment.
mkfifo /run/console
cat /run/console &
console=$!
left=$(($(cat /lane/limit) - $(cut -d. -f1 /proc/uptime)))
env -i /bin/sh -c '
    . /lane/environment
    exec timeout --signal=INT --kill-after=20 "$1" /bin/sh /lane/command.sh' sh "$left" </dev/null >/run/console 2>&1
code=$?
tenths=0
while kill -0 $console 2>/dev/null && [ $tenths -lt 30 ]; do
    sleep 0.1
    tenths=$((tenths + 1))
done
[ $code != 124 ] || echo "@lane warning: the command was interrupted after $left s"

dmesg >/lane/results/dmesg
echo "$code" >/lane/exit-code
# The exit code goes first: results that do not fit must not hide it.
tar -cf - -C /lane exit-code results | dd of="$(by_serial results)" bs=64k conv=notrunc,fsync 2>/dev/null
echo "@lane done $(cut -d' ' -f1 /proc/uptime) $code"
sync
echo o >/proc/sysrq-trigger
while :; do :; done # the machine goes off at once; no program may be read from the disk any more
