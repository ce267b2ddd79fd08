# SPDX-License-Identifier: Apache-2.0
"""
Writes ``docs/metrics.md`` from the catalogue.

    python docs/metrics.py            writes it
    python docs/metrics.py --check    exits 1 if it is not current
"""

from __future__ import annotations

import sys
from pathlib import Path

from scope_ebpf.metrics.catalogue import catalogue
from scope_ebpf.metrics.compat import rules
from scope_ebpf.metrics.prom_ex import RULES

PAGE = Path(__file__).parent / "metrics.md"
_HEAD = """\
# Series of scope-ebpfd

Made by `docs/metrics.py` from `scope_ebpf/metrics/catalogue.toml`; not written by hand.

Sources: *memory*, the VM's own counters, read from outside, exact; *hook*, events at probe points,
exact while `scope_ebpf_sampling_ratio` is 1 and else scaled from windows with the error that
`scope_ebpf_sampling_error_ratio` states; *kernel*, the scheduler's tracepoints and `/proc`;
*snapshot*, the process table, allocators and connections, read now and then: as old as
`scope_ebpf_snapshot_timestamp_seconds` says.

| series | type | labels | source | what it is |
| --- | --- | --- | --- | --- |
"""

_COMPAT = """
## With --compat erlang-vm

What means the same as a series of prometheus.erl has its name too, with the label `node`: the name
of version 6, and that of version 4 and 5 where it was another, as RabbitMQ's dashboards have it.
`erlang_vm_allocators` is without `instance_no`: all instances are added up.

Not the same, and so not offered: `msacc` (states that the VM measures itself, if asked), the kinds
atom, code and other of memory (made of tables that only the VM can measure), and dist by peer.

| version 6 | version 4 and 5 | made of |
| --- | --- | --- |
"""


_PROM_EX = """
## With --compat prom-ex

Histograms of telemetry under the names of PromEx, with the label `node`. Before each is the node's
name up to its `@`, and `_prom_ex_`; `phoenix_http_requests_total` is the count of the first.

| PromEx | labels | made of |
| --- | --- | --- |
"""


def text() -> str:
    """The whole page."""
    rows = [
        f"| `{s.name}` | {s.type} | {', '.join(s.labels)} | {s.source} | {s.help}" + " |"
        for s in catalogue().values()
    ]
    theirs = [
        f"| `{rule.name}` | {f'`{rule.old}`' if rule.old else ''} | `{rule.source}` |"
        for source in rules().values()
        for rule in source
    ]
    prom_ex = [
        f"| `{rule.name}_milliseconds` | {', '.join(rule.labels)} | `{source}` |"
        for source, found in RULES.items()
        for rule in found
    ]
    compat = _COMPAT + "\n".join(sorted(theirs)) + "\n"
    return _HEAD + "\n".join(rows) + "\n" + compat + _PROM_EX + "\n".join(prom_ex) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text() != text())
    PAGE.write_text(text())
