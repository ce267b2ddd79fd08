# SPDX-License-Identifier: Apache-2.0
"""A run from the first look at a target to the last line: what commands call."""
