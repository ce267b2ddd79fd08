# SPDX-License-Identifier: Apache-2.0
"""
Compiles ``probes/*.bpf.c`` into the package, so that a host needs no compiler.

    python packaging/build_objects.py     builds what is of other sources

``build_hook.py`` runs the same when a wheel is built.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBES = ROOT / "probes"
OBJECTS = ROOT / "scope_ebpf" / "kernel" / "objects"
VOCABULARY = ROOT / "scope_ebpf" / "events.py"

FLAGS = (
    *("-g", "-O2", "-target", "bpf", "-mcpu=v3"),
    # BPF_KPROBE names arguments by their position, so some are there to be skipped.
    *("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
)
ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}


def shared_sources() -> list[Path]:
    """What every object is built with beside its own source."""
    return [*sorted(PROBES.glob("include/*.h")), Path(__file__), VOCABULARY]


def build_id() -> str:
    """Two fingerprints: of the vocabulary alone, and of everything that objects share."""
    shared = hashlib.sha256(b"".join(path.read_bytes() for path in shared_sources()))
    vocabulary = VOCABULARY.read_bytes()
    # As events.py does it: hashlib takes longer to load than all that is hashed with it.
    own = f"{zlib.crc32(vocabulary):08x}{zlib.adler32(vocabulary):08x}"
    return f"{own} {shared.hexdigest()[:16]}"


def compile_probe(source: Path, target: Path) -> None:
    """One probe to one object; debug sections are dropped, the BTF stays."""
    machine = platform.machine()
    subprocess.run(
        [
            *["clang", *FLAGS, f"-D__TARGET_ARCH_{ARCHITECTURES[machine]}"],
            f'-DBUILD="{build_id()}"',
            *["-I", str(PROBES / "include"), "-I", f"/usr/include/{machine}-linux-gnu"],
            *["-c", str(source), "-o", str(target)],
        ],
        check=True,
    )
    subprocess.run(["llvm-strip", "-g", str(target)], check=True)


def is_current(target: Path, source: Path) -> bool:
    """Whether *target* is not older than its *source*, and has the stamp of what all share."""
    try:
        late = target.stat().st_mtime < source.stat().st_mtime
        return not late and f"scope-ebpf build {build_id()}\0".encode() in target.read_bytes()
    except FileNotFoundError:
        return False


def build() -> None:
    """Build every object that is not of these sources."""
    for tool in ("clang", "llvm-strip"):
        if shutil.which(tool) is None:
            raise SystemExit(f"build_objects: {tool} is missing; packaging/install-deps.sh build")
    OBJECTS.mkdir(exist_ok=True)
    for source in sorted(PROBES.glob("*.bpf.c")):
        target = OBJECTS / source.with_suffix(".o").name
        if not is_current(target, source):
            compile_probe(source, target)


if __name__ == "__main__":
    build()
    sys.exit(0)
