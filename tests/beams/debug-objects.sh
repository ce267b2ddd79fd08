#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles as much of OTP's emulator as its layout is read from, with debug information: jit.o, usdt.o
# and emu.o, which packaging/make_layout.py reads.
#
#   tests/beams/debug-objects.sh SOURCE FOLDER
#
# SOURCE is the unpacked source of one version of OTP, such as `apt-get source erlang` gives; it is
# configured where it lies. Some three minutes of CPU, most of them for ./configure and for make's
# dependencies; the emulator itself is not built. Needs systemtap-sdt-dev, perl and a C++ compiler.
set -Eeuo pipefail

if [ $# -ne 2 ]; then
    echo "debug-objects: which source, and which folder for the objects?" >&2
    exit 2
fi
source=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
log=$out/build.log
fail() { tail -n 20 "$log" >&2; }
trap fail ERR

cd "$source"
export ERL_TOP=$source LC_ALL=C.UTF-8
if ! compgen -G 'erts/*/config.h' >/dev/null; then
    ./configure --with-dynamic-trace=systemtap --without-wx --without-javac --without-odbc \
        --without-ssl --without-megaco >"$log" 2>&1
fi
config=$(echo erts/*/config.h)
machine=$(basename "$(dirname "$config")")
[ -e "$config.usdt" ] || cp "$config" "$config.usdt"
# What declares each struct, and what says which version of ERTS it is.
files=(erl_process erl_process_dict erl_message beam_ranges module export erl_fun erl_monitor_link
    erl_node_tables atom register io erl_alloc_util erl_db)
for name in erl_etp erl_init; do
    if grep -qs etp_erts_version "erts/emulator/beam/$name.c"; then
        files+=("$name")
        break
    fi
done

build() { # NAME FLAVOR
    local objects=("${files[@]/#/obj/$machine/opt/$2/}")
    objects=("${objects[@]/%/.o}")
    (
        cd erts/emulator
        rm -f "${objects[@]}"
        make -f "$machine/Makefile" TARGET="$machine" TYPE=opt FLAVOR="$2" generate
        make -f "$machine/Makefile" TARGET="$machine" TYPE=opt FLAVOR="$2" "${objects[@]}"
        ld -r -o "$out/$1.o" "${objects[@]}"
    ) >>"$log" 2>&1
}

cp "$config.usdt" "$config"
build usdt jit
grep -v 'define USE_\(VM_PROBES\|SYSTEMTAP\|DYNAMIC_TRACE\)' "$config.usdt" >"$config"
build jit jit
build emu emu
echo "$out"
