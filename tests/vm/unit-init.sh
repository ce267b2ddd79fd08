#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The first program of the guest that has systemd (busybox): the disk under a writable layer in memory,
# the package installed on it, then systemd, which runs unit.py as a service.
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
mkdir -p /root/opt/scope
tar -x -f /dev/vdb -C /root/opt/scope
for folder in proc sys dev; do mount --move "/$folder" "/root/$folder"; done
chroot /root /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive dpkg -i /opt/scope/scope-ebpf.deb
cat >/root/etc/systemd/system/scope-vm.service <<'UNIT'
[Unit]
After=basic.target
[Service]
Type=oneshot
Environment=LC_ALL=C.UTF-8 HOME=/root SCOPE_CACHE=/opt/scope/cache SCOPE_PATIENCE=300
Environment=PYTHONPATH=/usr/lib/scope-ebpf:/opt/scope/tests:/opt/scope/tests/kernel
ExecStart=/usr/bin/python3 /opt/scope/tests/vm/unit.py
ExecStopPost=/usr/bin/systemctl poweroff --force --force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
UNIT
# An emulated CPU takes longer than the 90 s that systemd gives a service to start.
mkdir -p /root/etc/systemd/system/scope-ebpfd.service.d
printf '[Service]\nTimeoutStartSec=600\nWatchdogSec=300\n' >/root/etc/systemd/system/scope-ebpfd.service.d/slow.conf
mkdir -p /root/etc/systemd/system/multi-user.target.wants
ln -s ../scope-vm.service /root/etc/systemd/system/multi-user.target.wants/
exec switch_root /root /lib/systemd/systemd
