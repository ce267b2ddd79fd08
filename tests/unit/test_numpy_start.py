# SPDX-License-Identifier: Apache-2.0
"""
The import of numpy for commands.
"""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from scope_ebpf import numpy_start
numpy_start.load()
import numpy as np
left = [name for name in sys.modules if name.startswith("numpy") and "_typing" in name]
assert left == [], left
assert np.ndarray.sum.__doc__ is None
assert 23 == np.arange(24)[-1] and 23.0 == np.linalg.det(np.array([[23.0]]))
import numpy.typing
assert "ndarray" in str(numpy.typing.NDArray[np.int64])
import numpy.ma
assert 23 == numpy.ma.masked_array([23, 1], [False, True]).sum()
"""


def test_what_numpy_was_loaded_without_is_loaded_when_it_is_asked_for():
    """
    Arithmetic works without help texts; types for annotations are the real ones.
    """
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)
