# SPDX-License-Identifier: Apache-2.0
"""
Memory images of VMs, made from the measured structs of a release, with planted contents.

An image holds what a VM keeps of itself: schedulers, run queues, ETS tables in rings, allocators,
the tables of processes, ports, atoms and modules, code, connections. *truth* is what the VM would
say itself, worked out from what was planted and the measured sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm_allocators import allocators
from vm_base import Image
from vm_code import atoms, code
from vm_connections import connections, functions
from vm_processes import processes, tables
from vm_schedulers import counters, schedulers

if TYPE_CHECKING:
    from measured import Measured


def make(
    release: Measured,
    shape: tuple[int, int, int] = (3, 2, 5),
    *,
    hidden: bool = False,
    noise: bool = False,
) -> Image:
    """
    A VM of the *release*; *shape* is how many schedulers it has of each kind.

    A *hidden* one has no symbols but those of functions for native code. What is not planted in a
    struct is zero, or *noise*.
    """
    image = Image(release, shape, hidden=hidden, noise=noise)
    for add in (
        atoms,
        code,
        tables,
        processes,
        schedulers,
        counters,
        allocators,
        connections,
        functions,
    ):
        add(image)
    return image
