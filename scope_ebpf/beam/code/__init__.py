# SPDX-License-Identifier: Apache-2.0
"""Code: modules, functions, lines, upgrades."""
