# SPDX-License-Identifier: Apache-2.0
"""
Builds the deb and the rpm into ``dist/``, by nfpm from ``nfpm.yaml``.

    .venv/bin/python packaging/build_packages.py [--to FOLDER]

Needs the virtual environment of the tests (hatchling, nfpm) and the built objects.
DEBFULLNAME and DEBEMAIL name the maintainer, as they do for Debian's own tools; else it is the
author of the last commit. The same sources make the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import make_completions

ROOT = Path(__file__).resolve().parent.parent
STAGE = ROOT / "build" / "package"
SHARE = STAGE / "usr/share"
CODE = STAGE / "usr/lib/scope-ebpf"
#: As distributions call the processor.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_ENTRY = """\
#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
import sys

sys.path.insert(0, "/usr/lib/scope-ebpf")
from {module} import {function}

sys.exit({function}())
"""
_CHANGELOG = """\
scope-ebpf ({version}-1) unstable; urgency=medium

  * What is new is in CHANGELOG.md.

 -- {maintainer}  {date}
"""
_COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: scope-ebpf

Files: *
Copyright: 2026 The authors of scope-ebpf
License: Apache-2.0
 On Debian systems the text of the Apache License 2.0 is in
 /usr/share/common-licenses/Apache-2.0.

Files: usr/lib/scope-ebpf/scope_ebpf/sinks/viewer/*
Copyright: 2018 Jamie Wong
License: MIT
 speedscope, with the libraries that its authors compiled into it.
{mit}

Files: usr/lib/scope-ebpf/scope_ebpf/sinks/viewer/speedscope.css
Copyright: 2018 Jamie Wong
 2010-2019 Adobe
License: MIT and OFL-1.1
 The style sheet of speedscope with the font Source Code Pro in it, whose license is in
 /usr/lib/scope-ebpf/scope_ebpf/sinks/viewer/LICENSE.font.md.

Files: usr/lib/scope-ebpf/scope_ebpf/kernel/objects/*
 usr/lib/scope-ebpf/scope_ebpf/kernel/source/probes/*
Copyright: 2026 The authors of scope-ebpf
License: GPL-2.0-only
 On Debian systems the text of the GNU General Public License 2 is in
 /usr/share/common-licenses/GPL-2.
"""


def main() -> None:
    """Lay out the files and pack them twice."""
    parser = argparse.ArgumentParser(description="Builds the deb and the rpm.")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", metavar="FOLDER")
    dist = parser.parse_args().to
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct"))
    maintainer = _maintainer()
    shutil.rmtree(STAGE, ignore_errors=True)
    _code(seconds)
    _commands(project["scripts"])
    _man_pages()
    _completions()
    _shared()
    _overrides()
    _documents(version, maintainer, datetime.fromtimestamp(seconds, UTC))
    _level(seconds)
    environment = {
        **os.environ,
        "VERSION": version,
        "ARCH": ARCHITECTURES[platform.machine()],
        "MAINTAINER": maintainer,
        "SOURCE_DATE_EPOCH": str(seconds),
    }
    dist.mkdir(exist_ok=True)
    nfpm = Path(sys.executable).with_name("nfpm")
    for kind in ("deb", "rpm"):
        command = [str(nfpm), "package", "-f", "packaging/nfpm.yaml", "-p", kind, "-t", f"{dist}/"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    for path in sorted(dist.glob(f"scope-ebpf[-_]{version}*")):
        sys.stdout.write(f"{path}  {path.stat().st_size // 1024} KiB\n")


def _git(*words: str) -> str:
    command = ["git", "-c", f"safe.directory={ROOT}", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def _maintainer() -> str:
    name, address = os.environ.get("DEBFULLNAME"), os.environ.get("DEBEMAIL")
    return f"{name} <{address}>" if name and address else _git("log", "-1", "--format=%an <%ae>")


def _code(seconds: int) -> None:
    """The wheel, unpacked into a folder of our own."""
    wheels = ROOT / "build" / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    subprocess.run(
        [
            *[sys.executable, "-m", "pip", "-qq", "wheel", "--disable-pip-version-check"],
            *["--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT)],
        ],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(seconds)},
        check=True,
    )
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(CODE)
    if not (CODE / "scope_ebpf/sinks/viewer/speedscope.js").exists():
        raise SystemExit("build_packages: the wheel has no viewer of flame graphs; make viewer")


def _commands(scripts: dict[str, str]) -> None:
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        path = STAGE / "usr/bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_ENTRY.format(module=module, function=function))


def _man_pages() -> None:
    """All but that of scope-mark, which is built where Erlang is and is in no package."""
    for page in sorted((ROOT / "docs/man").iterdir()):
        if page.stem == "scope-mark":
            continue
        _gzip(page.read_text(), SHARE / f"man/man{page.suffix[1:]}/{page.name}.gz")


def _completions() -> None:
    """What the shells complete, where they look for it."""
    for name, texts in make_completions.completions().items():
        for shell, text in texts.items():
            path = SHARE / make_completions.PLACES[shell].format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def _shared() -> None:
    """What Prometheus and Grafana take."""
    folder = SHARE / "scope-ebpf"
    (folder / "dashboards").mkdir(parents=True)
    for board in sorted((ROOT / "dashboards").glob("*.json")):
        shutil.copy(board, folder / "dashboards")
    shutil.copy(ROOT / "dashboards/rules.yml", folder)
    shutil.copy(ROOT / "packaging/prometheus.yml", folder)


def _overrides() -> None:
    """What lintian would complain of, and why it stays."""
    path = SHARE / "lintian/overrides/scope-ebpf"
    path.parent.mkdir(parents=True)
    shutil.copy(ROOT / "packaging/lintian-overrides", path)


def _documents(version: str, maintainer: str, date: datetime) -> None:
    """
    The documents: those of ``docs`` lie beside README.md and others, so links between them change.
    """
    folder = SHARE / "doc/scope-ebpf"
    shutil.copytree(
        ROOT / "docs", folder, ignore=shutil.ignore_patterns("man", "demo", "*.py", "__pycache__")
    )
    for path in folder.rglob("*.md"):
        path.write_text(re.sub(r"\]\(\.\./((?:\.\./)*[A-Z]+\.md)", r"](\1", path.read_text()))
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"):
        text = (ROOT / name).read_text().replace("](docs/", "](")
        (folder / name).write_text(text.replace("](CHANGELOG.md)", "](changelog.gz)"))
    (folder / "copyright").write_text(_COPYRIGHT.format(mit=_license_of_the_viewer()))
    _gzip((ROOT / "CHANGELOG.md").read_text(), folder / "changelog.gz")
    entry = _CHANGELOG.format(version=version, maintainer=maintainer, date=format_datetime(date))
    _gzip(entry, folder / "changelog.Debian.gz")


def _license_of_the_viewer() -> str:
    """Its text, each line indented as Debian's format has it, an empty one as a dot."""
    lines = (CODE / "scope_ebpf/sinks/viewer/LICENSE").read_text().strip().splitlines()
    return "\n".join(f" {line.strip()}" if line.strip() else " ." for line in lines)


def _gzip(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _level(seconds: int) -> None:
    """Fixed modes and times, so that every build is the same."""
    for path in [STAGE, *STAGE.rglob("*")]:
        runs = path.is_dir() or path.parent.name == "bin"
        path.chmod(0o755 if runs else 0o644)
        os.utime(path, (seconds, seconds))


if __name__ == "__main__":
    main()
