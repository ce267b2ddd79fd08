# SPDX-License-Identifier: Apache-2.0
"""
What a node costs Prometheus, and its figures beside those that the node exports itself.
"""

from __future__ import annotations

import sys
import time
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import beams_run
import test_daemon
import test_daemon_threads
from apps.rabbitmq import rabbitmq
from prometheus_client.parser import text_string_to_metric_families

#: Names of theirs, which agree to this part of their value. Figures go on while the two are asked:
#: the broker's answer itself is bytes that a port moves, and binaries that are soon gone.
STILL = {
    "erlang_vm_process_limit": 0.0,
    "erlang_vm_port_limit": 0.0,
    "erlang_vm_atom_limit": 0.0,
    "erlang_vm_schedulers": 0.0,
    "erlang_vm_schedulers_online": 0.0,
    "erlang_vm_dirty_cpu_schedulers": 0.0,
    "erlang_vm_dirty_cpu_schedulers_online": 0.0,
    "erlang_vm_dirty_io_schedulers": 0.0,
    "erlang_vm_thread_pool_size": 0.0,
    "erlang_vm_smp_support": 0.0,
    "erlang_vm_wordsize_bytes": 0.0,
    "erlang_vm_atom_count": 0.01,
    "erlang_vm_process_count": 0.05,
    "erlang_vm_port_count": 0.3,
    "erlang_vm_memory_ets_tables": 0.05,
    "erlang_vm_statistics_context_switches": 0.1,
    "erlang_vm_statistics_garbage_collection_number_of_gcs": 0.1,
    "erlang_vm_statistics_garbage_collection_words_reclaimed": 0.1,
    "erlang_vm_statistics_garbage_collection_bytes_reclaimed": 0.1,
    "erlang_vm_statistics_reductions_total": 0.1,
    "erlang_vm_statistics_bytes_received_total": 2.0,
    "erlang_vm_statistics_bytes_output_total": 2.0,
    "erlang_vm_statistics_runtime_milliseconds": 0.15,
    "erlang_vm_statistics_wallclock_time_milliseconds": 0.1,
    "erlang_vm_memory_bytes_total": 0.15,
    "erlang_vm_memory_system_bytes_total": 0.6,
}

#: Processes that leave their messages unread, as many as are ranked, and one that calls native
#: functions, which compute for a while.
BESIDE = """
    [[Deaf ! I || I <- lists:seq(1, N)]
     || N <- lists:seq(1, 5), Deaf <- [spawn(fun() -> receive never -> ok end end)]],
    ok = names_nif:load(),
    spawn(fun Spin() ->
        names_nif:spin(20),
        names_nif:dirty_spin(20),
        receive after 200 -> Spin() end
    end).
"""
#: What comes last of all that is reported: the name, and the value of one label.
LATE = {
    *(
        (f"beam_top_{what}", str(rank))
        for what in ("mailbox_messages", "memory_bytes", "reductions_per_second")
        for rank in range(1, 6)
    ),
    ("beam_native_cpu_seconds_total", "names_nif:spin/1"),
    ("beam_native_cpu_seconds_total", "names_nif:dirty_spin/1"),
    ("beam_memory_bytes", "total"),
    ("beam_cgroup_periods_total", "beam_cgroup_periods_total"),
}


def by_labels(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """
    Every sample, by its name and its labels but the node's.
    """
    return {
        (s.name, frozenset((k, v) for k, v in s.labels.items() if k != "node")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_a_node_of_sixteen_schedulers_under_load_has_at_most_300_series(tmp_path):
    """
    Messages, collections, busy ports, code loads, native functions and a quota on 16 schedulers,
    with every kind of figure and all ranks.
    """
    flags = ("+S", "16:16", *test_daemon.name_flags(), "-eval", BESIDE)
    env = beams_run.native_functions(tmp_path)
    config = test_daemon.QUICK + 'snapshot_interval = "1s"\n'
    with (
        beams_run.planted("stock25", *flags, env=env) as beam,
        test_daemon_threads.quota(beam.pid, 16.0),
        test_daemon.daemon(config, tmp_path) as running,
    ):
        running.until(beam.pid, test_daemon.always)
        beam.plant("busy_port 5")
        beam.plant("dirty_calls 23")
        beam.plant("code_loads 7")
        for storm, reported in (("gc 4", set()), ("pingpong 16", LATE)):
            beam.send(f"storm {storm}")
            beam.expect("storming")
            windows = running.samples(beam.pid)["scope_ebpf_windows_total",]
            samples = running.until(
                beam.pid,
                lambda n, w=windows, reported=reported: (
                    n["scope_ebpf_windows_total",] >= w + 3
                    and {(key[0], key[-1]) for key in n} >= reported
                ),
            )
            assert beam.ask("stop").startswith("done storm")
        families = {name for name, *_ in samples}
        assert {"beam_busy_wait_seconds_total", "beam_connected_nodes"} <= families
        assert not [key for key in samples if key[0] == "scope_ebpf_refused"]
        # What holds on a host that is full is said besides: starved threads, busy waiting.
        found = [key for key in samples if key[0] == "beam_finding"]
        assert len(samples) - len(found) <= 300


def test_figures_agree_with_those_rabbitmq_exports_of_itself(tmp_path):
    """
    Side by side, under its own names: what the broker says and what is read from outside.
    """
    with rabbitmq() as app:
        name = app.eval("node()").strip().strip("'")
        config = 'scan_interval = "200ms"\nmin_age = 0\nsnapshot_interval = "1s"\n'
        config += f'include_nodes = ["^{name}$"]\ncompat = ["erlang-vm"]\n'
        with test_daemon.daemon(config, tmp_path) as running:
            stamps = [
                ("scope_ebpf_snapshot_timestamp_seconds", what) for what in ("processes", "memory")
            ]
            running.until(app.pid, lambda n: n.keys() >= {*stamps})
            url = f"http://127.0.0.1:{app.ports['prometheus']}/metrics"
            # The first time loads what asking takes; what differs once may have changed meanwhile.
            for _ in range(6):
                with urllib.request.urlopen(url, timeout=30) as answer:
                    theirs = by_labels(answer.read().decode())
                now = time.time()
                running.until(app.pid, lambda n, now=now: all(n[one] > now for one in stamps))
                ours = by_labels(running.get())
                compared = {key: (theirs[key], ours[key]) for key in theirs.keys() & ours.keys()}
                compared = {key: pair for key, pair in compared.items() if key[0] in STILL}
                wrong = {
                    key: (reported, seen)
                    for key, (reported, seen) in compared.items()
                    if seen != pytest.approx(reported, rel=STILL[key[0]], abs=1e-9)
                }
                if not wrong:
                    break
        assert {key[0] for key in compared} == STILL.keys() & {key[0] for key in theirs}
        assert not wrong
        assert len(compared) >= 20
