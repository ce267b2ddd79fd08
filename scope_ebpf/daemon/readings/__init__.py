# SPDX-License-Identifier: Apache-2.0
"""Readings of one target: process, threads, memory, process table."""
