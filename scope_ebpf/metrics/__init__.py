# SPDX-License-Identifier: Apache-2.0
"""Readings of targets as Prometheus families. Pure."""
