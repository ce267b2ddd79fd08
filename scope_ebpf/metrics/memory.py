# SPDX-License-Identifier: Apache-2.0
"""Readings of the VM's own memory as Prometheus families."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scope_ebpf.beam.vm.connections import TYPES

if TYPE_CHECKING:
    from scope_ebpf.beam.vm.allocators import AllocatorReading, MemoryUse
    from scope_ebpf.metrics.page import Page
    from scope_ebpf.metrics.reading import MemoryReading, PeerReading


def expose_memory(page: Page, node: str, memory: MemoryReading) -> None:
    """Add the parts that were read."""
    if memory.allocators:
        _expose_allocators(page, node, memory.allocators)
    connections = memory.connections
    if connections:
        for kind, count in zip(TYPES, connections.nodes, strict=True):
            page.add("beam_connected_nodes", count, node=node, type=kind)
        page.add("beam_dist_queue_bytes", connections.queued, node=node)
        page.add("beam_dist_busy_connections", connections.busy, node=node)
        page.add("beam_pending_nodes", connections.pending, node=node)
        for one in memory.peers:
            _expose_peer(page, node, one)


def _expose_peer(page: Page, node: str, one: PeerReading) -> None:
    labels = {"node": node, "peer": one.peer}
    page.add("beam_dist_link_queue_bytes", one.queued, **labels)
    page.add("beam_dist_link_full", one.full, **labels)
    page.add("beam_dist_link_suspended_processes", one.suspended, **labels)
    page.add("beam_dist_link_suspended_seconds", one.longest, **labels)
    for direction, octets in zip(("in", "out"), one.octets or (), strict=False):
        page.add("beam_dist_link_bytes_total", octets, **labels, direction=direction)


def _expose_use(page: Page, node: str, use: MemoryUse) -> None:
    for kind, size in (
        ("total", use.total),
        ("processes", use.processes),
        ("processes_used", use.processes_used),
        ("system", use.system),
        ("binary", use.binary),
        ("ets", use.ets),
        ("code", use.loaded_code),
    ):
        if size is not None:
            page.add("beam_memory_bytes", size, node=node, kind=kind)
    if use.processes is not None and use.processes_used is not None:
        used, free = use.processes_used, use.processes - use.processes_used
        for usage, size in (("used", used), ("free", free)):
            page.add_compat("processes_bytes", size, node=node, usage=usage)


def _expose_allocators(page: Page, node: str, reading: AllocatorReading) -> None:
    if reading.memory:
        _expose_use(page, node, reading.memory)
    for one in reading.allocators:
        labels = {"node": node, "allocator": one.name}
        page.add("beam_allocator_carriers_bytes", one.carriers, **labels)
        page.add("beam_allocator_blocks_bytes", one.blocks, **labels)
        for kind, (carriers, blocks) in one.kinds.items():
            for usage, size in (("carriers", carriers), ("blocks", blocks)):
                page.add_compat("allocator_bytes", size, **labels, kind=kind, usage=usage)
