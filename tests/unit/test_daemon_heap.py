# SPDX-License-Identifier: Apache-2.0
"""
Memory that a thread has let go of goes back to the kernel.
"""

from __future__ import annotations

import json
import subprocess
import sys

# In a process of its own, which must not have had a second thread before. What is freed there
# first makes glibc keep 32 MB of free memory (its threshold for trimming is twice as large).
_TRIAL = """
import json, threading
from scope_ebpf.daemon import heap

def rss():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def work():
    kept = [b"x" * (60000 + i) for i in range(150)]
    rests.append(rss())

heap.use_one_arena()
bytearray(16 << 20)
rests = [rss()]
thread = threading.Thread(target=work)
thread.start()
thread.join()
heap.trim()
print(json.dumps([*rests, rss()]))
"""


def test_memory_that_a_thread_took_is_returned():
    """
    Nine megabytes are resident while a thread holds them, and not afterwards.
    """
    done = subprocess.run(
        [sys.executable, "-c", _TRIAL], capture_output=True, text=True, check=True
    )
    before, held, after = json.loads(done.stdout)
    assert held - before > 8000
    assert after - before < 1000
