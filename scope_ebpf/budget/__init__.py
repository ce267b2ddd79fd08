# SPDX-License-Identifier: Apache-2.0
"""Hooks of one target within a share of its CPU: what the daemon and the summary have alike."""
