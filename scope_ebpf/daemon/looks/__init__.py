# SPDX-License-Identifier: Apache-2.0
"""Finds the processes that are VMs, within limits for each owner."""
