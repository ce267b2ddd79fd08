# SPDX-License-Identifier: Apache-2.0
"""
Servers of a VM, and who waits for whom: from memory, without a hook.

``waiting`` finds out for whom a process waits that has called a server; ``looks`` reads all
servers and their callers at one time.
"""
