#!/bin/sh
# The first process of an emulated machine: makes it like a host that has started, runs every scenario, says how each
# test program ended, and powers off. The kernel writes to the first serial line; what is written to the second one is
# for the runner, and its lines that begin with @@ are ours.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS1 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /run/lock
ip link set lo up
# Its device file stands there on a host before anybody asks for the module.
modprobe tun
# Scenarios that look for leaks compare resident memory.
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
ulimit -n 524288

export SHEER_BIN=/tests/sheer SHEER_SKIP_LOG=/run/skipped SHEER_TEST_PATIENCE=5 RUST_BACKTRACE=0
: >$SHEER_SKIP_LOG
while read -r argument; do set -- "$@" "$argument"; done </tests/arguments

cd /tests || exit
count=0
while read -r program; do
    echo "@@ program $program"
    timeout --kill-after=10 3600 "./$program" "$@"
    echo "@@ ended $program $?"
    count=$((count + 1))
done <list

sed 's/^/@@ skip /' $SHEER_SKIP_LOG
echo "@@ done $count"
sync
echo o >/proc/sysrq-trigger
# Power goes off in the background; the kernel panics when its first process ends.
sleep 60
