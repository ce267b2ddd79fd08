# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from scope_ebpf import events
from scope_ebpf.attach import allowlist
from scope_ebpf.attach.plan import Item, Plan
from scope_ebpf.beam.elf.contents import Segment
from scope_ebpf.cli.calls import refuse_interpreter
from scope_ebpf.errors import HostError, NothingToAttachError
from scope_ebpf.kernel.observers.session import Session
from scope_ebpf.planning import function_probes
from scope_ebpf.runs.call_pairing import Pairs

NAMES = ("local__function__entry", "global__function__entry", "function__return")
ARGUMENTS = "8@%r11 8@%r10 -4@64(%rsp)"
SYMBOLS = {"apply": 0x4000, "fixed_apply": 0x5000}


def binary(names: tuple[str, ...] = NAMES, **symbols: int) -> SimpleNamespace:
    """
    An emulator with the probes of these names, the global one once more in each of *symbols*.
    """
    sites = [
        SimpleNamespace(provider="erlang", name=name, address=a, semaphore=8, arguments=ARGUMENTS)
        for name, a in (
            *((name, 0x1000 * n) for n, name in enumerate(names, 1)),
            *((NAMES[1], address + 4) for address in symbols.values()),
        )
    ]
    found = {n: SimpleNamespace(name=n, address=a, size=16) for n, a in symbols.items()}
    return SimpleNamespace(
        usdt_sites=sites,
        symbol=found.get,
        file_offset=lambda a: a,
        segments=(
            Segment(0, 0, 16, executable=False, writable=True),
            Segment(0x1000, 16, 0x8000, executable=True),
        ),
        read=lambda _address, size: b"\x90" * size,
    )


def test_an_interpreter_has_each_probe_that_a_call_passes_once():
    """
    Sites in functions that look up the called one are left out: the instruction fires again.
    """
    found = function_probes.attachments(binary(**SYMBOLS), "emu", returns=True)
    assert [(NAMES[0], 0x1000), (NAMES[1], 0x2000), (NAMES[2], 0x3000)] == [
        (site.name, site.address) for site in found
    ]
    calls = function_probes.attachments(binary(**SYMBOLS), "emu", returns=False)
    assert set(NAMES[:2]) == {site.name for site in calls}


def test_a_jit_never_gets_them():
    """
    They would crash it: no site is found, and a session would not attach to one.
    """
    with pytest.raises(NothingToAttachError):
        function_probes.attachments(binary(**SYMBOLS), "jit", returns=False)
    assert not allowlist.at_calls("jit")
    assert not set(NAMES) & {hook.name for variant in events.VARIANTS for hook in variant.hooks}
    for site in function_probes.attachments(binary(**SYMBOLS), "emu", returns=True):
        plan = Plan((Item("call", "usdt", site.name, (site,), ""),))
        for flavor in ({}, {"flavor": "jit"}):
            with pytest.raises(HostError, match="not on the list"):
                Session(plan, 1, 0, np.zeros((), events.SETTINGS), **flavor)


@pytest.mark.parametrize("missing", NAMES)
def test_an_interpreter_that_lacks_one_is_refused(missing: str):
    """
    A stock interpreter has none, and no JIT has function__return.
    """
    whole = binary(**SYMBOLS)
    whole.usdt_sites = [site for site in whole.usdt_sites if site.name != missing]
    with pytest.raises(NothingToAttachError, match=missing):
        function_probes.attachments(whole, "emu", returns=False)


def test_an_interpreter_that_hides_where_it_looks_up_is_refused():
    """
    Without these symbols a call by apply would count twice.
    """
    with pytest.raises(NothingToAttachError, match="count twice"):
        function_probes.attachments(binary(), "emu", returns=False)


def test_an_interpreter_without_probes_is_told_what_would_do():
    """
    Its functions are data, at which no breakpoint stops.
    """
    bare = binary((), **SYMBOLS)
    with pytest.raises(NothingToAttachError, match=r"interpreter.*USDT probe.*erlang:trace"):
        refuse_interpreter(SimpleNamespace(flavor="emu", pid=1, binary=bare))
    refuse_interpreter(SimpleNamespace(flavor="emu", pid=1, binary=binary(**SYMBOLS)))
    refuse_interpreter(SimpleNamespace(flavor="jit", pid=1))


@pytest.mark.parametrize(
    ("module", "function", "text"),
    [
        ("gen_server", "handle_call", "gen_server:handle_call/3"),
        ("Elixir.Shop.Cart", "add", "'Elixir.Shop.Cart':add/3"),
        ("m", "-f/1-fun-0-", "m:'-f/1-fun-0-'/3"),
        ("m", "a@b", "m:'a@b'/3"),
        ("m", "it's", r"m:'it\'s'/3"),
        ("straße", "größe÷", "straße:'größe÷'/3"),
    ],
)
def test_a_function_is_written_as_the_vm_writes_it(module: str, function: str, text: str):
    """
    Quotes stand where print_atom_name puts them.
    """
    assert text.encode() == function_probes.text(module, function, 3)


def test_a_text_is_as_long_as_the_vm_has_room_for():
    """
    The buffer has 256 bytes with its end; a name with a newline cannot be compared.
    """
    assert 255 == len(function_probes.text("m" * 200, "f" * 200, 3))
    with pytest.raises(ValueError, match="a\nb"):
        function_probes.text("m", "a\nb", 3)


def test_a_recursion_is_measured_when_it_is_over():
    """
    Each return is that of the youngest call; all are certain once none is open.
    """
    pairs = Pairs()
    pairs.called(1, 0, 10)
    pairs.called(1, 0, 20)
    pairs.called(2, 0, 25)
    assert [(25, 27)] == pairs.returned(2, 0, 27)
    assert [] == pairs.returned(1, 0, 30)
    assert [(20, 30), (10, 40)] == pairs.returned(1, 0, 40)


def test_a_call_that_never_returns_spoils_no_other():
    """
    After it a return may be anyone's, so none of that process is measured; others are.
    """
    pairs = Pairs()
    assert [] == pairs.returned(1, 0, 5)
    pairs.called(1, 0, 10)
    pairs.called(1, 0, 20)
    assert [] == pairs.returned(1, 0, 30)
    pairs.called(1, 0, 40)
    assert [] == pairs.returned(1, 0, 50)
    pairs.called(1, 1, 60)
    assert [(60, 70)] == pairs.returned(1, 1, 70)
