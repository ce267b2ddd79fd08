# SPDX-License-Identifier: Apache-2.0
"""The life of what holds resources of the kernel: opened by a ``with`` block, closed after it."""

from __future__ import annotations

from typing import Self


class Closing:
    """A context manager that opens at its beginning, and closes at its end or if it cannot open."""

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        """Acquire what the block needs; by default the constructor has done so."""

    def close(self) -> None:
        """Give everything back to the kernel, also after an incomplete :meth:`_open`."""
        raise NotImplementedError
