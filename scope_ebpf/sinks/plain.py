# SPDX-License-Identifier: Apache-2.0
"""Text from a VM or a host, as sinks and commands print it."""

from scope_ebpf.plain import plain

__all__ = ["plain"]
