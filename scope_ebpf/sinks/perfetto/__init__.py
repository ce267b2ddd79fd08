# SPDX-License-Identifier: Apache-2.0
"""Captures as timelines for Perfetto, a module for each thing that is drawn."""
