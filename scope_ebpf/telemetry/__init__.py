# SPDX-License-Identifier: Apache-2.0
"""Which events of which library are known, and what is taken of each."""
