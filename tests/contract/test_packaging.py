# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

import pytest

from scope_ebpf import errors
from scope_ebpf.attach.plan import EVENTS
from scope_ebpf.cli import check, daemon, main
from scope_ebpf.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/man").iterdir())
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


def page_of(command: str) -> str:
    """
    The man page of a command, as it is written.
    """
    name = "scope-trace.1" if command == "trace" else f"scope-trace-{command}.1"
    return (ROOT / "docs/man" / ("scope-ebpfd.8" if command == "daemon" else name)).read_text()


def parser_of(command: str) -> argparse.ArgumentParser:
    """
    What understands the options of a command.
    """
    if command == "daemon":
        return daemon.parser()
    return main.parser_of(command)


def options_of(command: str) -> set[str]:
    """
    The options that a command takes: of several names of one, the last.
    """
    actions = parser_of(command)._actions
    return {action.option_strings[-1] for action in actions if action.option_strings} - {"--help"}


@pytest.mark.parametrize("command", [*COMMANDS, "daemon"])
def test_a_page_has_the_options_that_there_are(command: str):
    """
    A man page explains each option of its command, and no other one.
    """
    page = page_of(command)
    synopsis = page[page.index(".Sh SYNOPSIS") : page.index(".Sh DESCRIPTION")]
    explained = re.findall(r"^\.It .*", page, re.MULTILINE)

    def named(text: str) -> set[str]:
        long = {f"--{name}" for name in re.findall(r"\bFl -([a-z-]+)", text)}
        return long | {f"-{name}" for name in re.findall(r"\bFl ([A-Z])\b", text)}

    def short(lines: list[str]) -> set[tuple[str, ...]]:
        return {(a, b) for line in lines for a, b in re.findall(r"Fl (\w) , Fl -([a-z-]+)", line)}

    names = [action.option_strings for action in parser_of(command)._actions]
    pairs = {(one[0][1:], one[-1][2:]) for one in names if one[1:]} - {("h", "help")}
    assert pairs == short(explained)
    wanted = options_of(command)
    assert wanted == named(" ".join(explained))
    written = named(synopsis)
    overall = {"--version", "--print-completion"} if command == "trace" else set()
    assert wanted == written - overall


@pytest.mark.parametrize("command", [*COMMANDS, "daemon"])
def test_a_page_says_the_defaults_that_there_are(command: str):
    """
    The number or the file that an option is where nobody gives it stands in its paragraph.
    """
    paragraphs = re.split(r"^\.(?:It|El)", page_of(command).replace(",", ""), flags=re.MULTILINE)
    missing = []
    for action in parser_of(command)._actions:
        # Of choices the page names the first as the default, or says nothing.
        if action.choices or action.default in (None, False, [], argparse.SUPPRESS):
            continue
        option = action.option_strings[-1]
        default = str(action.default).removesuffix(".0")
        said = [p for p in paragraphs if re.search(rf"\A.*Fl -{option.strip('-')}\b", p)]
        if not any(re.search(rf"\b{re.escape(default)}\b", paragraph) for paragraph in said):
            missing.append(f"{option} {default}")
    assert [] == missing


def test_the_page_has_every_event():
    """
    An event that --events takes is in the man page.
    """
    page = page_of("trace")
    assert [] == [event for event in EVENTS if not re.search(rf"\b{event}\b", page)]


def test_every_exit_code_is_in_the_page():
    """
    Whatever a command may end with is listed in scope-trace(1), where the other pages point.
    """

    def codes(kind: type[errors.ScopeError]) -> set[int]:
        return {kind.exit_code}.union(*map(codes, kind.__subclasses__()))

    text = page_of("trace").partition(".Sh EXIT STATUS")[2].partition(".Sh SEE ALSO")[0]
    listed = set(map(int, re.findall(r"^\.It (\d+)$", text, re.MULTILINE)))
    assert codes(errors.ScopeError) | {0, check.FOUND, 130} == listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_is_installed(page: Path):
    """
    Other pages, and documents by the path that the package gives them.
    """
    text = page.read_text()
    named = re.findall(r"^\.Xr (\S+) (\d)", text, re.MULTILINE)
    pages = [page.with_name(".".join(words)) for words in named]
    assert [] == [other.name for other in pages if not other.exists()]
    documents = re.findall(r"/usr/share/doc/scope-ebpf/(\S+)", text)
    assert [] == [name for name in documents if not (ROOT / "docs" / name).exists()]
    assert not re.search(r"(?<!/)\bdocs/", text), "a path that is not installed"


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
    from scope_ebpf.daemon.config import _KEYS

    config = (ROOT / "packaging/config.toml").read_text()
    page = (ROOT / "docs/man/scope-ebpf-config.5").read_text()
    assert [] == [key for key in _KEYS if not re.search(rf"^#\[?{key}\b", config, re.MULTILINE)]
    assert [] == [key for key in _KEYS if not re.search(rf"\b{key}\b", page)]
