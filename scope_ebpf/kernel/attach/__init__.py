# SPDX-License-Identifier: Apache-2.0
"""Attaching: breakpoints, the process that holds them, leftover ones, tracepoints, perf events."""
