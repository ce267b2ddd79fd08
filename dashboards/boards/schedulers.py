# SPDX-License-Identifier: Apache-2.0
"""
Schedulers: do they wait for a CPU, work, spin, or sleep?
"""

from boards.colours import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, YELLOW
from boards.records import Board, Panel, Query, Row, bound

#: A colour for each type of thread, wherever threads are distinguished.
TYPES = (
    ("^normal", SKY),
    ("^dirty_cpu", ORANGE),
    ("^dirty_io", GREEN),
    ("^poll", PURPLE),
    ("^aux", GREY),
    ("^async", YELLOW),
)
#: Of the time in which normal schedulers want a CPU; who wants less than one counts as wanting one.
STARVED = """
    sum by (NODE) (rate(beam_thread_offcpu_seconds_total{HERE, scheduler_type="normal",
        reason=~"preempted|queued|throttled"}[RATE]))
        / clamp_min(sum by (NODE) (rate(beam_thread_cpu_seconds_total{HERE,
            scheduler_type="normal"}[RATE]))
            + sum by (NODE) (rate(beam_thread_offcpu_seconds_total{HERE, scheduler_type="normal",
                reason=~"preempted|queued|throttled"}[RATE])), 1)"""
THROTTLED = """
    sum by (NODE) (rate(beam_cgroup_throttled_periods_total{HERE}[RATE]))
        / clamp_min(sum by (NODE) (rate(beam_cgroup_periods_total{HERE}[RATE])), 0.001)
        or 0 * sum by (NODE) (beam_schedulers{HERE})"""
_REASONS = (
    ("^queued", VERMILLION),
    ("^throttled", YELLOW),
    ("^preempted", ORANGE),
    ("^blocked", PURPLE),
    ("^idle", GREY),
    ("^on a CPU", SKY),
)


UTILIZATION = "sum by (NODE) (beam_scheduler_utilization_ratio{HERE})"


def _p99(series: str, where: str = "") -> tuple[Query, ...]:
    """The 99th of 100, of a histogram; nothing where nothing was counted (NaN)."""
    rate = f"rate({series}_bucket{{HERE{where}}}[RATE])"
    return (Query(f"histogram_quantile(0.99, sum by (NODE, le) ({rate})) >= 0"),)


_WORK = Row(
    "What the schedulers do",
    (
        Panel(
            "Scheduler utilization",
            "percentunit",
            "The share of the last minute in which the normal schedulers that are online worked, on "
            "average; busy waiting is left out.",
            "they have all the work that they can do. If the run queue is long as well the node needs "
            "more cores or less work; if it is empty, it is merely busy.",
            (Query(UTILIZATION),),
            warn=0.8,
            bad=0.95,
            high=1,
        ),
        Panel(
            "Run queue",
            "short",
            "Erlang processes and ports that are ready and wait for a scheduler, normal or dirty.",
            "there is more work than schedulers, or something does not yield. By type of scheduler it "
            "is beside, in the native code and the lengths of schedules what does not yield.",
            (Query("sum by (NODE) (beam_run_queue_length{HERE})"),),
            warn=20,
            bad=100,
        ),
        Panel(
            "Reductions per second of CPU",
            "short",
            "Reductions for each CPU second that normal schedulers used.",
            "a fall without a release is busy waiting, NIFs, or a CPU that was slowed down.",
            (
                Query(
                    """sum by (NODE) (rate(beam_reductions_total{HERE}[RATE]))
                        / clamp_min(sum by (NODE) (rate(beam_thread_cpu_seconds_total{HERE,
                        scheduler_type="normal"}[RATE])), 0.001)""",
                ),
            ),
        ),
        Panel(
            "CPU by type of thread",
            "suffix: CPU",
            "CPUs that the VM's threads of each type used.",
            "dirty schedulers at work are long NIFs or file operations; much of poll or aux is "
            "sockets, or the VM's own housekeeping.",
            (
                Query(
                    """sum by (scheduler_type)
                        (rate(beam_thread_cpu_seconds_total{HERE}[RATE]))""",
                    "{{scheduler_type}}",
                ),
            ),
            stack=True,
            hues=TYPES,
        ),
        Panel(
            "Work and busy waiting",
            "suffix: CPU",
            "CPUs that schedulers, normal and dirty, used: for work, and spinning for work to come "
            "(busy waiting); the second is found by the sampling timer, with an error that the "
            "dashboard of the observer states.",
            "busy waiting is no load. It goes by itself where others want the CPU; +sbwt none ends "
            "it, where a container is billed or throttled for it.",
            (
                Query(
                    """clamp_min(sum(rate(beam_thread_cpu_seconds_total{HERE,
                        scheduler_type=~"normal|dirty_cpu|dirty_io"}[RATE]))
                        - sum(rate(beam_busy_wait_seconds_total{HERE}[RATE])), 0)""",
                    "work",
                ),
                Query(
                    "sum(rate(beam_busy_wait_seconds_total{HERE}[RATE]))",
                    "busy waiting",
                    ORANGE,
                ),
            ),
            stack=True,
        ),
        Panel(
            "Run queues",
            "short",
            "Erlang processes and ports that are ready and wait for a scheduler, by the schedulers' "
            "type.",
            "normal: more work than schedulers, or one that does not yield. Dirty: more long NIFs "
            "or file operations than dirty schedulers; see +SDcpu and +SDio.",
            (
                Query(
                    "sum by (scheduler_type) (beam_run_queue_length{HERE})",
                    "{{scheduler_type}}",
                ),
            ),
            warn=20,
            bad=100,
            hues=TYPES,
        ),
    ),
)

_WAITING = Row(
    "Waiting for a CPU",
    (
        Panel(
            "Schedulers that wait for a CPU",
            "percentunit",
            "Of the time in which normal schedulers wanted a CPU, the share in which they had none. "
            "Those that sleep are left out; who wants less than one CPU in all counts as wanting one.",
            "the host or the cgroup has too little CPU for this VM. Move a neighbour, raise the "
            "quota, or lower +S to what the VM really gets.",
            (Query(STARVED),),
            warn=0.05,
            bad=0.1,
            width=12,
        ),
        Panel(
            "Where a normal scheduler's time goes",
            "percentunit",
            "Shares of the time of one normal scheduler, on average over the chosen nodes: on a CPU; "
            "queued (woken, and waiting for a CPU); preempted (another ran instead); throttled (by "
            "the cgroup's quota); blocked (asleep in a system call); idle.",
            "queued, preempted and throttled are the host's doing. Blocked is the VM's: a NIF or a "
            "driver that waits for a disk or a lock on a normal scheduler. Choose one node to see "
            "whose it is.",
            (
                Query(
                    """avg by (reason) (sum by (NODE, reason) (rate(
                        beam_thread_offcpu_seconds_total{HERE, scheduler_type="normal"}[RATE]))
                        / on (NODE) group_left sum by (NODE) (beam_schedulers{HERE}))""",
                    "{{reason}}",
                ),
                Query(
                    """avg(sum by (NODE) (rate(beam_thread_cpu_seconds_total{HERE,
                        scheduler_type="normal"}[RATE])) / sum by (NODE) (beam_schedulers{HERE}))""",
                    "on a CPU",
                ),
            ),
            stack=True,
            hues=_REASONS,
            width=12,
        ),
        Panel(
            "99 of 100 waits for a CPU take less than",
            "s",
            "How long a normal scheduler that was ready waited until the kernel gave it a CPU. A "
            "quantile may be off by a factor of 8, the width of a bucket.",
            "others take the CPU: other processes of this host, or the quota of the cgroup. "
            "Above a few ms every answer of the node is late by as much.",
            _p99("beam_thread_run_queue_latency_seconds", ', scheduler_type="normal"'),
            warn=bound(23),
            bad=bound(26),
            width=12,
        ),
        Panel(
            "Run queue latency, all waits",
            "s",
            "How many waits of normal schedulers took how long; brighter is more.",
            "a second band far above the first is a neighbour that has its turn in whole time "
            "slices.",
            (
                Query(
                    """sum by (le) (increase(
                        beam_thread_run_queue_latency_seconds_bucket{HERE, scheduler_type="normal"}
                        [RATE]))""",
                    "{{le}}",
                ),
            ),
            "heatmap",
            low=None,
            width=12,
        ),
    ),
)

_LENGTHS = Row(
    "How long a process keeps its scheduler",
    (
        Panel(
            "99 of 100 schedules take less than",
            "s",
            "How long a process had a normal scheduler before it was scheduled out. Where schedules "
            "are many they are counted in windows, and what is longer than a window (3 to 100 ms) is "
            "not in it. A quantile may be off by a factor of 8, the width of a bucket.",
            "a NIF or a BIF does not yield. `scope-trace --events long_call` names it; such code "
            "belongs on a dirty scheduler. While there are windows look at the long native calls.",
            _p99("beam_schedule_duration_seconds"),
            warn=bound(23),
            bad=bound(26),
            width=12,
        ),
        Panel(
            "Length of schedules, all",
            "s",
            "How many schedules took how long; brighter is more.",
            "whatever is above one ms used more than its 4,000 reductions are worth.",
            (
                Query(
                    "sum by (le) (increase(beam_schedule_duration_seconds_bucket{HERE}[RATE]))",
                    "{{le}}",
                ),
            ),
            "heatmap",
            low=None,
            width=12,
        ),
    ),
)

_QUOTA = Row(
    "Quota of the cgroup",
    (
        Panel(
            "Throttled by the cgroup",
            "percentunit",
            "The share of the quota's periods in which it was used up; 0 also without a quota.",
            "the container may use less CPU than it has schedulers. Raise the quota, or set +S to "
            "the CPUs that it stands for.",
            (Query(THROTTLED),),
            warn=0.05,
            bad=0.25,
            width=12,
        ),
        Panel(
            "CPUs held back by the quota",
            "short",
            "For how long the cgroup was kept from running, over all CPUs, as the kernel adds it up: "
            "2 is two CPUs all the time. 0 also without a quota.",
            "at most so many CPUs more would be used without it. It is no share of anything: how "
            "often the quota was used up is beside.",
            (
                Query(
                    """sum by (NODE) (rate(beam_cgroup_throttled_seconds_total{HERE}[RATE]))
                        or 0 * sum by (NODE) (beam_schedulers{HERE})"""
                ),
            ),
            width=12,
        ),
    ),
    folded=True,
)

_NATIVE = Row(
    "Native code",
    (
        Panel(
            "Native code",
            "suffix: CPU",
            "CPUs in NIFs, dirty ones too, by name; the ten that use most. A NIF without a name yet "
            "is in other.",
            "what is here is work that Erlang cannot interrupt. On a normal scheduler it must be "
            "short: see the long calls beside.",
            (
                Query(
                    """topk(10, sum by (NODE, name)
                        (rate(beam_native_cpu_seconds_total{HERE}[RATE])))""",
                    "{{name}} NODE",
                    ranked=True,
                ),
            ),
            "bars",
            width=12,
        ),
        Panel(
            "Long native calls",
            "ops",
            "Calls of NIFs per second that took 21 ms or longer, by name, some of 10 ms or longer; the "
            "ten with most.",
            "one on a normal scheduler keeps all else there waiting: it belongs on a dirty "
            "scheduler, or must yield. One on a dirty scheduler may be as long as it likes.",
            (
                Query(
                    """topk(10, sum by (NODE, name)
                        (rate(beam_native_long_calls_total{HERE}[RATE])))""",
                    "{{name}} NODE",
                    ranked=True,
                ),
            ),
            "bars",
            width=12,
        ),
    ),
    folded=True,
)

_SWITCHES = Row(
    "Threads and switches",
    (
        Panel(
            "Schedulers and other threads",
            "short",
            "Threads of the VM by type, and how many of its schedulers are online.",
            "fewer online than there are: erlang:system_flag was called. More normal ones "
            "than CPUs wait for each other: +S.",
            (
                Query(
                    "sum by (scheduler_type) (beam_threads{HERE})",
                    "{{scheduler_type}}",
                ),
                Query(
                    'sum(beam_schedulers_online{HERE, scheduler_type="normal"})',
                    "online",
                    BLUE,
                ),
            ),
            hues=TYPES,
            width=12,
        ),
        Panel(
            "Erlang context switches",
            "ops",
            "Times a second that an Erlang process was given a scheduler.",
            "many with few reductions each is much messaging in small steps.",
            (Query("sum by (NODE) (rate(beam_context_switches_total{HERE}[RATE]))"),),
            width=12,
        ),
        Panel(
            "Switches of threads",
            "ops",
            "Times a second that the kernel gave a thread of each type a CPU.",
            "many of normal schedulers are schedulers that go to sleep and are woken: the load is "
            "small or comes in bursts.",
            (
                Query(
                    "sum by (scheduler_type) (rate(beam_thread_switches_total{HERE}[RATE]))",
                    "{{scheduler_type}}",
                ),
            ),
            hues=TYPES,
            width=12,
        ),
        Panel(
            "Migrations of threads",
            "ops",
            "Times a second that a thread was given another CPU than before, where its caches are "
            "cold.",
            "schedulers are not bound, and the host moves them. +sbt db binds them; do that only "
            "where the VM has its CPUs for itself.",
            (
                Query(
                    "sum by (scheduler_type) (rate(beam_thread_migrations_total{HERE}[RATE]))",
                    "{{scheduler_type}}",
                ),
            ),
            hues=TYPES,
            width=12,
        ),
    ),
    folded=True,
)

BOARD = Board(
    "schedulers",
    "Schedulers",
    "What the kernel does with the VM's threads and what the VM does with them: waiting for a CPU, "
    "working, sleeping, and how long processes keep their scheduler.",
    (_WORK, _WAITING, _LENGTHS, _QUOTA, _NATIVE, _SWITCHES),
)
