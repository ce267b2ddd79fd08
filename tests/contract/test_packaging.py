# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from scope_ebpf.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def needed() -> dict[str, str]:
    """
    The libraries that the program needs, and how old each may be.
    """
    found = {}
    for line in PROJECT["dependencies"]:
        name, _, version = line.partition(">=")
        found[name] = version
    return found


@pytest.mark.parametrize("form", [r"python3-{} \(>= (?:\d+:)?{}\)", r"python3dist\({}\) >= {}"])
def test_the_packages_depend_on_what_the_program_needs(form: str):
    """
    Each library of pyproject.toml is one of the deb and of the rpm, with the same bound.
    """
    said = (ROOT / "packaging/nfpm.yaml").read_text()
    missing = [
        f"{name} {version}"
        for name, version in needed().items()
        if not re.search(form.format(re.escape(name), re.escape(version)), said)
    ]
    assert [] == missing, "packaging/nfpm.yaml"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_man_page(command: str):
    """
    A command without a page is not done; the page says what it is and how it ends.
    """
    name = "scope-trace" if command == "trace" else f"scope-trace-{command}"
    page = (ROOT / f"docs/man/{name}.1").read_text()
    assert f".Nm {name}\n" in page
    for section in ("SYNOPSIS", "EXIT STATUS", "SEE ALSO"):
        assert f".Sh {section}\n" in page, section


def test_every_key_of_the_config_has_its_place():
    """
    The config that is installed and its man page name every key that there is.
    """
    from scope_ebpf.daemon.config import _KEYS  # noqa: PLC0415

    config = (ROOT / "packaging/config.toml").read_text()
    page = (ROOT / "docs/man/scope-ebpf-config.5").read_text()
    assert [] == [key for key in _KEYS if not re.search(rf"^#\[?{key}\b", config, re.MULTILINE)]
    assert [] == [key for key in _KEYS if not re.search(rf"\b{key}\b", page)]
