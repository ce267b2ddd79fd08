# SPDX-License-Identifier: Apache-2.0
"""BPF objects, maps and rings."""
