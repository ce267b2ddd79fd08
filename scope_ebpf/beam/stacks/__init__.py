# SPDX-License-Identifier: Apache-2.0
"""Copied stacks as functions."""
