# SPDX-License-Identifier: Apache-2.0
"""Knows Linux and BPF. The only package that loads BPF programs."""
