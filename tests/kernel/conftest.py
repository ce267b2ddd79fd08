# SPDX-License-Identifier: Apache-2.0
"""
VMs that several tests share: each is started once, when a test first asks for it.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import beams_run
import pytest
from tracing import Variant, require_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Each variant by which events are traced: the kind of VM, and the value of --via.
VARIANTS = {
    "stock": ("stock25", "auto"),
    "usdt": ("usdt25", "usdt"),
    "symbols-of-usdt": ("usdt25", "symbol"),
    "interpreter": ("emu25", "auto"),
}


@pytest.fixture(scope="session")
def vm() -> Iterator[Callable[[str], beams_run.Beam]]:
    """
    Gives the VM of a kind that runs ``planted.erl``.
    """
    require_root()
    started: dict[str, beams_run.Beam] = {}
    with ExitStack() as stack:

        def give(kind: str) -> beams_run.Beam:
            if kind not in started:
                started[kind] = stack.enter_context(beams_run.planted(kind))
            return started[kind]

        yield give


@pytest.fixture
def stock(vm: Callable[[str], beams_run.Beam]) -> beams_run.Beam:
    """
    The shared VM as the distribution built it.
    """
    return vm("stock25")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, vm: Callable[[str], beams_run.Beam]) -> Variant:
    kind, via = VARIANTS[request.param]
    return Variant(vm(kind), via)


@pytest.fixture(scope="session")
def private_emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A copy of the distribution's emulator, so that it has no breakpoints of others.
    """
    require_root()
    beams_run.build("stock25")
    folder = tmp_path_factory.mktemp("emulator")
    (source,) = Path("/usr/lib/erlang").glob("erts-*/bin")
    for program in ("beam.smp", "erlexec", "erl_child_setup", "inet_gethost"):
        shutil.copy(source / program, folder)
    return folder
