#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs from apt what a purpose needs, on Debian 12 or Ubuntu 24.04 and later.
#
#   packaging/install-deps.sh [run] [build] [viewer] [demo] [test] [packages] [bench] [vm]     default: run
#
# Packages that are there cost nothing: apt is asked only about those that are not. No service is
# started by what this installs, and those that the tests use are started by the tests.
set -euo pipefail

say() { echo "install-deps: $*" >&2; }
die() {
    say "$*"
    exit 1
}

packages_for() {
    case $1 in
    # The tool itself: libbpf loads the objects, python runs the rest.
    run) echo libbpf1 python3 python3-venv ;;
    # The BPF objects, and the wheel around them.
    build) echo clang llvm libbpf-dev linux-libc-dev make git ;;
    # The viewer of flame graphs, which packages have in them.
    viewer) npm ;;
    demo) echo erlang-base procps ;;
    # VMs to look at (two real applications among them), compilers for the USDT build of one, and
    # witnesses that count the same events with other means. bcc, and kernel headers for it, compile
    # the probes that users write.
    test) echo \
        erlang-base erlang-dev erlang-crypto erlang-tools erlang-runtime-tools \
        rabbitmq-server ejabberd elixir \
        gcc g++ make perl libc6-dev libncurses-dev zlib1g-dev dpkg-dev systemtap-sdt-dev xz-utils \
        bpftrace "$(bpftool)" prometheus nodejs \
        "$(npm)" "$(browser)" fonts-dejavu-core \
        binutils clang-format shellcheck mmdebstrap debian-archive-keyring util-linux procps \
        rpm systemd python3-bpfcc "$(headers)" openssl tmux ;;
    # What looks at the packages and at the machine image beyond that.
    packages) echo lintian vagrant vagrant-libvirt iproute2 ;;
    # The tools that the figures are compared with.
    bench) echo erlang-base rabbitmq-server wrk bpftrace python3-bpfcc "$(headers)" ;;
    # Virtual machines that boot other kernels, by software emulation.
    vm) echo qemu-system-x86 seabios busybox-static cpio e2fsprogs kmod mmdebstrap debian-archive-keyring \
        make python3 python3-venv ;;
    *) die "no such purpose: $1 (there are run, build, viewer, demo, test, packages, bench and vm)" ;;
    esac
}

# Shows what programs the kernel holds; Ubuntu has it among the kernel's tools.
bpftool() {
    if grep -q '^ID=ubuntu' /etc/os-release; then echo linux-tools-common; else echo bpftool; fi
}

# The package manager of node, for the viewer and to draw the dashboards with; one from elsewhere will do.
npm() { if ! type -P npm >/dev/null; then echo npm; fi; }

# A browser to draw them in. Ubuntu has none as a package; one that is there will do.
browser() { if ! grep -q '^ID=ubuntu' /etc/os-release; then echo chromium; fi; }

# The headers of the running kernel where apt has them, or else those of the archive's kernel.
headers() {
    if apt-cache show "linux-headers-$(uname -r)" >/dev/null 2>&1; then
        echo "linux-headers-$(uname -r)"
    elif grep -q '^ID=ubuntu' /etc/os-release; then
        echo linux-headers-generic
    else
        echo "linux-headers-$(dpkg --print-architecture)"
    fi
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        env "$@"
    else
        sudo env "$@"
    fi
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    die "this machine has no apt; install what packages_for() in $0 lists by its own means"
fi

missing=()
for purpose in "${@:-run}"; do
    listed=$(packages_for "$purpose")
    for package in $listed; do
        if ! is_installed "$package" && [[ " ${missing[*]-} " != *" $package "* ]]; then
            missing+=("$package")
        fi
    done
done
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
    die "not root and no sudo; missing are: ${missing[*]}"
fi

log=$(mktemp)
# Some packages start their service when they are installed. This file keeps invoke-rc.d from it; one
# that the machine has for itself stays as it is.
guard=/usr/sbin/policy-rc.d
guarded=
finish() {
    rm -f "$log"
    [ -z "$guarded" ] || as_root rm -f "$guard"
}
trap finish EXIT
if [ ! -e "$guard" ]; then
    guarded=yes
    # shellcheck disable=SC2016 # $1 is for the other shell
    as_root sh -c 'printf "#!/bin/sh\nexit 101\n" >"$1" && chmod 755 "$1"' sh "$guard"
fi

# Runs apt-get; its chatter is shown only if it fails.
apt_get() {
    as_root DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -qq -y -o DPkg::Lock::Timeout=600 \
        -o Acquire::Retries=8 -o Dpkg::Options::=--force-confold "$@" >"$log" 2>&1 </dev/null && return
    tail -n 20 "$log" >&2
    return 1
}

say "reading the package lists"
# The time in which to wait for a lock does not hold for that of the lists.
deadline=$((SECONDS + 600))
until said=$(apt_get update 2>&1); do
    if [[ $said != *"Could not get lock"* || $SECONDS -ge $deadline ]]; then
        printf '%s\n' "$said" >&2
        die "apt-get update failed"
    fi
    sleep 2
done
say "installing ${missing[*]}"
apt_get install --no-install-recommends "${missing[@]}" || die "apt-get install failed"
say "done"
