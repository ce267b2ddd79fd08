#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds emulators that carry USDT probes, from the distribution's own source package: beam.smp, which
# has the JIT, and beam.emu.smp, which interprets.
#
#   tests/beams/build-usdt.sh [FOLDER]
#
# The source is that of the erlang-base installed here, so the emulators run on the installed OTP
# libraries. Takes eight to fifteen minutes and 1 GB once; prints the folder, which is named after the
# source version; what is in it already is used as it is. BINDIR=FOLDER/bin selects these emulators,
# EMU=beam.emu the one that interprets: the installed erlexec knows of no flavour but the JIT.
set -euo pipefail

cache=${1:-${SCOPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scope-ebpf}}
version=$(dpkg-query -W -f '${source:Version}' erlang-base)
out=$cache/usdt-${version//:/_}
declare -A binaries=([jit]=beam.smp [emu]=beam.emu.smp)
missing=()
for flavor in jit emu; do
    [ -x "$out/bin/${binaries[$flavor]}" ] || missing+=("$flavor")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "$out"
    exit 0
fi

say() { echo "build-usdt: $*" >&2; }

mkdir -p "$cache"
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT

say "fetching the source of erlang $version"
source=$("$(dirname "$0")/source.sh" "$work")

say "building ${missing[*]} with USDT probes (log: $cache/build-usdt.log)"
(
    cd "$source"
    MAKEFLAGS=-j$(nproc)
    export ERL_TOP=$PWD LC_ALL=C.UTF-8 MAKEFLAGS
    ./configure --prefix=/usr --with-dynamic-trace=systemtap --without-wx --without-javac --without-odbc \
        --without-ssl --without-megaco --enable-shared-zlib --disable-builtin-zlib
    for flavor in "${missing[@]}"; do
        make -C erts/lib_src TYPE=opt FLAVOR="$flavor"
        make -C erts/emulator TYPE=opt FLAVOR="$flavor"
    done
) >"$cache/build-usdt.log" 2>&1 || {
    tail -n 20 "$cache/build-usdt.log" >&2
    say "the build failed; the whole log is $cache/build-usdt.log"
    exit 1
}

mkdir -p "$out/bin"
# Everything around the emulators is the installed one.
for program in erlexec erl_child_setup inet_gethost epmd; do
    cp /usr/lib/erlang/erts-*/bin/$program "$work/"
    mv "$work/$program" "$out/bin/"
done
# The emulators come last and whole: their presence says that the folder is complete.
for flavor in "${missing[@]}"; do
    strip "$source"/bin/*/"beam.$flavor"
    mv "$source"/bin/*/"beam.$flavor" "$out/bin/${binaries[$flavor]}"
    say "built $out/bin/${binaries[$flavor]}"
done
echo "$out"
