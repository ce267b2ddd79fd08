#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds an emulator with other options than the distribution's, stripped, from its own source package.
#
#   tests/beams/build-odd.sh VARIANT [SUITE [FOLDER]]
#
#   clang   clang, -O2, position-independent, with frame pointers
#   frames  gcc, the same
#   hard    gcc -O3, stack protector, control-flow protection, at a fixed address
#   lto     gcc -O2, link-time optimization
#   plain   gcc -O0, at a fixed address: nothing is inlined
#
# By hand, not part of the suite: eight minutes of CPU and 1 GB each, an hour at most. Prints the folder;
# what is in it already is used as it is. The source is that of the erlang-base installed here, and the
# emulator runs on its libraries: BINDIR=FOLDER/bin selects it. With SUITE (forky: OTP 29) the source is
# that suite's, and FOLDER is a root filesystem, that of chroot.sh sid with this emulator in it.
set -euo pipefail

say() { echo "build-odd: $*" >&2; }

variant=${1:-} suite=${2:-}
cc=gcc cxx=g++ link=
case $variant in
clang) cc=clang cxx=clang++ options="-O2 -fPIE -fno-omit-frame-pointer" link=-pie ;;
frames) options="-O2 -fPIE -fno-omit-frame-pointer" link=-pie ;;
hard) options="-O3 -fno-pie -fstack-protector-strong -fcf-protection=full" link=-no-pie ;;
lto) options="-O2 -flto=auto" link="-O2 -flto=auto" ;;
plain) options="-O0 -fno-pie" link=-no-pie ;;
*)
    say "which variant? clang, frames, hard, lto or plain"
    exit 2
    ;;
esac
cache=${3:-${SCOPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scope-ebpf}}
if [ -n "$suite" ]; then
    out=$cache/odd-$suite-$variant
else
    version=$(dpkg-query -W -f '${source:Version}' erlang-base)
    out=$cache/odd-$variant-${version//:/_}
fi
if [ -e "$out/bin" ]; then
    echo "$out"
    exit 0
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
source=$("$(dirname "$0")/source.sh" "$work" "$suite")
log=$cache/build-odd-$variant.log
say "building $variant (log: $log)"
build() {
    cd "$source"
    export ERL_TOP=$PWD LC_ALL=C.UTF-8 CC=$cc CXX=$cxx CFLAGS="$options" CXXFLAGS="$options" LDFLAGS="$link"
    ./configure --prefix=/usr --without-wx --without-javac --without-odbc --without-ssl --without-megaco \
        --enable-shared-zlib --disable-builtin-zlib
    make -C erts/lib_src TYPE=opt FLAVOR=jit
    make -C erts/emulator TYPE=opt FLAVOR=jit
}
export -f build
export source cc cxx options link
timeout 3600 bash -euo pipefail -c build >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    say "the build failed; the whole log is $log"
    exit 1
}
strip "$source"/bin/*/beam.jit
if [ -n "$suite" ]; then
    cp -a "$("$(dirname "$0")/chroot.sh" sid)" "$work/root"
    chmod 755 "$work/root"
    for program in "$work"/root/usr/lib/erlang/erts-*/bin/beam.smp; do
        rm "$program"
        cp "$source"/bin/*/beam.jit "$program"
    done
    mv -T "$work/root" "$out"
else
    mkdir "$work/bin"
    for program in erlexec erl_child_setup inet_gethost epmd; do
        cp /usr/lib/erlang/erts-*/bin/$program "$work/bin/"
    done
    mv "$source"/bin/*/beam.jit "$work/bin/beam.smp"
    mkdir -p "$out"
    mv "$work/bin" "$out/bin"
fi
echo "$out"
