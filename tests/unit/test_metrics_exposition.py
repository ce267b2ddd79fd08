# SPDX-License-Identifier: Apache-2.0
"""
The exposition: what the catalogue says is what is exported, whatever a node is called.
"""

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from scope_ebpf import events
from scope_ebpf.attach.plan import DEFAULT_EVENTS
from scope_ebpf.beam.vm.allocators import Allocator, AllocatorReading, MemoryUse
from scope_ebpf.beam.vm.connections import Connections
from scope_ebpf.beam.vm.counters import Counters, Limits
from scope_ebpf.cgroups import MemoryLimit, Throttled
from scope_ebpf.metrics.catalogue import catalogue
from scope_ebpf.metrics.columns import SLOTS, WIDTH, EventReading, sum_column
from scope_ebpf.metrics.compat import rules
from scope_ebpf.metrics.exposition import expose
from scope_ebpf.metrics.findings import KINDS, FindingsReading, FoundKind
from scope_ebpf.metrics.page import MAX_LABEL, Page
from scope_ebpf.metrics.reading import (
    HooksReading,
    MemoryReading,
    NifReading,
    ProcessReading,
    Reading,
    Sampled,
    ThreadAccounting,
)
from scope_ebpf.metrics.snapshot import SnapshotReading, Top

INFO = {
    "pid": "1",
    "otp_release": "25",
    "erts_version": "13",
    "flavor": "jit",
    "hooks": "symbol",
    "exe": "/x",
    "uid": "1000",
    "cgroup": "/user.slice",
    "container_id": "",
    "pod_uid": "",
}

#: Allocators of OTP 25 to 29.
NAMES = ("temp", "sl", "std", "ll", "eheap", "ets", "fix", "literal", "binary", "driver")


def snapshot() -> SnapshotReading:
    """
    A snapshot whose rankings are full.
    """
    taken = SnapshotReading(5, seconds=0.1, taken=1000.0)
    taken.mailboxes = taken.memories = taken.rates = [Top(pid, 10 - pid) for pid in range(5)]
    taken.messages = taken.memory = taken.rate = 40
    return taken


def reading(node: str = "a@b", schedulers: int = 16) -> Reading:
    """
    A reading in which everything is known.
    """
    event = EventReading(np.ones(WIDTH), "always", "symbol", "", 1.0, 0.0)
    kinds = {"mbcs": (60, 40), "sbcs": (30, 20), "mbcs_pool": (10, 5)}
    allocators = tuple(Allocator(name, 100, 65, kinds) for name in NAMES)
    six, seven = (1,) * 6, (1,) * 7
    nifs = {name: NifReading(1.0, 2) for name in ("a:b/1", "c:d/2", "e:f/3", "g:h/4", "other")}
    sampled = Sampled((1.0, 2.0, 3.0), 0.1, nifs, 0.5)
    return Reading(
        node=node,
        info=INFO,
        schedulers=schedulers,
        process=ProcessReading(1.5, 1.0, 3, 4.0, 5.0, Throttled(7, 8, 0.5)),
        events=dict.fromkeys(DEFAULT_EVENTS, event),
        counters=Counters(
            1,
            2,
            np.array([1, 2, 2, 1]),
            (schedulers, schedulers, 10),
            (2, 2, 10),
            3,
            4,
            1,
            5,
            6,
            7,
            8,
            9,
            10,
            11,
        ),
        limits=Limits(9, 10, 11),
        hooks=HooksReading(0.01, 0.002, 1.0, exhausted=1, windows=2, lost=3, refused=4),
        failed_reads=5,
        threads=np.ones(6, events.THREAD_TOTALS),
        accounting=ThreadAccounting(six, seven, seven, sampled),
        memory=MemoryReading(
            AllocatorReading(allocators, MemoryUse(9, 5, 4, 2, 1, 3)),
            Connections((1, 0), 5, 0),
            seconds=0.002,
            taken=1001.0,
        ),
        snapshot=snapshot(),
        memory_limit=MemoryLimit(30, 40, 2),
        findings=FindingsReading(document={"findings": []}, taken=1002.0),
    )


def registered(*readings: Reading, compat: bool = False) -> CollectorRegistry:
    """
    A registry that collects these readings.
    """

    class Fixed:
        def collect(self):
            page = Page(compat=compat)
            for one in readings:
                expose(page, one)
            return page.families()

    registry = CollectorRegistry()
    registry.register(Fixed())
    return registry


def exported(*readings: Reading) -> str:
    """
    The text that a scrape gets.
    """
    return generate_latest(registered(*readings)).decode()


def samples(text: str):
    return [s for family in text_string_to_metric_families(text) for s in family.samples]


def test_a_node_of_sixteen_schedulers_has_at_most_300_series():
    """
    The default set is bounded, and so is what a node costs Prometheus: all is known, nifs have
    names, a quota holds, and every event is in windows, which have an error each. Lost connections
    have series beside these.
    """
    most = reading()
    windows = {name: event._replace(mode="windows") for name, event in most.events.items()}
    windows["dist_down"] = most.events["dist_down"]
    found = samples(exported(replace(most, events=windows)))
    assert len([s for s in found if s.name == "scope_ebpf_sampling_error_ratio"]) == 13
    assert len(found) <= 300


def test_a_finding_is_a_series_of_its_kind():
    """
    One for each kind, and how many there are of each severity; none of a VM that is not checked.
    """
    kinds = [FoundKind(kind, "warning") for kind in KINDS[:3]] + [FoundKind("gc", "critical")]
    found = FindingsReading(tuple(kinds), {"findings": []})
    text = samples(exported(replace(reading(), findings=found)))
    assert {(*one, 1.0) for one in kinds} == {
        (s.labels["kind"], s.labels["severity"], s.value) for s in text if s.name == "beam_finding"
    }
    counts = {s.labels["severity"]: s.value for s in text if s.name == "beam_finding_kinds"}
    assert {"critical": 1.0, "warning": 3.0} == counts
    unknown = replace(reading(), findings=FindingsReading(refused="too many processes"))
    text = samples(exported(unknown))
    assert not [s for s in text if s.name.startswith("beam_finding")]
    assert ["findings"] == [s.labels["what"] for s in text if s.name == "scope_ebpf_refused"]


def test_the_number_of_series_does_not_depend_on_schedulers():
    """
    A node of a thousand schedulers has as many series as one of two.
    """
    small, large = (samples(exported(reading(schedulers=n))) for n in (2, 1000))
    assert len(small) == len(large)


@pytest.mark.parametrize("node", ['"a"@b', "a\\@b", "é@ü", '{a="b"}', "x" * MAX_LABEL])
def test_node_names_are_data(node):
    """
    Quotes, backslashes and names as long as a name can be come out as they went in.
    """
    found = {s.labels["node"] for s in samples(exported(reading(node)))}
    assert {node} == found


def test_nodes_whose_long_names_begin_alike_have_different_labels():
    """
    Of ten kilobytes the beginning comes out, with an end that is another for another name.
    """
    names = [end.rjust(10_000, "x") for end in ("", "#17", "#18")]
    found = samples(exported(*map(reading, names)))
    labels = {s.labels["node"] for s in found}
    assert len(names) == len(labels)
    assert {(MAX_LABEL, "x" * 200)} == {(len(label), label[:200]) for label in labels}
    series = [(s.name, *s.labels.items()) for s in found]
    assert len(series) == len(set(series))


#: Control characters of C0 and C1, an end of a line, controls of bidirectional text and separators.
OBEYED = "\0\a\b\t\n\r\x1b\x7f\x85\x9b\u200e\u2028\u202e\u2066\ufeff"


@pytest.mark.parametrize("one", [*OBEYED, "\udcfe"], ids=lambda one: f"U+{ord(one):04X}")
def test_no_label_is_obeyed_by_a_terminal(one):
    """
    What a terminal would act on, and what is no text, is a question mark in each label.
    """
    odd = replace(reading(f"a{one}b@c"), info=INFO | {"exe": f"/opt/{one}"})
    text = exported(odd)
    assert all(one not in line for line in text.split("\n"))
    (info,) = (s for s in samples(text) if s.name == "beam_target_info")
    assert info.labels["node"].startswith("a?b@c~")
    assert info.labels["exe"].startswith("/opt/?~")


def test_labels_in_which_much_was_replaced_are_different():
    """
    Names that look alike once they can be shown are the names of two nodes still.
    """
    names = [f"a{one}@b" for one in OBEYED] + ["a?@b", "a\udcfe@b", "a\udcff@b"]
    found = {s.labels["node"] for s in samples(exported(*map(reading, names)))}
    assert len(names) == len(found)


def test_a_name_that_is_not_in_the_catalogue_cannot_be_exported():
    """
    The catalogue is complete because nothing else can be added.
    """
    with pytest.raises(KeyError):
        Page().add("beam_invented_total", 1, node="a")
    with pytest.raises(KeyError, match="has the labels"):
        Page().add("beam_processes", 1, nodes="a")


def test_a_histogram_counts_what_is_below_each_bound():
    """
    Slots up to 2^N ns are in the bucket of 2^N ns, and all are in +Inf.
    """
    totals = np.zeros(WIDTH)
    column = sum_column(1)  # schedule, out
    totals[column] = 5e9
    totals[column + 1 + 9] = 3  # 512 ns to 1024 ns
    totals[column + 1 + 10] = 2  # 1024 ns to 2048 ns
    totals[column + 1 + 39] = 1  # the open end
    event = EventReading(totals, "always", "symbol", "", 1.0, 0.0)
    one = reading()
    one.events["schedule"] = event
    buckets = {
        s.labels.get("le"): s.value
        for s in samples(exported(one))
        if s.name.startswith("beam_schedule_duration_seconds")
    }
    assert buckets["2.048e-06"] == 5
    assert buckets["1.6384e-05"] == 5
    assert buckets["+Inf"] == 6


def estimated(name: str, seed: int) -> EventReading:
    """
    Totals as windows leave them: numbers of events that are not whole.
    """
    random = np.random.default_rng(seed)
    totals = random.exponential(1e5, WIDTH) * (random.random(WIDTH) < 0.7)
    return EventReading(totals, "windows", "symbol", "", 0.01, 0.2)


def test_openmetrics_takes_what_windows_estimate():
    """
    The reference parser finds nothing to refuse in a page of estimates, and buckets are whole.
    """
    one = reading()
    windows = {name: estimated(name, seed) for seed, name in enumerate(one.events)}
    text = openmetrics.generate_latest(registered(replace(one, events=windows)))
    found = [s for family in openmetrics_families(text.decode()) for s in family.samples]
    ends = ("_bucket", "_count")
    counts = [s.value for s in found if s.name.endswith(ends) and "_duration_" in s.name]
    assert len(counts) > 20
    assert all(value.is_integer() for value in counts)


def test_both_formats_take_the_names_of_prometheus_erl():
    """
    The reference parser of OpenMetrics refuses none of them, and in the classic format each has a
    help text, also where the name of version 4 is that of version 6 without its end.
    """
    registry = registered(reading(), compat=True)
    text = openmetrics.generate_latest(registry).decode()
    found = {s.name for family in openmetrics_families(text) for s in family.samples}
    name = "erlang_vm_statistics_context_switches"
    assert {name, f"{name}_total", "erlang_vm_process_count"} <= found
    classic = generate_latest(registry).decode()
    helped = {line.split()[2] for line in classic.splitlines() if line.startswith("# HELP ")}
    theirs = {s.name for s in samples(classic) if s.name.startswith("erlang_vm_")}
    assert {name, f"{name}_total"} <= helped
    assert theirs - helped == set()


def test_utilization_is_of_the_schedulers_that_are_online():
    """
    Half a scheduler at work of two that are online, of sixteen that there are, is a quarter.
    """
    name = "beam_scheduler_utilization_ratio"
    (found,) = [s.value for s in samples(exported(reading())) if s.name == name]
    assert found == 0.25
    one = reading()
    assert one.accounting is not None
    unknown = replace(one.accounting, sampled=Sampled((None, 2.0, 3.0), 0.1, {}))
    text = exported(replace(one, accounting=unknown))
    assert not [s for s in samples(text) if s.name == name]


def test_a_vm_with_a_memory_limit_says_how_near_it_is():
    """
    Memory, limit and kills of the cgroup are there; without a limit none of them is.
    """
    part = "beam_cgroup_memory_bytes", "beam_cgroup_memory_limit_bytes"
    names = {*part, "beam_cgroup_oom_kills_total"}
    values = {s.name: s.value for s in samples(exported(reading())) if s.name in names}
    assert sorted(values.values()) == [2, 30, 40]
    text = exported(replace(reading(), memory_limit=None))
    assert not names & {s.name for s in samples(text)}


def test_estimated_buckets_are_a_histogram():
    """
    Rounded, no bucket is below the one before, and the last is the count.
    """
    totals = np.full(WIDTH, 0.4)
    one = reading()
    one.events["schedule"] = EventReading(totals, "windows", "symbol", "", 0.01, 0.2)
    name = "beam_schedule_duration_seconds"
    found = [s for s in samples(exported(one)) if s.name.startswith(name)]
    buckets = [s.value for s in found if s.name == f"{name}_bucket"]
    (count,) = (s.value for s in found if s.name == f"{name}_count")
    assert sorted(buckets) == buckets
    assert buckets[-1] == count == round(0.4 * SLOTS)


def test_what_cannot_be_observed_has_no_figure():
    """
    An event without a hook has a sampling ratio of 0, and its series are not there.
    """
    one = reading()
    one.events["send"] = EventReading(np.zeros(WIDTH), "off", "unavailable", "no symbol", 0, 1)
    found = samples(exported(one))
    assert not [s for s in found if s.name == "beam_messages_sent_total"]
    ratios = [s for s in found if s.name == "scope_ebpf_sampling_ratio"]
    assert {s.labels["hook"]: s.value for s in ratios}["send"] == 0


def test_what_is_read_now_and_then_says_how_old_it_is():
    """
    Processes and memory are read at times of their own; what was not read yet has none.
    """
    stamp = "scope_ebpf_snapshot_timestamp_seconds"
    both, none = reading(), replace(reading(), memory=MemoryReading(), snapshot=None)
    assert {s.labels["what"]: s.value for s in samples(exported(both)) if s.name == stamp} == {
        "processes": 1000.0,
        "memory": 1001.0,
    }
    assert not [s for s in samples(exported(none)) if s.name == stamp]


def test_collections_that_are_not_all_are_said_to_be_so():
    """
    Without those on dirty schedulers they have no name of prometheus.erl, and are reported.
    """
    whole, page = reading(), Page(compat=True)
    assert whole.counters is not None
    expose(page, replace(whole, counters=whole.counters._replace(dirty_collections=None)))
    families = list(page.families())
    assert not [f.name for f in families if "garbage_collection" in f.name and "_vm_" in f.name]
    refused = [s.labels["what"] for f in families for s in f.samples if "what" in s.labels]
    assert "dirty_collections" in refused


def test_names_of_prometheus_erl_are_offered_on_request():
    """
    A series with the same meaning has their names and one value, and only if that is asked for.
    """
    plain, both = Page(), Page(compat=True)
    for page in (plain, both):
        expose(page, reading())
    families = list(both.families())
    names = {s.name: s.value for family in families for s in family.samples}
    assert names["erlang_vm_processes"] == names["beam_processes"]
    assert names["erlang_vm_process_count"] == names["beam_processes"]
    assert names["erlang_vm_statistics_runtime_seconds_total"] == 1.0
    assert names["erlang_vm_statistics_runtime_milliseconds"] == 1000.0
    assert names["erlang_vm_statistics_garbage_collection_words_reclaimed"] == 4
    assert names["erlang_vm_statistics_run_queues_length"] == 3 + 2
    labels = {tuple(s.labels.values()) for f in families for s in f.samples if "_vm_all" in s.name}
    assert ("a@b", "eheap_alloc", "mbcs", "carriers_size") in labels
    assert not [f.name for f in plain.families() if f.name.startswith("erlang_vm")]


def test_every_rule_of_other_names_is_of_a_series_that_there_is():
    """
    Each name of prometheus.erl comes out of a full reading, and none is there twice.
    """
    page = Page(compat=True)
    expose(page, reading())
    found = [family.name for family in page.families()]
    wanted = {r.name.removesuffix("_total") for every in rules().values() for r in every}
    assert wanted <= set(found)
    assert len(found) == len(set(found))


def test_names_end_in_their_unit():
    """
    Base units, plural, before _total: as Prometheus wants it.
    """
    for series in catalogue().values():
        assert series.name.startswith(("beam_", "scope_ebpf_", "erlang_vm_"))
        assert series.name.endswith("_total") == (series.type == "counter"), series.name
        if series.unit:
            assert series.family.endswith(f"_{series.unit}"), series.name
        assert series.help.endswith(".")
