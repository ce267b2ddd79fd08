# SPDX-License-Identifier: Apache-2.0
"""
Erlang processes: the table, names, sizes, messages.

- ``table``: the process table as rows; each is one process, or counted as torn
- ``sweep``: the load of every process, within a budget of CPU
- ``view``: rows as ``top`` and JSON show them
- ``detail``: everything of one process, as ``ps`` shows it
- ``names``, ``labels``, ``called``: names of processes, of pids in events, of long calls
- ``atoms``: texts of atoms
- ``sizes``: memory of a process, as ``process_info(P, memory)`` has it
- ``monitors``, ``reasons``: monitors and links; why a process does not run
- ``shapes``, ``term_text``: terms as text, cut or by a word alone
"""
