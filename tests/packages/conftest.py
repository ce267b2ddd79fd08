# SPDX-License-Identifier: Apache-2.0
"""
What runs the real ``scope-trace`` is that of the tests on real VMs.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "kernel"))
