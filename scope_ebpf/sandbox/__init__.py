# SPDX-License-Identifier: Apache-2.0
"""
Files chosen by other users: opened with care, and parsed by a process that can do no harm.

Knows Linux and file formats, not the BEAM. ``files`` opens; ``client`` asks; everything that
``child`` imports runs confined, on a file whose owner may be an attacker.
"""
