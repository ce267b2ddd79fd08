# SPDX-License-Identifier: Apache-2.0
"""Captures: what a trace saw, in a file that can be read without root and without the target."""
