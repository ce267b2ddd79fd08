#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Boots kernels of other Debian releases and runs guest.py in each: do the BPF objects load, and do
# they count right? And boots bookworm with systemd, installs the deb and runs unit.py: does the
# service start, reload, stop, and leave nothing?
#
#   tests/vm/run.sh [RELEASE...]     bullseye: 5.10, bookworm: 6.1, trixie: 6.12, trixie-backports: 7.x,
#                                    unit: the service on bookworm; default: the first three and unit
#
# Each machine is emulated by software and takes a few minutes. What is fetched is kept in
# ~/.cache/scope-ebpf/vm: a disk with bookworm's Erlang and Python (270 MB), and a kernel of each
# release (15 MB). They come from the mirror that this machine's own apt uses; remove the folder for
# newer ones.
# SCOPE_VM_ACCEL=kvm takes the hardware's help where there is some, and SCOPE_VM_ONLY=object,profile
# runs the checks alone whose names have one of these words in them.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
cache=${SCOPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scope-ebpf}
vm=$cache/vm
python=${PYTHON:-$project/.venv/bin/python}
accel=${SCOPE_VM_ACCEL:-tcg,thread=multi}
patience=${SCOPE_VM_PATIENCE:-1800} # seconds for one machine

packages=erlang-base,python3,libbpf1,libelf1,bpftool,util-linux,procps
# With systemd the package brings its own dependencies.
unit_packages=erlang-base,bpftool,util-linux,procps,systemd-sysv
# A cloud kernel has virtio built as modules, and reads its disk by ext4.
modules=(virtio_pci virtio_blk ext4 overlay)

say() { echo "vm: $*" >&2; }
die() {
    say "$*"
    exit 1
}

for tool in qemu-system-x86_64 busybox cpio mke2fs modprobe depmod mmdebstrap xz; do
    command -v "$tool" >/dev/null || die "$tool is not installed; packaging/install-deps.sh vm installs it"
done
[ "$(id -u)" -eq 0 ] || die "a disk full of root's files takes root to make"
[ -x "$python" ] || die "no $python; \`make vm\` makes it"

mkdir -p "$vm"
exec 9>"$vm/.lock"
flock 9
work=$(mktemp -d "$vm/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mirror=$("$project/tests/beams/mirror.sh")

# This machine's proxy and timeouts hold for the other releases too, whose date may have passed.
apt-config dump | grep '^Acquire::' >"$work/apt.conf" || true
echo 'Acquire::Check-Valid-Until "false";' >>"$work/apt.conf"

# An ext4 image of a folder, with room for a few files more.
image() { # FOLDER FILE
    local kilobytes
    kilobytes=$(du -sk "$1" | cut -f 1)
    rm -f "$2"
    mke2fs -q -t ext4 -O ^has_journal -d "$1" "$2" $((kilobytes * 5 / 4 + 32768))k >/dev/null
}

# A bare bookworm with packages, in $work/root.
make_root() { # PACKAGES
    mmdebstrap --variant=minbase --include="$1" --aptopt="$work/apt.conf" \
        --skip=cleanup/apt/lists bookworm "$work/root" "$mirror" >"$vm/disk.log" 2>&1 || {
        tail -n 5 "$vm/disk.log" >&2
        die "mmdebstrap failed; the whole log is $vm/disk.log"
    }
    rm -rf "$work"/root/usr/share/{doc,man,locale,info} "$work"/root/var/{lib/apt/lists,cache/apt}/*
}

# What is in $work/root becomes a disk, in place of older ones of its kind.
keep_root() { # KIND FILE
    image "$work/root" "$work/disk"
    rm -rf "$work/root" "$vm/$1"-*.ext4
    mv "$work/disk" "$2"
}

# The disk: bookworm, whose libbpf is the oldest that we say we take, and the Python packages, with
# what tests of tests/kernel take.
make_disk() {
    "$python" - "$project/pyproject.toml" >"$work/requirements" <<'PYTHON'
import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], sep="\n")
print("fastjsonschema", "perfetto", "protobuf", "pytest", sep="\n")
PYTHON
    disk=$vm/disk-$(echo "$packages" | cat - "$work/requirements" | sha256sum | cut -c 1-12).ext4
    [ ! -e "$disk" ] || return 0
    say "making the disk (log: $vm/disk.log)"
    make_root "$packages"
    mkdir -p "$work/root/opt/python"
    # For the Python of the disk, whichever Python this is.
    "$python" -m pip -qq install --disable-pip-version-check --target "$work/root/opt/python" \
        --python-version 3.11 --only-binary :all: \
        --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 \
        --platform manylinux_2_27_x86_64 -r "$work/requirements"
    keep_root disk "$disk"
}

# The deb, and the disk for it: bookworm with systemd and what the deb depends on.
make_unit_disk() {
    local depends
    "$python" "$project/packaging/build_packages.py" --to "$work/payload" >/dev/null
    mv "$work"/payload/*.deb "$work/payload/scope-ebpf.deb"
    rm -f "$work"/payload/*.rpm
    depends=$(dpkg-deb -f "$work/payload/scope-ebpf.deb" Depends | sed 's/ ([^)]*)//g; s/, /,/g')
    unit_disk=$vm/unit-$(echo "$unit_packages,$depends" | sha256sum | cut -c 1-12).ext4
    [ ! -e "$unit_disk" ] || return 0
    say "making the disk with systemd (log: $vm/disk.log)"
    make_root "$unit_packages,$depends"
    keep_root unit "$unit_disk"
}

# A release's kernel and its modules, unpacked.
make_kernel() { # RELEASE
    local apt=$work/apt-$1 out=$vm/$1 options names suite
    if [ -e "$out/vmlinuz" ]; then
        return
    fi
    say "fetching the kernel of $1"
    mkdir -p "$apt"/etc/apt/{sources.list.d,preferences.d,trusted.gpg.d,apt.conf.d} \
        "$apt"/var/lib/{apt/lists/partial,dpkg} "$apt"/var/cache/apt/archives/partial \
        "$work/kernel"
    touch "$apt/var/lib/dpkg/status"
    cp "$work/apt.conf" "$apt/etc/apt/apt.conf.d/00"
    for suite in "${1%-backports}" "$1"; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
    done | sort -u >"$apt/etc/apt/sources.list"
    options=(-o "Dir=$apt" -o "Dir::State::status=$apt/var/lib/dpkg/status" -o APT::Sandbox::User=root
        -o APT::Architecture=amd64)
    apt-get -qq "${options[@]}" update >&2
    # From 7.x on the image is a package of its own, and so are the modules and the list of those built in.
    names=$(apt-get -qq "${options[@]}" --no-install-recommends -t "$1" -s install linux-image-cloud-amd64 |
        sed -n -E 's/^Inst (linux-(image|binary|modules|base)-[0-9][^ ]*) .*/\1/p')
    [ -n "$names" ] || die "$1 has no kernel for us"
    # shellcheck disable=SC2086 # names, one word each
    (cd "$work/kernel" && apt-get -qq "${options[@]}" download $names >&2 &&
        for package in *.deb; do dpkg -x "$package" .; done)
    [ -e "$work/kernel/lib" ] || ln -s usr/lib "$work/kernel/lib"
    rm -rf "$out"
    mkdir -p "$out/modules"
    unpack_modules "$work/kernel" "$out/modules"
    find "$work/kernel" -name 'vmlinuz*' -exec mv {} "$out/vmlinuz" \;
    rm -rf "$work/kernel"
}

# The modules that the guest needs, in the order in which they are loaded.
unpack_modules() { # TREE FOLDER
    local version module path name
    version=$(basename "$1"/lib/modules/*)
    touch "$2/order" # which stays empty where all is built in
    depmod -b "$1" "$version"
    for module in "${modules[@]}"; do
        modprobe -d "$1" -S "$version" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r path; do
        name=$(basename "$path")
        case $name in
        *.xz) xz -dc "$path" >"$2/${name%.xz}" ;;
        *.zst) zstd -qdc "$path" >"$2/${name%.zst}" ;;
        *) cp "$path" "$2/" ;;
        esac
        name=${name%.xz}
        echo "${name%.zst}" >>"$2/order"
    done
    echo "$version" >"$2/version"
}

# What is looked at: the wheel, the tests' own programs, and a BEAM with USDT probes if one was built.
make_payload() {
    mkdir -p "$work/payload/tests"
    "$python" -m pip -qq install --disable-pip-version-check --no-deps --no-build-isolation \
        --target "$work/payload/wheel" "$project"
    cp -r "$project"/tests/{beams_run.py,documents.py,perfetto_read.py,perfetto_sql.py,beams,workloads,kernel,vm} \
        "$work/payload/tests/"
    local built
    built=$(find "$cache" -maxdepth 1 -name 'usdt-*' | sort | tail -n 1)
    if [ -n "$built" ]; then
        mkdir -p "$work/payload/cache"
        cp -r "$built" "$work/payload/cache/"
    else
        say "no BEAM with USDT probes is there, so those are not tried; tests/beams/build-usdt.sh"
    fi
}

pack_payload() {
    tar -C "$work/payload" -cf "$work/payload.tar" .
    truncate -s %1M "$work/payload.tar" # a disk is of whole sectors
}

# The kernel that a release is tried on.
kernel_of() { # RELEASE
    if [ "$1" = unit ]; then echo bookworm; else echo "$1"; fi
}

make_initramfs() { # RELEASE
    local tree=$work/initramfs-$1 init=init.sh
    [ "$1" != unit ] || init=unit-init.sh
    mkdir -p "$tree"/{bin,proc,sys,dev,disk,space,root}
    cp "$(command -v busybox)" "$tree/bin/"
    ln -s busybox "$tree/bin/sh"
    cp -r "$vm/$(kernel_of "$1")/modules" "$tree/"
    cp "$here/$init" "$tree/init"
    chmod 755 "$tree/init"
    (cd "$tree" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/$1.initramfs"
}

# QEMU 7.2 leaves wrong flags behind cmpxchg16b, which Linux 6.12 allocates memory with: clearcpuid=141
# has the kernel do without; the feature is there for programs.
start() { # RELEASE LOG
    local kernel image=$disk
    kernel=$vm/$(kernel_of "$1")
    [ "$1" != unit ] || image=$unit_disk
    nice -n 5 timeout "$patience" qemu-system-x86_64 -accel "$accel" -cpu max -smp 2 -m 1500 \
        -nodefaults -display none -no-reboot -serial stdio \
        -kernel "$kernel/vmlinuz" -initrd "$work/$1.initramfs" \
        -append "console=ttyS0 quiet panic=-1 no_timer_check clearcpuid=141 systemd.show_status=0 systemd.mask=serial-getty@ttyS0.service${SCOPE_VM_ONLY:+ SCOPE_VM_ONLY=$SCOPE_VM_ONLY}" \
        -drive "file=$image,format=raw,if=virtio,readonly=on" \
        -drive "file=$work/payload.tar,format=raw,if=virtio,readonly=on" \
        </dev/null 2>&1 9>&- | stdbuf -oL tr -d '\r' >"$2" || true
}

boot() { # RELEASE; 0 if its last line says that nothing failed
    local log=$vm/$1.log last version try
    version=$(cat "$vm/$(kernel_of "$1")/modules/version")
    for try in 1 2 3; do
        say "$1: Linux $version (log: $log)"
        start "$1" "$log"
        # An emulated CPU now and then makes a kernel panic while it starts, before anything of ours ran.
        if grep -q '^Linux ' "$log" || ! grep -q 'Kernel panic' "$log"; then break; fi
        say "$1: the kernel panicked while it started, for the $try. time"
    done
    grep '^  *\(ok\|FAILED\|skipped\) ' "$log" || true
    last=$(grep '^scope-vm: ' "$log" | tail -n 1)
    if [ -z "$last" ]; then
        tail -n 20 "$log" >&2
        last="scope-vm: the guest ended without a result"
    fi
    echo "$1, Linux $version: ${last#scope-vm: }"
    [[ $last == *" passed, 0 failed" ]]
}

releases=("${@:-}")
[ $# -gt 0 ] || releases=(bullseye bookworm trixie unit)
for release in "${releases[@]}"; do
    make_kernel "$(kernel_of "$release")"
done
make_payload
disk='' unit_disk=''
[[ "${releases[*]}" = unit ]] || make_disk
[[ " ${releases[*]} " != *" unit "* ]] || make_unit_disk
pack_payload
failed=()
for release in "${releases[@]}"; do
    make_initramfs "$release"
    boot "$release" || failed+=("$release")
done
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
