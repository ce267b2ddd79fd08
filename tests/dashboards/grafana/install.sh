#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the npm packages of package.json into the cache, and prints the folder that holds them.
#
#   tests/dashboards/grafana/install.sh [CACHE]
#
# Installed once per list of packages (a minute, 640 MB) and used as it is the next time. No script of a
# package is run. Packages come from wherever this machine's npm is set up to take them.
set -euo pipefail

say() { echo "grafana: $*" >&2; }

here=$(cd "$(dirname "$0")" && pwd)
cache=${1:-${SCOPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scope-ebpf}}
out=$cache/grafana-$(sha256sum "$here/package.json" | cut -c1-16)

if [ -d "$out/node_modules" ]; then
    echo "$out"
    exit 0
fi
if ! command -v npm >/dev/null; then
    say "npm is not installed; packaging/install-deps.sh test installs it"
    exit 1
fi

mkdir -p "$cache"
exec 9>"$cache/.grafana.lock"
flock 9
if [ -d "$out/node_modules" ]; then # by another call, while this one waited
    echo "$out"
    exit 0
fi

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
cp "$here/package.json" "$work"
say "installing Grafana's packages (log: $cache/grafana.log)"
npm --prefix "$work" install --legacy-peer-deps --ignore-scripts --no-audit --no-fund \
    --no-package-lock >"$cache/grafana.log" 2>&1 </dev/null || {
    tail -n 5 "$cache/grafana.log" >&2
    say "npm failed; the whole log is $cache/grafana.log"
    exit 1
}
# npm does not fail where it cannot fetch what a package can do without on other machines.
"$work/node_modules/.bin/esbuild" --version >>"$cache/grafana.log" 2>&1 || {
    say "esbuild is not whole; the log is $cache/grafana.log"
    exit 1
}
mv -T "$work" "$out"
trap - EXIT
say "made $out ($(du -sh "$out" | cut -f1))"
echo "$out"
