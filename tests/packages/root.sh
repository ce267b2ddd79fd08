#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a bare Debian with some packages, configured as an installer would, and prints its folder.
#
#   tests/packages/root.sh SUITE PACKAGE...
#
# Kept in ~/.cache/scope-ebpf/root-*, one for each list of packages; half a minute and 400 MB once.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${SCOPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scope-ebpf}
suite=$1
shift
packages=$(printf '%s\n' "$@" | sort -u | paste -sd,)
out=$cache/root-$(echo "$suite $packages" | sha256sum | cut -c 1-12)

mkdir -p "$cache"
exec 9>"$out.lock"
flock 9
if [ -d "$out" ]; then
    echo "$out"
    exit 0
fi
mirror=$("$here/../beams/mirror.sh")
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
# This machine's proxy and timeouts hold here too. A mirror may be older than the date in it.
apt-config dump | grep '^Acquire::' >"$work/apt.conf" || true
printf '%s\n' 'Acquire::Check-Valid-Until "false";' 'Acquire::Retries "8";' >>"$work/apt.conf"
echo "root: making a bare Debian $suite (log: $out.log)" >&2
mmdebstrap --variant=minbase --include="$packages" --aptopt="$work/apt.conf" \
    "$suite" "$work/root" "$mirror" >"$out.log" 2>&1 || {
    tail -n 5 "$out.log" >&2
    echo "root: mmdebstrap failed; the whole log is $out.log" >&2
    exit 1
}
mv -T "$work/root" "$out"
echo "$out"
