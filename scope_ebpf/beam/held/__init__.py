# SPDX-License-Identifier: Apache-2.0
"""
What a VM holds: what takes its memory and does not run.

- ``tables``: ETS tables
- ``ports``: ports: drivers, programs, sockets
- ``stacks``: processes by equal stacks
"""
