# SPDX-License-Identifier: Apache-2.0
"""
Memory of another process, and the terms in it.

- ``process_memory``: many small readings per system call, into numpy arrays
- ``reader``, ``reader_child``: a process that reads for a thread of the daemon, and may hang
- ``look_limits``: limits of one look at a process
- ``roots``, ``search``: addresses of the VM's tables, with symbols and without
- ``terms``: tagged words
- ``walk``: trees and lists of many processes at once
- ``moment``: the data behind pointers, as of one moment
"""
