# SPDX-License-Identifier: Apache-2.0
"""Erlang processes: the table, names, sizes, messages."""
