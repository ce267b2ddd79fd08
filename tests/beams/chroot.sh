#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a root filesystem that holds another Debian suite's Erlang, and prints its folder.
#
#   tests/beams/chroot.sh SUITE [FOLDER]      trixie: OTP 27, sid: OTP 29, bullseye: OTP 23
#
# Made once per suite (six seconds, 90 MB) and used as it is the next time. The packages are unpacked and
# not configured: an Erlang VM needs its files, not a running system around it. They come from the mirror
# that this machine's own apt uses, so a machine that is no Debian has no such suite.
set -euo pipefail

say() { echo "chroot: $*" >&2; }

if [ $# -lt 1 ]; then
    say "which suite? trixie, sid or bullseye"
    exit 2
fi
suite=$1
cache=${2:-${SCOPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scope-ebpf}}
out=$cache/$suite

made() { [ -e "$out/usr/bin/erl" ] || [ -L "$out/usr/bin/erl" ]; }

if made; then
    echo "$out"
    exit 0
fi
if ! command -v mmdebstrap >/dev/null; then
    say "mmdebstrap is not installed; packaging/install-deps.sh test installs it"
    exit 1
fi

mirror=$("$(dirname "$0")/mirror.sh") || {
    say "so $suite cannot be had"
    exit 1
}

mkdir -p "$cache"
exec 9>"$cache/.$suite.lock"
flock 9
if made; then # by another call, while this one waited
    echo "$out"
    exit 0
fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
# This machine's proxy and timeouts hold for the other suite too. A mirror may be older than the date in it.
apt-config dump | grep '^Acquire::' >"$work/apt.conf" || true
printf '%s\n' 'Acquire::Check-Valid-Until "false";' 'Acquire::Retries "8";' >>"$work/apt.conf"

say "making a root filesystem of $suite (log: $cache/chroot-$suite.log)"
mmdebstrap --variant=extract --include=erlang-base,erlang-ssl,base-files,dash,coreutils,sed \
    --aptopt="$work/apt.conf" --skip=cleanup/apt/lists \
    "$suite" "$work/root" "$mirror" >"$cache/chroot-$suite.log" 2>&1 || {
    tail -n 5 "$cache/chroot-$suite.log" >&2
    say "mmdebstrap failed; the whole log is $cache/chroot-$suite.log"
    exit 1
}
rm -rf "$work"/root/usr/share/{doc,man,locale,info} "$work"/root/var/lib/apt/lists/*
mkdir -p "$work"/root/{proc,tmp,mnt}
rm -rf "$out" # of an older shape
mv -T "$work/root" "$out"
say "made $out ($(du -sh "$out" | cut -f1))"
echo "$out"
