#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Starts a small Erlang node and looks at it: run.sh SCOPE_TRACE [OPTIONS]
set -euo pipefail
trace=$1
shift
folder=$(mktemp -d)
erlc -o "$folder" "$(dirname "$0")/shop.erl"
echo "starting a node that sells things (docs/demo/shop.erl)"
erl -noshell -kernel logger_level error -pa "$folder" -s shop start &
node=$!
trap 'kill "$node" 2>/dev/null || true; wait "$node" 2>/dev/null || true; rm -rf "$folder"' EXIT
"$trace" list
echo
echo "\$ scope-trace --pid $node --duration 5"
"$trace" --pid "$node" --duration 5 "$@"
