# SPDX-License-Identifier: Apache-2.0
"""The daemon: finds VMs, observes each within its budget, and serves metrics."""
