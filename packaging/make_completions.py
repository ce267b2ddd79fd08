# SPDX-License-Identifier: Apache-2.0
"""
Make the completions of bash, zsh and fish from the parsers, by shtab.

They go into ``scope_ebpf/completions``, where a wheel or a package is built.
Git does not know them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import shtab

from scope_ebpf.cli import daemon, main

FOLDER = Path(main.__file__).parents[1] / "completions"
#: Where each shell looks for them, below /usr/share, by the name of the program.
PLACES = {
    "bash": "bash-completion/completions/{}",
    "zsh": "zsh/vendor-completions/_{}",
    "fish": "fish/vendor_completions.d/{}.fish",
}
#: Lines among which shtab has notes of its own.
_NOTES = 12
#: The value of an option that is a file, and the word that is one.
_FILES = ("FILE", "PROBE.c")


def whole_parser() -> argparse.ArgumentParser:
    """A parser of every command; the options without a command are those of the default one."""
    parser = argparse.ArgumentParser(prog="scope-trace", add_help=False)
    for action in _options(main.parser_of(main.DEFAULT))._actions:  # noqa: SLF001
        if action.option_strings:  # the first word is a command
            parser._add_action(action)  # noqa: SLF001
    parser.add_argument("--version", action="store_true", help="print the version and end")
    parser.add_argument("--print-completion", choices=list(PLACES), help="print it and end")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, text in main.COMMANDS.items():
        own = [_options(main.parser_of(name))]
        commands.add_parser(name, help=text, parents=own, add_help=False)
    return parser


def _options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The *parser* with files completed where it wants files."""
    for action in parser._actions:  # noqa: SLF001 - there is no other way to them
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        if action.dest == "words":
            # A VM and names in it, which no shell knows; files are the words of `run`.
            action.complete = shtab.FILE if "PROBE.c" in str(parser.usage) else {}  # type: ignore[attr-defined]
    return parser


def completions() -> dict[str, dict[str, str]]:
    """The text for each program and shell."""
    parsers = {"scope-trace": whole_parser(), "scope-ebpfd": daemon.parser()}
    return {
        name: {shell: _own_notes(shtab.complete(parser, shell)) for shell in PLACES}
        for name, parser in parsers.items()
    }


def _own_notes(text: str) -> str:
    """*text* with one note of ours for those of shtab on how to install it."""
    head, body = text.split("\n")[:_NOTES], text.split("\n")[_NOTES:]
    kept = [line for line in head if line.startswith("#compdef") or not line.startswith("#")]
    made = "# Made from the parsers of scope-ebpf by shtab; SPDX-License-Identifier: Apache-2.0"
    at = 1 if kept[0].startswith("#compdef") else 0  # zsh wants it first
    return "\n".join([*kept[:at], made, *kept[at:], *body])


def write() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for name, texts in completions().items():
        for shell, text in texts.items():
            (FOLDER / f"{name}.{shell}").write_text(text)


if __name__ == "__main__":
    write()
