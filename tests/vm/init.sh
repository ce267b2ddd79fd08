#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The first program of the guest (busybox): the disk under a writable layer in memory, then guest.py.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module"
done </modules/order
mount -t ext4 -o ro /dev/vda /disk
mount -t tmpfs tmpfs /space
mkdir /space/upper /space/work
mount -t overlay -o lowerdir=/disk,upperdir=/space/upper,workdir=/space/work overlay /root
mount --move /proc /root/proc
mount --move /sys /root/sys
mount --move /dev /root/dev
mount -t tracefs tracefs /root/sys/kernel/tracing
mount -t bpf bpf /root/sys/fs/bpf
mount -t tmpfs tmpfs /root/tmp
mkdir -p /root/opt/scope
tar -x -f /root/dev/vdb -C /root/opt/scope
ifconfig lo 127.0.0.1 up
chroot /root /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    PYTHONPATH=/opt/scope/wheel:/opt/python:/opt/scope/tests:/opt/scope/tests/kernel \
    SCOPE_CACHE=/opt/scope/cache SCOPE_VM_ONLY="$SCOPE_VM_ONLY" SCOPE_PATIENCE=300 \
    SCOPE_TEST_BUDGET=50% SCOPE_REQUIRE_KERNEL=1 python3 /opt/scope/tests/vm/guest.py
poweroff -f
