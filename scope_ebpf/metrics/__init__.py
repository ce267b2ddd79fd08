# SPDX-License-Identifier: Apache-2.0
"""Maps and snapshots become Prometheus families. Pure: knows nothing of the kernel side."""
