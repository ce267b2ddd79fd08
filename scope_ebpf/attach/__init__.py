# SPDX-License-Identifier: Apache-2.0
"""The plan of what is attached to a target, as plain data, and the names that are allowed in it."""
