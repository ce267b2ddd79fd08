# SPDX-License-Identifier: Apache-2.0
"""
A small profile, and one whose every text is hostile.
"""

from __future__ import annotations

from scope_ebpf.results.profile import Frame, Profile, Quality, Sample

TARGET = {
    "pid": 4711,
    "exe": "/usr/lib/erlang/erts-13.1.5/bin/beam.smp",
    "node": "shop@host",
    "otp_release": "25",
    "erts_version": "13.1.5",
    "flavor": "jit",
    "schedulers": 2,
}
HOSTILE = 'x\';</script><b onload="alert(1)">&]]>\x1b[31m\n;\u202e'

OWNER = Frame("shop_cart", "process")
OUTER = Frame("shop:loop/1", "erlang", "shop.erl", 12)
INNER = Frame("shop:price/2", "erlang", "shop.erl", 40)
OTHER_LINE = Frame("shop:price/2", "erlang", "shop.erl", 44)
NATIVE = Frame("ets_lookup_2", "native", "/usr/lib/erlang/beam.smp")
KERNEL = Frame("do_futex", "kernel")
IDLE = Frame("(scheduler)", "thread")


def profile(kind: str = "cpu") -> Profile:
    samples = [
        Sample(3_000, "normal 1", (OWNER, OUTER, INNER), 30_000_000),
        Sample(1_000, "normal 1", (OWNER, OUTER, OTHER_LINE, NATIVE), 20_000_000),
        Sample(2_000, "normal 2", (IDLE, KERNEL), 50_000_000),
        Sample(4_000, "normal 1", (OWNER, OUTER, INNER), 10_000_000),
    ]
    return Profile(
        kind,
        dict(TARGET),
        99,
        1_700_000_000.0,
        seconds=1.0,
        cpu_seconds=0.12,
        stopped_because="duration",
        samples=samples,
        quality=Quality(4, 3, 3, 4, 0, 0),
    )


def hostile() -> Profile:
    made = profile()
    made.target["node"] = HOSTILE
    frame = Frame(HOSTILE, "erlang", HOSTILE, 7)
    made.samples = [Sample(1, HOSTILE, (Frame(HOSTILE, "process"), frame), 10_000_000)]
    return made
