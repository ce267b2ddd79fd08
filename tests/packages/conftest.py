# SPDX-License-Identifier: Apache-2.0
"""
What runs the real ``scope-trace`` is that of the tests on real VMs; profiles are those of the unit
tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("kernel", "unit")]
