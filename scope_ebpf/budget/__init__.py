# SPDX-License-Identifier: Apache-2.0
"""Hooks of one target within a share of its CPU, for the daemon and for summaries."""
