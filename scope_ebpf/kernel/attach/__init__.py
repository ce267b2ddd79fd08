# SPDX-License-Identifier: Apache-2.0
"""Breakpoints: who holds them, where they lie, what was left behind."""
