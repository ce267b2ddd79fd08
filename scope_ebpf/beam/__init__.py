# SPDX-License-Identifier: Apache-2.0
"""Knows the BEAM. Reads only: files, ``/proc`` and another process's memory."""
