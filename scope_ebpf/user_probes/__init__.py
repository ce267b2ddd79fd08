# SPDX-License-Identifier: Apache-2.0
"""Probes that a user wrote: their source and their hooks. Pure."""
