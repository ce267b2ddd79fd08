# SPDX-License-Identifier: Apache-2.0
"""
Completions of the shells, made from the parsers.
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from scope_ebpf.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def texts() -> dict[str, dict[str, str]]:
    """
    What packages have, by program and shell.
    """
    path = ROOT / "packaging/make_completions.py"
    spec = importlib.util.spec_from_file_location("make_completions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.completions()


def completed(text: str, *words: str) -> list[str]:
    """
    What bash offers for the last of *words*.
    """
    line = " ".join(f"'{word}'" for word in words)
    script = (
        f"source /dev/stdin; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
        "_shtab_scope_trace; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], input=text, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sched"], {"schedulers"}),
        (["s"], {"summary", "schedulers", "stacks"}),
        (["--dur"], {"--duration"}),
        (["profile", "--off"], {"--off-cpu"}),
        (["top", "--sort", "m"], {"mailbox", "memory"}),
        (["list", "-f", ""], {"text", "json", "jsonl"}),
    ],
)
def test_bash_completes_commands_options_and_values(
    texts: dict[str, dict[str, str]], words: list[str], expected: set[str]
):
    """
    What bash itself offers behind scope-trace is what the parsers have.
    """
    assert expected == set(completed(texts["scope-trace"]["bash"], "scope-trace", *words))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_every_command_and_option(texts: dict[str, dict[str, str]], shell: str):
    """
    Each command and each of its long options is in the text for zsh and fish.
    """
    text = texts["scope-trace"][shell]
    options = {
        name.lstrip("-")
        for command in main.COMMANDS
        for action in main.parser_of(command)._actions
        for name in action.option_strings
        if name.startswith("--")
    }
    assert [] == [word for word in (*main.COMMANDS, *options) if word not in text]


def test_an_installation_without_completions_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """
    Where they were not built, the error says what builds them; else they are printed.
    """
    monkeypatch.setattr(main, "__file__", str(tmp_path / "cli" / "main.py"))
    with pytest.raises(SystemExit) as end:
        main.main(["--print-completion", "bash"])
    assert 2 == end.value.code
    assert "make completions" in capsys.readouterr().err
    (tmp_path / "completions").mkdir()
    (tmp_path / "completions" / "scope-trace.bash").write_text("complete me\n")
    with pytest.raises(SystemExit) as end:
        main.main(["--print-completion", "bash"])
    assert (0, "complete me\n") == (end.value.code, capsys.readouterr().out)
