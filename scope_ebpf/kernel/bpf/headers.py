# SPDX-License-Identifier: Apache-2.0
"""
Kernel headers for bcc's compiler, also on a host without those of its running kernel.

Programs that use only helpers and user memory compile with the headers of any kernel.
"""

from __future__ import annotations

import os
import platform
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scope_ebpf.errors import CompilerMissingError

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARIABLE = "BCC_KERNEL_SOURCE"
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}


@contextmanager
def kernel_headers(root: Path = Path("/")) -> Iterator[Path]:
    """
    Set BCC_KERNEL_SOURCE while the block runs, if bcc needs it; yields the headers' folder.

    These are the headers in BCC_KERNEL_SOURCE, or of the running kernel, or the newest that are
    installed. CompilerMissingError where there are none.
    """
    own = root / "lib/modules" / platform.release() / "build"
    if os.environ.get(_VARIABLE) or own.exists():
        yield Path(os.environ.get(_VARIABLE) or own)
        return
    trees = _installed(root)
    with tempfile.TemporaryDirectory(prefix="scope-headers-") as folder:
        _join(trees, Path(folder))
        os.environ[_VARIABLE] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[_VARIABLE]


def _installed(root: Path) -> list[Path]:
    """The folders of the newest headers; Debian and Ubuntu split them in two."""
    machine = _ARCHITECTURES.get(platform.machine(), "none")
    found = {}
    for tree in sorted((root / "usr/src").glob("*")):
        if (tree / f"arch/{machine}/include/generated").is_dir():
            found[tree.stat().st_mtime, tree] = tree
    if not found:
        raise CompilerMissingError(
            "there are no kernel headers, which compiling a probe takes; install some, those of "
            "another kernel will do (Debian: apt install linux-headers-amd64; Ubuntu: apt install "
            "linux-headers-generic; Fedora: dnf install kernel-devel)"
        )
    newest = found[max(found)]
    version = newest.name.rpartition("-")[0]
    names = (f"{version}-common", version)
    return [newest, *(newest.with_name(n) for n in names if newest.with_name(n).is_dir())]


def _join(trees: list[Path], folder: Path) -> None:
    """Fill *folder* with links to the headers in *trees*, laid out as one tree."""
    for part in ("include", f"arch/{_ARCHITECTURES[platform.machine()]}/include"):
        (folder / part).mkdir(parents=True)
        for tree in trees:
            for entry in sorted((tree / part).glob("*")):
                link = folder / part / entry.name
                if not link.is_symlink():
                    link.symlink_to(entry)
