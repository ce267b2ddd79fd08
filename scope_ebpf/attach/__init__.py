# SPDX-License-Identifier: Apache-2.0
"""What is attached to a target and what is not, as plain data; the names that it may be."""
