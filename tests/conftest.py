# SPDX-License-Identifier: Apache-2.0
"""
Makes the modules beside this one importable from every test: ``beams_run`` and the workloads' kin.
"""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# A busy machine makes an example slow, and that says nothing about the code under test.
settings.register_profile(
    "scope", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "scope"))

# A shell that starts the tests in the background lets them ignore Ctrl-C, and what they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
