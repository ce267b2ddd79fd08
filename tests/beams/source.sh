#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fetches the source package of the erlang-base that is installed here, or of another Debian suite's,
# and prints its folder.
#
#   tests/beams/source.sh WORK [SUITE]      WORK is a folder of the caller, who removes it
set -euo pipefail

work=$1
suite=${2:-}

# An apt root of its own: the machine's sources may name no source packages, and are not ours to change.
apt=$work/apt
mkdir -p "$apt"/etc/apt/{sources.list.d,preferences.d,trusted.gpg.d,apt.conf.d} \
    "$apt"/var/lib/{apt/lists/partial,dpkg} "$apt"/var/cache/apt/archives/partial
cp -r /etc/apt/apt.conf.d/. "$apt/etc/apt/apt.conf.d/"
cp -r /etc/apt/trusted.gpg.d/. "$apt/etc/apt/trusted.gpg.d/"
touch "$apt/var/lib/dpkg/status"
if [ -n "$suite" ]; then
    mirror=$("$(dirname "$0")/mirror.sh")
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb-src [signed-by=$key] $mirror $suite main" >"$apt/etc/apt/sources.list"
    wanted=erlang
else
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] && sed 's/^Types:.*/Types: deb-src/' "$file" >"$apt/etc/apt/sources.list.d/${file##*/}"
    done
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -f "$file" ] && sed -n 's/^deb /deb-src /p' "$file" >"$apt/etc/apt/sources.list.d/src-${file##*/}"
    done
    wanted=erlang=$(dpkg-query -W -f '${source:Version}' erlang-base)
fi
options=(-o "Dir::Etc=$apt/etc/apt" -o "Dir::State=$apt/var/lib/apt" -o "Dir::Cache=$apt/var/cache/apt"
    -o "Dir::State::status=$apt/var/lib/dpkg/status" -o APT::Sandbox::User=root
    -o Acquire::Retries=8)

apt-get -qq "${options[@]}" update >&2
(cd "$work" && apt-get -qq "${options[@]}" source "$wanted" >&2)
find "$work" -maxdepth 1 -type d -name 'erlang-*'
