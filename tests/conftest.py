# SPDX-License-Identifier: Apache-2.0
"""
Makes the modules beside this one importable from every test: ``beams_run`` and the workloads' kin.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

from hypothesis import HealthCheck, settings

# A busy machine makes an example slow, and that says nothing about the code under test.
settings.register_profile(
    "scope", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "scope"))

# What is found in programs is kept in a folder of the tests, not of the host.
if "SCOPE_EBPF_CACHE" not in os.environ:
    os.environ["SCOPE_EBPF_CACHE"] = tempfile.mkdtemp(prefix="scope-found-")
    atexit.register(shutil.rmtree, os.environ["SCOPE_EBPF_CACHE"], ignore_errors=True)

# A shell that starts the tests in the background lets them ignore Ctrl-C, and what they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
