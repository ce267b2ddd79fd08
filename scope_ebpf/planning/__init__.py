# SPDX-License-Identifier: Apache-2.0
"""A target and what is asked for, made into a plan."""
