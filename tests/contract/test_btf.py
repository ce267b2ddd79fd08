# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from btf import UNION, Btf, differences, shape_of

import scope_ebpf
from scope_ebpf import events

OBJECTS = Path(scope_ebpf.__file__).parent / "kernel/objects"
FAMILIES = sorted({variant.family for variant in events.VARIANTS})
#: What every object has.
SHARED = {
    "settings": events.SETTINGS,
    "counters": events.COUNTERS,
    "histogram": events.HISTOGRAM,
    "quota": events.QUOTA,
    "reference_counter": events.REFERENCE_COUNTER,
    "counter_sample": events.COUNTER_SAMPLE,
}
#: What has arguments of USDT sites.
WITH_USDT = sorted({variant.family for variant in events.VARIANTS if variant.via == "usdt"})
RING_HEADER = 8


def btf(family: str) -> Btf:
    return Btf(OBJECTS / f"{family}.bpf.o")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_record_of_every_object_is_the_dtype(family: str):
    """
    Each record has the same fields at the same offsets in the object as in numpy, field by field.
    """
    found = btf(family)
    lines = []
    for name, dtype in events.RECORDS.items():
        struct = f"{name}_record"
        lines += differences(struct, found.shape(struct), shape_of(dtype, RING_HEADER))
    assert [] == lines


@pytest.mark.parametrize("family", FAMILIES)
def test_every_map_value_of_every_object_is_the_dtype(family: str):
    """
    Settings and the values of maps have the same fields at the same offsets on both sides.
    """
    found = btf(family)
    lines = []
    for name, dtype in SHARED.items():
        lines += differences(name, found.shape(name), shape_of(dtype))
    assert [] == lines


@pytest.mark.parametrize("family", WITH_USDT)
def test_the_description_of_a_usdt_argument_is_the_dtype(family: str):
    """
    The location of an argument of a USDT site has the same fields on both sides.
    """
    found = btf(family).shape("usdt_argument")
    assert [] == differences("usdt_argument", found, shape_of(events.USDT_ARGUMENT))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_object_knows_no_record_that_we_do_not(family: str):
    """
    The records that the object describes are those of the dtypes, no more and no fewer.
    """
    union = btf(family).shape("any_record", UNION)
    assert sorted(events.RECORDS) == sorted(field.name for field in union.fields)


#: What the profiler's objects share with user space.
OF_PROFILES = {
    "sample": ("sample_settings", "sampled_thread", "sample"),
    "wait": ("sample_settings", "waiting", "wait_site", "wait_total"),
}
#: The same of the object that counts messages of servers.
OF_SERVERS = (
    *("server_settings", "server_window", "server_reference", "server_call", "server_message"),
    *("server_process", "server_module", "server_edge", "server_edge_total", "server_stats"),
)


@pytest.mark.parametrize("family", OF_PROFILES)
def test_every_struct_of_a_profile_is_the_dtype(family: str):
    """
    Settings, samples and values of maps are laid out alike on both sides.
    """
    found = btf(family)
    lines = []
    for name in OF_PROFILES[family]:
        lines += differences(name, found.shape(name), shape_of(getattr(events, name.upper())))
    assert [] == lines


@pytest.mark.parametrize("name", OF_SERVERS)
def test_every_struct_of_servers_is_the_dtype(name: str):
    """
    Settings and values of maps of server.bpf.c are laid out alike on both sides.
    """
    shape = btf("server").shape(name)
    assert [] == differences(name, shape, shape_of(getattr(events, name.upper())))


def altered(name: str, **formats: str) -> np.dtype:
    """
    A record's dtype with other formats of some fields, all fields where they were.
    """
    dtype = events.RECORDS[name]
    return np.dtype(
        {
            "names": dtype.names,
            "formats": [formats.get(n, dtype.fields[n][0]) for n in dtype.names],
            "offsets": [dtype.fields[n][1] for n in dtype.names],
            "itemsize": dtype.itemsize,
        }
    )


def test_a_narrowed_field_is_found_though_padding_hides_it():
    """
    A field that is narrower on one side is a difference, even if every size and offset is the same.
    """
    wrong = altered("schedule", duration_ns="<u4")
    assert events.RECORDS["schedule"].itemsize == wrong.itemsize
    lines = differences(
        "schedule_record",
        btf("schedule").shape("schedule_record"),
        shape_of(wrong, RING_HEADER),
    )
    assert [
        (
            "schedule_record.duration_ns: "
            "Field(name='duration_ns', offset=24, size=8, count=1, signed=False) is not "
            "Field(name='duration_ns', offset=24, size=4, count=1, signed=False)"
        )
    ] == lines


@pytest.mark.parametrize(
    "dtype",
    [
        altered("schedule", duration_ns="<i8"),
        altered("schedule", reserved=("<u4", (2,))),
        np.dtype([*events.RECORDS["schedule"].descr, ("more", "<u8")]),
        np.dtype(
            [
                ("duration", *f[1:]) if f[0] == "duration_ns" else f
                for f in events.RECORDS["schedule"].descr
            ]
        ),
    ],
    ids=["another sign", "a shorter array", "one field more", "another name"],
)
def test_any_other_difference_is_found_too(dtype: np.dtype):
    """
    A sign, a length, a name or a field too many are differences.
    """
    shape = btf("schedule").shape("schedule_record")
    assert [] != differences("schedule_record", shape, shape_of(dtype, RING_HEADER))


def test_a_struct_that_is_not_there_is_a_difference():
    """
    A struct that the object does not describe cannot pass for an equal one.
    """
    lines = differences("telepathy", btf("gc").shape("telepathy"), shape_of(events.COUNTERS))
    assert ["telepathy: the object's BTF does not have it"] == lines


@pytest.mark.parametrize(
    "name", ["call_settings", "breakpoint_site", "call_totals", "call_pending", "call_hit"]
)
def test_every_struct_of_the_breakpoints_is_the_dtype(name: str):
    """
    What function.bpf.c shares with Python has the same fields at the same offsets on both sides.
    """
    found = btf("function").shape(name)
    assert [] == differences(name, found, shape_of(getattr(events, name.upper())))


@pytest.mark.parametrize("name", ["settings", "function", "process", "stats", "tag"])
def test_every_struct_of_marks_is_the_dtype(name: str):
    """
    What mark.bpf.c shares with Python has the same fields at the same offsets on both sides.
    """
    struct = f"mark_{name}"
    found = btf("mark").shape(struct)
    assert [] == differences(struct, found, shape_of(getattr(events, struct.upper())))


@pytest.mark.parametrize("name", ["settings", "event", "spec", "row", "totals"])
def test_every_struct_of_telemetry_is_the_dtype(name: str):
    """
    What telemetry.bpf.c shares with Python has the same fields at the same offsets on both sides.
    """
    struct = f"telemetry_{name}"
    found = btf("telemetry").shape(struct)
    assert [] == differences(struct, found, shape_of(getattr(events, struct.upper())))
