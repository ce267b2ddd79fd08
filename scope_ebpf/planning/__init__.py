# SPDX-License-Identifier: Apache-2.0
"""Makes the plan of a target, from its binary and the wanted events."""
