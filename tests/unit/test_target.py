# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scope_ebpf.beam.vm.discover import Refusal
from scope_ebpf.cgroups import container_of
from scope_ebpf.cli import calls, target
from scope_ebpf.cli import main as cli
from scope_ebpf.cli.target import (
    UnknownVmError,
    Vm,
    WordsError,
    choose,
    find_vm,
    matching,
    words_of,
)
from scope_ebpf.errors import NoSuchProcessError, NotPermittedError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

ONE, OTHER = "1a2b" * 16, "1a2c" * 16
VMS = [
    Vm(23, "shop@localhost", None),
    Vm(42, "shopping@localhost", ONE),
    Vm(77, "rabbit@mq1.example", OTHER),
    Vm(78, "rabbit@mq2.example", None),
    Vm(90, "4711@localhost", None),
    Vm(95, "nonode@nohost", None),
    Vm(99, None, "12345678" * 8),
]


@pytest.mark.parametrize(
    ("word", "pid"),
    [
        ("shop@localhost", 23),
        ("shop", 23),  # a whole name before the beginning of another
        ("shopp", 42),
        ("rabbit@mq2", 78),
        (ONE, 42),
        ("1a2b", 42),
        ("1a2c1a2c1a2c", 77),
        ("4711@", 90),
        ("nonode", 95),
        ("12345678123", 99),  # too long for a pid
    ],
)
def test_a_vm_is_named_by_node_container_or_beginning(word: str, pid: int):
    """
    A node name, the part before its host, a container id, or a beginning that only one VM has.
    """
    assert pid == choose(word, VMS).pid


@pytest.mark.parametrize(
    ("word", "pids"), [("rabbit", [77, 78]), ("rabbit@mq", [77, 78]), ("sho", [23, 42])]
)
def test_a_word_that_fits_several_lists_them(word: str, pids: list[int]):
    """
    What fits several VMs is none of them: the error lists those and no other.
    """
    with pytest.raises(UsageError, match=rf"^'{word}' fits 2 VMs: say which one") as error:
        choose(word, VMS)
    assert pids == [int(line.split()[0]) for line in error.value.details]


def test_two_nodes_of_one_name_are_told_apart_by_pid():
    """
    A name that two nodes have, such as that of every node without one, means neither.
    """
    twins = [Vm(5, "nonode@nohost", None), Vm(6, "nonode@nohost", ONE)]
    with pytest.raises(UsageError, match="fits 2 VMs") as error:
        choose("nonode@nohost", twins)
    assert ("      5  nonode@nohost", "      6  nonode@nohost  container 1a2b1a2b1a2b") == (
        error.value.details
    )


@pytest.mark.parametrize(
    ("word", "node"),
    [
        ("shop", "shop"),
        ("shop", "shop@evil"),
        ("shop", "shopping@localhost"),
        ("shop@localhost", "shop@localhost.evil"),
        ("sho", "sho@localhost"),
        (ONE, f"{ONE}@localhost"),
    ],
)
def test_no_user_takes_the_name_of_anothers_vm(word: str, node: str):
    """
    Where VMs of several users fit, none is chosen because it fits better; of one user's, one is.
    """
    ours = Vm(23, "shop@localhost", ONE, 1000)
    with pytest.raises(UsageError, match=rf"^'{word}' fits 2 VMs of different users:") as error:
        choose(word, [ours, Vm(42, node, None, 1001), Vm(77, "other@localhost", None, 1002)])
    assert [23, 42] == [int(line.split()[0]) for line in error.value.details]
    same = Vm(42, node, None, 1000)
    # "shop" is the name of both "shop@localhost" and "shop@evil", no matter whose they are.
    assert len(matching(word, [ours, same])) == (2 if node == "shop@evil" else 1)


@pytest.mark.parametrize("word", ["1a2", "1A2B", "", "hop", "@localhost", "-1"])
def test_what_is_no_beginning_names_nothing(word: str):
    """
    Fewer than four digits of a container, the middle of a name, nothing at all.
    """
    with pytest.raises(UnknownVmError):
        choose(word, VMS)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("shpo", "shop@localhost"),
        ("shoping", "shopping@localhost"),
        ("rabit", "rabbit@mq1.example"),
        ("Rabbit@mq1", "rabbit@mq1.example"),
        ("shop@localhots", "shop@localhost"),
    ],
)
def test_a_misspelt_name_suggests_the_one_that_was_meant(word: str, meant: str):
    """
    The error for a name that no VM has names one that is like it, and lists all.
    """
    with pytest.raises(UnknownVmError) as error:
        choose(word, VMS)
    assert str(error.value).startswith(f"no VM is called '{word}'; did you mean {meant}")
    assert len(error.value.details) == len(VMS)


def test_nothing_means_the_only_vm():
    """
    TARGET may be left out if one VM runs, not if none does or several do.
    """
    assert 23 == choose(None, VMS[:1]).pid
    with pytest.raises(NoSuchProcessError, match=r"^no Erlang or Elixir VM runs on this host"):
        choose(None, [])
    with pytest.raises(UsageError, match=r"^7 VMs run here: say which one") as error:
        choose(None, VMS)
    assert len(error.value.details) == 7


def test_a_vm_that_cannot_be_looked_at_is_one_of_several():
    """
    The one VM that may be looked at is not taken for the one that was meant.
    """
    hidden = Refusal(31, NotPermittedError("process 31 belongs to another user"))
    with pytest.raises(UsageError, match=r"^2 VMs run here") as error:
        choose(None, VMS[:1], [hidden])
    assert error.value.details[1] == "     31  process 31 belongs to another user"
    with pytest.raises(NotPermittedError):
        choose(None, [], [hidden])
    assert 23 == choose("shop", VMS[:1], [hidden]).pid


def test_a_long_list_is_cut():
    """
    Hundreds of VMs do not fill the terminal.
    """
    with pytest.raises(UsageError) as error:
        choose(None, [Vm(pid, None, None) for pid in range(100, 400)])
    assert 21 == len(error.value.details)
    assert error.value.details[-1] == "and 280 more: see `scope-trace list`"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["Shop.Cart"], (None, ["Shop.Cart"])),
        (["shop", "Shop.Cart"], ("shop", ["Shop.Cart"])),
        (["Shop.Cart", "-p", "shop"], ("shop", ["Shop.Cart"])),
        (["--pid", "shop", "Shop.Cart"], ("shop", ["Shop.Cart"])),
        (["23", "--format", "json", "<0.97.0>"], ("23", ["<0.97.0>"])),
        (["--pid", "shop", "--", "-dash"], ("shop", ["-dash"])),
        (["shop", "-f", "json", "--", "--pid"], ("shop", ["--pid"])),
    ],
)
def test_target_comes_before_the_words_of_the_command(words: list[str], expected: tuple):
    """
    A single word is the command's own, the first of two is TARGET; options stand anywhere.
    """
    assert expected == words_of(cli.parsed(["ps", *words]), "PROCESS", least=1, most=1)


def test_a_target_behind_other_words_is_named(monkeypatch: pytest.MonkeyPatch):
    """
    By its pid, in whatever command; by its name, where the first word names no VM.
    """
    words = ["calls", "lists:map/2", "lists:seq/2", "4711"]
    with pytest.raises(WordsError, match=r"^TARGET comes first: 4711 lists:map/2 lists:seq/2$"):
        words_of(cli.parsed(words), "FUNCTION...", least=1, most=9, is_own=lambda w: ":" in w)
    monkeypatch.setattr("scope_ebpf.beam.vm.discover.beams", list)
    monkeypatch.setattr(target, "matching", lambda word, _: ["a VM"] if word == "shop" else [])
    with pytest.raises(WordsError, match=r"^TARGET comes first: shop Shop.Cart$"):
        find_vm("Shop.Cart", ["shop"])
    with pytest.raises(UnknownVmError, match=r"^no VM is called 'Shop.Cart'$"):
        find_vm("Shop.Cart", ["other"])


@pytest.mark.parametrize("words", [["ps"], ["ps", "a", "b", "c"], ["ps", "a", "b", "-p", "c"]])
def test_too_many_or_too_few_words_are_refused_with_what_is_wanted(words: list[str]):
    """
    The error says which words the command takes.
    """
    with pytest.raises(WordsError, match=r"^wanted is \[TARGET\] PROCESS, "):
        words_of(cli.parsed(words), "PROCESS", least=1, most=1)


@pytest.mark.parametrize("words", [["top", "a", "b"], ["top", "a", "-p", "b"]])
def test_a_second_target_is_refused(words: list[str]):
    """
    Two words for one VM, or a word and --pid, are refused: neither is ignored.
    """
    with pytest.raises(WordsError, match=r"^one TARGET is wanted, not several: (a b|b a)$"):
        words_of(cli.parsed(words))


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (["lists:map/2", "lists:foldl"], None),
        (["shop", "lists:map/2", "lists:foldl"], "shop"),
        (["Shop.Cart.add/2", "Shop.Cart.total"], None),
        (["shop@localhost", "Shop.Cart.add/2"], "shop@localhost"),
        (["4711", "*:init/1"], "4711"),
    ],
)
def test_the_first_of_several_functions_is_no_target(
    words: list[str], target: str | None, monkeypatch: pytest.MonkeyPatch
):
    """
    What is written like a function is one, and anything else before a function is TARGET.
    """
    seen = []

    def found(word: str | None):
        seen.append(word)
        raise NoSuchProcessError("enough")

    monkeypatch.setattr(calls, "find_vm", found)
    monkeypatch.setattr(calls.host, "require", lambda: None)
    with pytest.raises(NoSuchProcessError, match="enough"):
        calls.run(cli.parsed(["calls", *words]))
    assert [target] == seen


@pytest.mark.parametrize(
    "path",
    [
        f"/docker/{ONE}",
        f"/system.slice/docker-{ONE}.scope",
        f"/kubepods.slice/kubepods-pod7.slice/cri-containerd-{ONE}.scope",
        f"/kubepods/burstable/pod7/{ONE}",
        f"/machine.slice/libpod-{ONE}.scope/container",
        f"/docker/{OTHER}/kubelet/{ONE}",
    ],
)
def test_the_container_is_in_the_path_of_the_cgroup(path: str, tmp_path: Path):
    """
    The innermost folder of a container runtime names the container, however it writes it.
    """
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(f"0::{path}\n")
    assert ONE == container_of(7, tmp_path)


@pytest.mark.parametrize("path", ["/", "/user.slice", f"/x{ONE}", f"/{ONE}a", f"/{ONE.upper()}"])
def test_a_process_outside_of_containers_has_none(path: str, tmp_path: Path):
    """
    Other cgroups and a process that has gone have no container.
    """
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(f"0::{path}\n")
    assert (None, None) == (container_of(7, tmp_path), container_of(8, tmp_path))


def test_a_text_of_cgroups_without_end_has_no_container(tmp_path: Path):
    """
    More than a dozen hierarchies with the longest paths is not read.
    """
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(f"0::/docker/{ONE}\n" * 4096)
    assert container_of(7, tmp_path) is None
