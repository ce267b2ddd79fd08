# SPDX-License-Identifier: Apache-2.0
"""The library telemetry in a VM: which one it is, and its specifications with the VM's atoms."""
