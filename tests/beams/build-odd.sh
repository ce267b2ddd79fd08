#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds an emulator with other options than the distribution's, stripped, from its own source package.
#
#   tests/beams/build-odd.sh VARIANT [FOLDER]
#
#   clang   clang, -O2, position-independent, with frame pointers
#   hard    gcc -O3, link-time optimization, stack protector, control-flow protection, at a fixed address
#   plain   gcc -O0, at a fixed address: nothing is inlined
#
# By hand, not part of the suite: eight minutes of CPU and 1 GB each. Prints the folder; what is in it
# already is used as it is. BINDIR=FOLDER/bin selects the emulator; it runs on the installed OTP libraries.
set -euo pipefail

say() { echo "build-odd: $*" >&2; }

variant=${1:-}
case $variant in
clang) cc=clang cxx=clang++ options="-O2 -fPIE -fno-omit-frame-pointer" link=-pie ;;
hard)
    cc=gcc cxx=g++ link="-no-pie -flto=auto -O3"
    options="-O3 -flto=auto -fno-pie -fstack-protector-strong -fcf-protection=full"
    ;;
plain) cc=gcc cxx=g++ options="-O0 -fno-pie" link=-no-pie ;;
*)
    say "which variant? clang, hard or plain"
    exit 2
    ;;
esac
cache=${2:-${SCOPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scope-ebpf}}
version=$(dpkg-query -W -f '${source:Version}' erlang-base)
out=$cache/odd-$variant-${version//:/_}
if [ -x "$out/bin/beam.smp" ]; then
    echo "$out"
    exit 0
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
source=$("$(dirname "$0")/source.sh" "$work")
log=$cache/build-odd-$variant.log
say "building $variant (log: $log)"
(
    cd "$source"
    export ERL_TOP=$PWD LC_ALL=C.UTF-8 CC=$cc CXX=$cxx CFLAGS="$options" CXXFLAGS="$options" LDFLAGS="$link"
    ./configure --prefix=/usr --without-wx --without-javac --without-odbc --without-ssl --without-megaco \
        --enable-shared-zlib --disable-builtin-zlib
    make -C erts/lib_src TYPE=opt FLAVOR=jit
    make -C erts/emulator TYPE=opt FLAVOR=jit
) >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    say "the build failed; the whole log is $log"
    exit 1
}
mkdir -p "$out/bin"
for program in erlexec erl_child_setup inet_gethost epmd; do
    cp /usr/lib/erlang/erts-*/bin/$program "$out/bin/"
done
strip "$source"/bin/*/beam.jit
mv "$source"/bin/*/beam.jit "$out/bin/beam.smp"
echo "$out"
