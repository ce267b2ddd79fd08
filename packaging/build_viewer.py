# SPDX-License-Identifier: Apache-2.0
"""
Puts speedscope, the viewer of flame graphs, into the package.

    python packaging/build_viewer.py

The release is the one named here, from the npm package of that name, fetched by this machine's npm
and accepted only with the digest below. It is kept in the cache (``SCOPE_CACHE``), so npm is asked
once per machine. No script of the package is run. ``build_hook.py`` does the same for a wheel.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VIEWER = ROOT / "scope_ebpf" / "sinks" / "viewer"
VERSION = "1.25.0"
#: npm's own digest of the release, and of its bytes: base64 of SHA-512.
INTEGRITY = (
    "cpf9HWTZf1ijLXBJrk87Ve/54tnYx6rlf0gUThvn3ook6h63hLXVOQiMf44PT+XoV503cPfvfiT5gP5vojp6Ag=="
)
#: Each file that is taken, by what it is called in the release.
FILES = {
    "speedscope.js": r"package/dist/release/speedscope-\w+\.js",
    "speedscope.css": r"package/dist/release/speedscope-\w+\.css",
    "font.woff2": r"package/dist/release/SourceCodePro-Regular\.ttf-\w+\.woff2",
    "LICENSE": r"package/LICENSE",
    "LICENSE.font.md": r"package/dist/release/source-code-pro\.LICENSE\.md",
}
_FONT = re.compile(rb'url\("\./SourceCodePro[^"]*"\)')
_SOURCE_MAP = re.compile(rb"\n(?://|/\*)# sourceMappingURL=.*")
_SECONDS = 300


class ViewerError(Exception):
    """The release cannot be had, with the reason."""


def build() -> None:
    """Put the files into the package, unless they are there; raises ViewerError."""
    stamp = _stamp()
    if (VIEWER / "STAMP").is_file() and (VIEWER / "STAMP").read_text() == stamp:
        return
    files = _files(_release())
    shutil.rmtree(VIEWER, ignore_errors=True)
    VIEWER.mkdir()
    for name, content in files.items():
        (VIEWER / name).write_bytes(content)
    (VIEWER / "STAMP").write_text(stamp)


def _stamp() -> str:
    """What the files were made of and by."""
    return f"speedscope {VERSION} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}\n"


def _release() -> Path:
    """The archive of the release, from the cache or by npm."""
    cache = Path(os.environ.get("SCOPE_CACHE") or _user_cache() / "scope-ebpf")
    kept = cache / f"speedscope-{VERSION}.tgz"
    if kept.is_file() and _is_whole(kept):
        return kept
    if shutil.which("npm") is None:
        raise ViewerError("npm is missing; packaging/install-deps.sh viewer installs it")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = ["npm", "pack", f"speedscope@{VERSION}", "--ignore-scripts", "--silent"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise ViewerError(f"npm took more than {_SECONDS} s; try again") from None
        made = Path(folder) / kept.name
        if done.returncode or not made.is_file():
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ViewerError(f"npm cannot fetch speedscope {VERSION}: {' '.join(last)}")
        if not _is_whole(made):
            raise ViewerError(f"what npm fetched as speedscope {VERSION} has another digest")
        made.replace(kept)
    return kept


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _is_whole(path: Path) -> bool:
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode() == INTEGRITY


def _files(release: Path) -> dict[str, bytes]:
    """The files of :data:`FILES`, the font within the style sheet: a page loads nothing."""
    found: dict[str, bytes] = {}
    with tarfile.open(release) as archive:
        for member in archive:
            for name, pattern in FILES.items():
                content = archive.extractfile(member)
                if content is not None and re.fullmatch(pattern, member.name):
                    found[name] = content.read()
    if missing := FILES.keys() - found.keys():
        raise ViewerError(f"speedscope {VERSION} has no {', '.join(sorted(missing))}")
    font = base64.b64encode(found.pop("font.woff2"))
    style, fonts = _FONT.subn(
        b'url("data:font/woff2;base64,' + font + b'")', found["speedscope.css"]
    )
    script = found["speedscope.js"]
    # Neither may end the element of the page that it stands in.
    if fonts != 1 or re.search(rb"</script|<!--", script, re.IGNORECASE) or b"</" in style:
        raise ViewerError(f"speedscope {VERSION} is not of the form that this script knows")
    found["speedscope.css"] = _SOURCE_MAP.sub(b"", style)
    found["speedscope.js"] = _SOURCE_MAP.sub(b"", script)
    return found


if __name__ == "__main__":
    try:
        build()
    except ViewerError as error:
        sys.exit(f"build_viewer: {error}")
