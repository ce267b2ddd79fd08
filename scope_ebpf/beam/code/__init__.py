# SPDX-License-Identifier: Apache-2.0
"""
Code: modules, functions, lines, upgrades.

- ``captured_words``: shapes of arguments, from words that were copied at a call
- ``follow``: versions of functions through upgrades
- ``functions``: functions by pattern, and where they begin
- ``modules``: which code of a module is current, old, or to come
- ``natives``: the Erlang names of C functions, by the VM's own tables
- ``tables``: a code address to function, file and line
"""
