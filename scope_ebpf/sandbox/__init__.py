# SPDX-License-Identifier: Apache-2.0
"""
Files chosen by other users: opened with care, and parsed by a process that can do no harm.

Knows Linux and file formats, not the BEAM. ``files`` opens; ``client`` asks; everything that
``child`` imports runs confined, on a file whose owner may be an attacker.

In the process that asks:

- ``files``: opens files whose path or contents another user chose
- ``filesystems``: whether a filesystem answers without a process of another user
- ``client``: asks confined processes, and limits their time
- ``forkserver``: starts the process that forks them
- ``answers``: checks of what they answer
- ``refusals``: files that were refused, and for how long
- ``proc``: texts of ``/proc``, whatever names are in them

In both:

- ``wire``: messages, JSON behind its length
- ``limits``: how much of a file is parsed
- ``registers``: names of the registers of x86-64

Confined:

- ``child``: the process that parses
- ``confine``: gives up privileges, files and system calls
- ``questions``: what can be asked about a file
- ``elf``, ``symbols``, ``frames``: sections and notes, symbol tables, call frame information
- ``code``: the cheapest instruction for a breakpoint, and calls within a function
- ``jit_code``: what instructions of the JIT show of a stack
- ``decoder``: instructions as text, by capstone
"""
