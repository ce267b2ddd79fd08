# SPDX-License-Identifier: Apache-2.0
"""
Links: the connections of a VM to other nodes, one by one.

- ``entries``: state, queue and waiting senders of each
- ``ports``: what the TCP driver counts and keeps of a link's socket
- ``ticks``: ticks that a peer has missed
"""
