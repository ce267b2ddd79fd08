# SPDX-License-Identifier: Apache-2.0
"""
Memory and garbage collection: what grows, and what does collecting cost?
"""

from boards.colours import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION
from boards.records import Board, Panel, Query, Row

GENERATIONS = (("minor", SKY), ("major", ORANGE))

_HELD = Row(
    "What is held",
    (
        Panel(
            "Memory of the VM",
            "bytes",
            "Resident memory, and in it the structs and heaps of Erlang processes.",
            "where the first grows and the second does not it is binaries, ETS, code or free "
            "memory that the allocators keep.",
            (
                Query("sum by (NODE) (beam_resident_memory_bytes{HERE})", "resident {{node}}"),
                Query(
                    "sum by (NODE) (beam_processes_memory_bytes{HERE})",
                    "processes {{node}}",
                    ORANGE,
                ),
            ),
        ),
        Panel(
            "Growth of resident memory",
            "Bps",
            "By how much resident memory grew or shrank, a second, over the last ten minutes.",
            "memory that grows without end ends with the kernel killing the VM. See the largest "
            "processes, mailboxes, and atoms.",
            (Query("sum by (NODE) (deriv(beam_resident_memory_bytes{HERE}[10m]))", hue=BLUE),),
            low=None,
        ),
        Panel(
            "Atoms, of what the table holds",
            "percentunit",
            "How full the atom table is. No atom is ever removed.",
            "at the limit the VM ends. Look for list_to_atom or binary_to_atom on data from "
            "outside.",
            (Query("beam_atoms{HERE} / beam_atom_limit{HERE}"),),
            warn=0.7,
            bad=0.85,
        ),
        Panel(
            "Largest processes",
            "bytes",
            "The processes with most memory in struct and heaps.",
            "look at the state it keeps and at its mailbox: `scope-trace ps`.",
            (Query("sort_desc(beam_top_memory_bytes{HERE})", "{{name}} {{node}}"),),
            "bars",
            warn=100 * 2**20,
            bad=2**30,
            width=12,
            more="processes",
        ),
        Panel(
            "Page faults",
            "eps",
            "Page faults of the VM: minor (memory that was not there yet), major (it came from a "
            "disk).",
            "major ones stop a scheduler for as long as the disk takes: the host is short of "
            "memory.",
            (
                Query(
                    "sum by (NODE, type) (rate(beam_page_faults_total{HERE}[RATE]))",
                    "{{type}} {{node}}",
                ),
            ),
            hues=(("^minor", SKY), ("^major", VERMILLION)),
            width=12,
        ),
    ),
)

_COLLECTED = Row(
    "Garbage collection",
    (
        Panel(
            "CPU spent in garbage collection",
            "percentunit",
            "The share of the VM's CPU time that collections took.",
            "few large processes that collect often are the usual cause: see the largest "
            "processes, then who of them allocates.",
            (
                Query(
                    """sum by (NODE) (rate(
                        beam_garbage_collection_duration_seconds_sum{HERE}[RATE]))
                        / clamp_min(sum by (NODE) (rate(beam_cpu_seconds_total{HERE}[RATE])),
                        0.001)"""
                ),
            ),
            warn=0.15,
            bad=0.3,
        ),
        Panel(
            "Collections",
            "ops",
            "Collections on normal schedulers, a second; counted by the VM, exact.",
            "compare with the messages and the spawns: each does its share.",
            (Query("sum by (NODE) (rate(beam_garbage_collections_total{HERE}[RATE]))", hue=GREEN),),
        ),
        Panel(
            "Memory reclaimed",
            "Bps",
            "What collections on normal schedulers gave back, a second; counted by the VM, exact.",
            "this is what the node allocates for a short time. Less of it is less collecting.",
            (
                Query(
                    """sum by (NODE)
                        (rate(beam_garbage_collection_reclaimed_bytes_total{HERE}[RATE]))""",
                    hue=BLUE,
                ),
            ),
        ),
        Panel(
            "99 of 100 collections take less than",
            "s",
            "How long a process stands still for a collection, by generation; from windows where "
            "collections are many.",
            "a process with a large heap is collected whole. Its callers wait as long. See the "
            "largest processes.",
            (
                Query(
                    """histogram_quantile(0.99, sum by (NODE, generation, le) (rate(
                        beam_garbage_collection_duration_seconds_bucket{HERE,
                        generation=~"minor|major"}[RATE])))""",
                    "{{generation}} {{node}}",
                ),
            ),
            warn=0.01,
            bad=0.1,
            hues=tuple((f"^{name}", hue) for name, hue in GENERATIONS),
        ),
        Panel(
            "Length of collections, all",
            "s",
            "How many collections took how long; brighter is more.",
            "what is far above the rest is one large process: see who it is.",
            (
                Query(
                    """sum by (le) (increase(
                        beam_garbage_collection_duration_seconds_bucket{HERE}[RATE]))""",
                    "{{le}}",
                ),
            ),
            "heatmap",
            low=None,
        ),
        Panel(
            "Collections by generation",
            "ops",
            "Minor collections, major ones (the whole heap) and those of hibernation.",
            "many major ones are processes whose heap cannot hold what they keep; min_heap_size "
            "helps those that live short.",
            (
                Query(
                    """sum by (NODE, generation)
                        (rate(beam_garbage_collection_duration_seconds_count{HERE}[RATE]))""",
                    "{{generation}} {{node}}",
                ),
            ),
            hues=tuple((f"^{name}", hue) for name, hue in GENERATIONS),
        ),
    ),
)

_CODE = Row(
    "Code",
    (
        Panel(
            "Modules loaded",
            "ops",
            "Modules that were loaded, a second. Loading code stops all schedulers for a moment.",
            "a node in production that loads code all the time does it by mistake: look for "
            "modules that are compiled while it runs.",
            (Query("sum by (NODE) (rate(beam_code_loads_total{HERE}[RATE]))", hue=GREY),),
            width=24,
            height=6,
        ),
    ),
)

BOARD = Board(
    "memory",
    "Memory and GC",
    "What the VM holds, what grows, which tables fill up, and what garbage collection costs.",
    (_HELD, _COLLECTED, _CODE),
)
