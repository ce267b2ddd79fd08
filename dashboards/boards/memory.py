# SPDX-License-Identifier: Apache-2.0
"""
Memory and garbage collection: what grows, and what does collecting cost?
"""

from boards.colours import GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from boards.records import Board, Panel, Query, Row, bound

GENERATIONS = (("minor", SKY), ("major", ORANGE))
COLLECTING = """
    sum by (NODE) (rate(beam_garbage_collection_duration_seconds_sum{HERE}[RATE]))
        / clamp_min(sum by (NODE) (rate(beam_cpu_seconds_total{HERE}[RATE])), 0.1)"""

OF_LIMIT = """
    sum by (NODE) (beam_cgroup_memory_bytes{HERE})
        / sum by (NODE) (beam_cgroup_memory_limit_bytes{HERE})
        or 0 * sum by (NODE) (beam_schedulers{HERE})"""

_LIMITS = Row(
    "How near is the end",
    (
        Panel(
            "Memory, of the cgroup's limit",
            "percentunit",
            "Memory of the VM's cgroup without file pages that can be dropped, as a share of its "
            "limit; 0 also without a limit.",
            "at the limit the kernel kills the VM, without a crash dump. Find what grows before you "
            "raise the limit of the container.",
            (Query(OF_LIMIT),),
            warn=0.8,
            bad=0.9,
            kind="stat",
            width=6,
            height=4,
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
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "Fragmentation",
            "percentunit",
            "The share of what the VM's allocators have from the system that they have not given out.",
            "memory that was used once and is kept: look which allocator has it. Its carriers go "
            "back when the last block in them does; see the +M flags for their sizes.",
            (
                Query(
                    """1 - sum by (NODE) (beam_allocator_blocks_bytes{HERE})
                        / sum by (NODE) (beam_allocator_carriers_bytes{HERE})""",
                ),
            ),
            warn=0.5,
            bad=0.7,
            high=1,
            kind="stat",
            width=6,
            height=4,
        ),
        Panel(
            "ETS tables",
            "short",
            "ETS tables of each VM.",
            "a line that only rises is a table for each of something, and nobody deletes them.",
            (Query("sum by (NODE) (beam_ets_tables{HERE})"),),
            kind="stat",
            width=6,
            height=4,
        ),
    ),
)

_HELD = Row(
    "What is held",
    (
        Panel(
            "Resident memory",
            "bytes",
            "Resident memory of each VM.",
            "see by kind what grows. Where it grows and no kind does it is free memory that the "
            "allocators keep: see the fragmentation.",
            (Query("sum by (NODE) (beam_resident_memory_bytes{HERE})"),),
        ),
        Panel(
            "Heaps of processes",
            "bytes",
            "Structs and heaps of all Erlang processes of each VM.",
            "where resident memory grows and this does not it is binaries, ETS, code or the "
            "allocators. Where this grows, see the largest processes.",
            (Query("sum by (NODE) (beam_processes_memory_bytes{HERE})"),),
        ),
        Panel(
            "Growth of resident memory",
            "Bps",
            "By how much resident memory grew or shrank, a second, over the last ten minutes.",
            "memory that grows without end ends with the kernel killing the VM. See the largest "
            "processes, mailboxes, and atoms.",
            (Query("sum by (NODE) (deriv(beam_resident_memory_bytes{HERE}[10m]))"),),
            low=None,
        ),
        Panel(
            "Memory by kind",
            "bytes",
            "What the VM has given out, by what it is for: as erlang:memory() says it, with the rest "
            "of the system's memory as other. A kind that cannot be read because symbols are hidden "
            "is in other; if the system's memory cannot be read either (OTP 29), there is no other.",
            "binary: large binaries that some process still refers to, often after it only passed "
            "them on. ets: a table without a bound. processes: see the largest of them.",
            (
                Query(
                    """sum by (kind)
                        (beam_memory_bytes{HERE, kind=~"processes|binary|ets|code"})""",
                    "{{kind}}",
                ),
                Query(
                    """sum(sum by (NODE) (beam_memory_bytes{HERE, kind="system"})
                        - sum by (NODE) (beam_memory_bytes{HERE, kind=~"binary|ets|code"}))""",
                    "other",
                    GREY,
                ),
            ),
            stack=True,
            hues=(
                ("^processes", SKY),
                ("^binary", ORANGE),
                ("^ets", GREEN),
                ("^code", PURPLE),
            ),
        ),
        Panel(
            "Memory of allocators",
            "bytes",
            "What each allocator of the VM has from the system: eheap has the heaps, binary the "
            "large binaries, ets the tables, ll what lives long (code, atoms).",
            "the allocator says what kind of memory grew, even where the kinds above cannot be read.",
            (
                Query(
                    "sum by (allocator) (beam_allocator_carriers_bytes{HERE})",
                    "{{allocator}}",
                    ranked=True,
                ),
            ),
            "bars",
        ),
        Panel(
            "Largest processes",
            "bytes",
            "The processes with most memory in struct and heaps.",
            "look at the state it keeps and at its mailbox: `scope-trace ps`.",
            (Query('beam_top_memory_bytes{HERE, rank!="other"}', "{{name}} NODE", ranked=True),),
            "bars",
            warn=100 * 2**20,
            bad=2**30,
            more="processes",
        ),
    ),
)

_COLLECTED = Row(
    "Garbage collection",
    (
        Panel(
            "Time spent in garbage collection",
            "percentunit",
            "How long collections took, as a share of the VM's CPU time. It is time by the clock: a "
            "collection that waits for a CPU is longer. A VM that uses less than a tenth of a CPU "
            "counts as using that much.",
            "few large processes that collect often are the usual cause: see the largest "
            "processes, then who of them allocates.",
            (Query(COLLECTING),),
            warn=0.15,
            bad=0.3,
        ),
        Panel(
            "Collections",
            "ops",
            "Collections, a second, on dirty schedulers too; counted by the VM, exact. Where "
            "dirty_collections is unavailable (OTP 29; see the observer), those on dirty schedulers "
            "are missing.",
            "compare with the messages and the spawns: each does its share.",
            (Query("sum by (NODE) (rate(beam_garbage_collections_total{HERE}[RATE]))"),),
        ),
        Panel(
            "Memory reclaimed",
            "Bps",
            "What collections gave back, a second, on dirty schedulers too; counted by the VM, "
            "exact. If dirty_collections is unavailable, its part is missing here as well.",
            "this is what the node allocates for a short time. Less of it is less collecting.",
            (
                Query(
                    """sum by (NODE)
                        (rate(beam_garbage_collection_reclaimed_bytes_total{HERE}[RATE]))""",
                ),
            ),
        ),
        Panel(
            "99 of 100 collections take less than",
            "s",
            "How long a process stands still for a collection; from windows where collections are "
            "many. A quantile may be off by a factor of 8, the width of a bucket.",
            "a process with a large heap is collected whole. Its callers wait as long. See the "
            "largest processes.",
            (
                Query(
                    """histogram_quantile(0.99, sum by (NODE, le) (rate(
                        beam_garbage_collection_duration_seconds_bucket{HERE}[RATE]))) >= 0"""
                ),
            ),
            warn=bound(24),
            bad=bound(27),
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
            "Minor collections, and major ones (the whole heap).",
            "many major ones are processes whose heap cannot hold what they keep; min_heap_size "
            "helps those that live short.",
            (
                Query(
                    """sum by (generation)
                        (rate(beam_garbage_collection_duration_seconds_count{HERE}[RATE]))""",
                    "{{generation}}",
                ),
            ),
            hues=GENERATIONS,
        ),
    ),
)

_SELDOM = Row(
    "Seldom: kills by the kernel, page faults, code",
    (
        Panel(
            "Kills for the memory limit",
            "short",
            "Processes in the VM's pod or cgroup that the kernel killed for its memory limit, within "
            "ten minutes; 0 also without a limit.",
            "the VM or a program that it started was killed: see which in the kernel's log, and what "
            "grew before.",
            (
                Query(
                    """sum by (NODE) (increase(beam_cgroup_oom_kills_total{HERE}[10m]))
                        or 0 * sum by (NODE) (beam_schedulers{HERE})"""
                ),
            ),
            warn=1,
            bad=1,
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
                    "sum by (type) (rate(beam_page_faults_total{HERE}[RATE]))",
                    "{{type}}",
                ),
            ),
            hues=(("^minor", SKY), ("^major", VERMILLION)),
        ),
        Panel(
            "Modules loaded",
            "ops",
            "Modules that were loaded, a second. Schedulers go on meanwhile, except where functions "
            "are traced in the VM: then all of them stop for a moment.",
            "a node in production that loads code all the time does it by mistake: look for "
            "modules that are compiled while it runs.",
            (Query("sum by (NODE) (rate(beam_code_loads_total{HERE}[RATE]))"),),
        ),
    ),
    folded=True,
)

BOARD = Board(
    "memory",
    "Memory and GC",
    "What the VM holds, what grows, which tables fill up, and what garbage collection costs.",
    (_LIMITS, _HELD, _COLLECTED, _SELDOM),
)
