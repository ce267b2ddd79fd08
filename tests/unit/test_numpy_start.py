# SPDX-License-Identifier: Apache-2.0
"""
The import of numpy for commands.
"""

from __future__ import annotations

import subprocess
import sys

LOADED = """
import sys
from scope_ebpf import numpy_start
numpy_start.load()
import numpy as np
assert 23 == np.arange(24)[-1] and 2 == np.flatnonzero(np.bincount([1, 1, 2]))[-1]
assert np.ndarray.sum.__doc__ is None and not isinstance(np.zeros(1), np.matrix)
parts = ("numpy._typing", "numpy.lib", "numpy.matrixlib", "numpy.linalg", "inspect")
left = [name for name, part in sys.modules.items() if name.startswith(parts)]
assert ["inspect"] == left and "Later" == type(sys.modules["inspect"]).__name__, left
"""
ASKED_FOR = """
assert (23.0, 24.0) == (np.median([1, 23, 30]), np.percentile([23, 25], 50))
assert 2 == np.matrix([[1], [2]]).size and isinstance(np.matrix([[1]]), np.matrix)
assert 23.0 == np.linalg.det(np.array([[23.0]])) and 1j == np.emath.sqrt(-1)
assert np.lib is sys.modules["numpy.lib"] and [1, 2] == np.r_[1, 2].tolist()
assert 4 == len(np.dtype("i4,f8,i2,i2"))
import numpy.typing
assert "ndarray" in str(numpy.typing.NDArray[np.int64])
import numpy.ma
assert 23 == numpy.ma.masked_array([23, 1], [False, True]).sum()
import inspect, pickle
assert "(one)" == str(inspect.signature(lambda one: one))
assert 23 == pickle.loads(pickle.dumps(np.array([23])))[0]
try:
    np.nonsense
except AttributeError:
    sys.exit(23)
"""
LOOKED_FOR = """
import importlib.util
found = importlib.util.find_spec("inspect")
assert "inspect.py" == found.origin.rpartition("/")[2], found
assert "Later" == type(sys.modules["inspect"]).__name__
import inspect
assert found.origin == inspect.__file__ == sys.modules["inspect"].__spec__.origin
assert "module" == type(sys.modules["inspect"]).__name__
"""


def run(script: str) -> tuple[int, str]:
    """
    Exit code and stderr of a process that runs *script*.
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_numpy_is_loaded_without_what_commands_do_not_use():
    """
    Arithmetic works without help texts, linear algebra and the library of Python functions.
    """
    assert (0, "") == run(LOADED)


def test_what_numpy_was_loaded_without_is_loaded_when_it_is_asked_for():
    """
    Names of numpy, types for annotations and modules of Python are the real ones then.
    """
    assert (23, "") == run(LOADED + ASKED_FOR)


def test_a_module_that_is_loaded_later_is_found():
    """
    ``find_spec`` of a module that is not loaded yet says where it is, and does not load it.
    """
    assert (0, "") == run(LOADED + LOOKED_FOR)
