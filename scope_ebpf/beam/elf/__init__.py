# SPDX-License-Identifier: Apache-2.0
"""
The emulator's file: symbols, USDT sites, addresses for breakpoints.

- ``binary``: what one executable contains
- ``bounds``: whether an address lies within what the file itself shows
- ``contents``: the parsed file as plain data
- ``entry``: cheap addresses for a breakpoint
- ``usdt``: arguments of USDT sites
"""
