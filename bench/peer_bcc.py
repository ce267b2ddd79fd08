# SPDX-License-Identifier: Apache-2.0
"""
The sends of a BEAM by a bcc program: a record for each in a ring, a Python callback on each.

    /usr/bin/python3 bench/peer_bcc.py --pid PID [--seconds S] [--symbol NAME] [--ring-pages N]

Prints one JSON document. It needs the distribution's python3-bpfcc, which only the system's Python
sees, and kernel headers for the compiler in bcc. Those of another kernel are enough: this
program reads no kernel structure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final

PYTHON: Final = "/usr/bin/python3"

PROGRAM: Final = """
#include <uapi/linux/ptrace.h>

struct send_record {
        u64 time_ns;
        u32 kind;
        u32 tid;
        u64 sender;
        u64 receiver;
        u64 size;
        u64 reserved[2];
};

BPF_RINGBUF_OUTPUT(records, RING_PAGES);
BPF_PERCPU_ARRAY(lost, u64, 1);

int on_send(struct pt_regs *ctx)
{
        u64 id = bpf_get_current_pid_tgid();
        u32 zero = 0;
        struct send_record *record;
        u64 *count;

        if (id >> 32 != TARGET)
                return 0;
        record = records.ringbuf_reserve(sizeof(*record));
        if (!record) {
                count = lost.lookup(&zero);
                if (count)
                        *count += 1;
                return 0;
        }
        record->time_ns = bpf_ktime_get_ns();
        record->kind = 1;
        record->tid = id;
        bpf_probe_read_user(&record->sender, sizeof(u64), (void *)PT_REGS_PARM1(ctx));
        bpf_probe_read_user(&record->receiver, sizeof(u64), (void *)PT_REGS_PARM2(ctx));
        record->size = 0;
        record->reserved[0] = record->reserved[1] = 0;
        records.ringbuf_submit(record, BPF_RB_NO_WAKEUP);
        return 0;
}
"""


class PeerError(Exception):
    """bcc does not run here; the text says why."""


def measure(pid: int, seconds: float, ring_pages: int = 4096) -> dict[str, Any]:
    """Run this file under the system's Python, for *seconds* on *pid*, and return its figures."""
    command = [PYTHON, __file__, "--pid", str(pid), "--seconds", str(seconds)]
    command += ["--ring-pages", str(ring_pages)]
    environment = {**os.environ, "PYTHONPATH": ""}
    headers = kernel_source()
    if headers is not None:
        environment["BCC_KERNEL_SOURCE"] = str(headers)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerError(f"the bcc program failed: {done.stderr.strip()[-1000:]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def kernel_source() -> Path | None:
    """
    A folder of kernel headers for bcc; None where it finds those of the running kernel itself.

    Debian packs the headers in two trees that belong into one.
    """
    if Path(f"/lib/modules/{os.uname().release}/build").exists():
        return None
    common = sorted(Path("/usr/src").glob("linux-headers-*-common"))
    if not common:
        raise PeerError("no kernel headers; packaging/install-deps.sh bench installs them")
    base = common[-1].name.removesuffix("-common")
    specific = [tree for tree in Path("/usr/src").glob(f"{base}-*") if tree != common[-1]]
    cache = os.environ.get("SCOPE_CACHE") or Path.home() / ".cache/scope-ebpf"
    merged = Path(cache) / base
    if not merged.exists():
        merged.parent.mkdir(parents=True, exist_ok=True)
        half = merged.with_name(f"{merged.name}.{os.getpid()}")
        for tree in (common[-1], *specific):
            shutil.copytree(tree, half, ignore=_tools, dirs_exist_ok=True)
        half.rename(merged)
    return merged


def _tools(_folder: str, _names: list[str]) -> set[str]:
    """Other parts of the tree that only building a kernel module needs."""
    return {"scripts", "tools"}


def trace(pid: int, seconds: float, symbol: str, ring_pages: int) -> dict[str, Any]:
    """Trace *pid*; runs where bcc can be imported."""
    import bcc  # type: ignore[import-not-found,unused-ignore]

    started = time.monotonic()
    text = PROGRAM.replace("RING_PAGES", str(ring_pages)).replace("TARGET", str(pid))
    program = bcc.BPF(text=text, cflags=["-Wno-macro-redefined"])
    records = program["records"]
    seen, end = 0, float("inf")
    last: tuple[int, int, int, int] | None = None

    def on_record(_context: Any, data: Any, _size: int) -> int:
        nonlocal seen, last
        record = records.event(data)
        last = (record.time_ns, record.tid, record.sender, record.receiver)
        seen += 1
        # One call reads the ring until it is empty, which under load is never.
        return -1 if seen % 1024 == 0 and time.monotonic() > end else 0

    records.open_ring_buffer(on_record)
    program.attach_uprobe(name=f"/proc/{pid}/exe", sym=symbol, fn_name="on_send", pid=pid)
    ready = time.monotonic()
    cpu = time.process_time()
    end = ready + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
        program.ring_buffer_consume()
    wall = time.monotonic() - ready
    cpu = time.process_time() - cpu
    # On some hosts bcc fails to close a file that it has closed itself; the probe is out.
    with contextlib.suppress(Exception):
        program.detach_uprobe(name=f"/proc/{pid}/exe", sym=symbol, pid=pid)
    end = float("inf")
    program.ring_buffer_consume()  # what is left
    return {
        "seen": seen,
        "lost": int(sum(program["lost"][0])),
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 3),
        "cpu_us_per_event": round(cpu / max(seen, 1) * 1e6, 3),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "start_seconds": round(ready - started, 3),
        "last": last,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--symbol", default="erts_send_message")
    parser.add_argument("--ring-pages", type=int, default=4096)
    options = parser.parse_args()
    print(json.dumps(trace(options.pid, options.seconds, options.symbol, options.ring_pages)))


if __name__ == "__main__":
    main()
