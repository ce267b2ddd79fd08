# SPDX-License-Identifier: Apache-2.0
"""
What a VM holds: what takes its memory and does not run.

- ``tables``: ETS tables
- ``ports``: ports: drivers, programs, sockets
- ``areas``: atoms, code, persistent terms
- ``memory``: where all of it is, kind by kind
- ``stacks``: processes by equal stacks
"""
